"""What n samples of a problem say about k: pass@k, pass^k, avg@k and maj@k without bias, and how sure their means are.

All estimators are averages over every choice of k out of the n samples, in closed form. Problems are the sampling
unit: a benchmark's value is the mean over problems, its standard error the standard deviation over problems (ddof
1) over sqrt(M). Source of pass@k: arXiv 2107.03374, section 2.1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from covey.errors import ConfigError, DataError

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems: `se` is its standard error (NaN below two problems), `count` the number of problems."""

    mean: float
    se: float
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of a share: Wilson's, with mean (1 - mean) / se^2 as the number of trials.

        So it stays inside [0, 1] and has a width even where all problems agree (then the number of problems counts).
        Below two problems it is (NaN, NaN).
        """
        if math.isnan(self.se):
            return math.nan, math.nan
        p = min(max(self.mean, 0.0), 1.0)
        trials = p * (1 - p) / self.se**2 if self.se > 0 else float(self.count)
        trials = trials or float(self.count)
        centre = (p + Z95**2 / (2 * trials)) / (1 + Z95**2 / trials)
        half = Z95 * math.sqrt(p * (1 - p) / trials + Z95**2 / (4 * trials**2)) / (1 + Z95**2 / trials)
        return max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p))


def estimate(values: Iterable[float]) -> Estimate:
    """The mean of one value per problem and its standard error: std (ddof 1) / sqrt(M).

    No problems: mean and se are NaN. One problem: se is NaN. A NaN among the values makes both NaN.
    """
    found = list(values)
    count = len(found)
    if not count:
        return Estimate(math.nan, math.nan, 0)
    mean = math.fsum(found) / count
    if count == 1:
        return Estimate(mean, math.nan, 1)
    spread = math.fsum((value - mean) ** 2 for value in found) / (count - 1)
    return Estimate(mean, math.sqrt(spread / count), count)


def paired(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The mean change `after - before` over the same problems in the same order, with its standard error."""
    if len(before) != len(after):
        raise DataError("paired", f"{len(before)} values before and {len(after)} after", "Give the same problems.")
    return estimate(b - a for a, b in zip(before, after, strict=True))


def change_interval(change: Estimate) -> tuple[float, float]:
    """The 95 % interval of a paired change: mean +- t se with Student's t of M - 1 degrees of freedom, inside [-1, 1].

    Where all problems change alike the standard error is 0 and says nothing of problems that were not asked; then the
    half width is 3 / M (the rule of three: what M problems did not show has a share below 3 / M). Below two problems it
    is (NaN, NaN).
    """
    if math.isnan(change.se):
        return math.nan, math.nan
    half = _student(change.count - 1) * change.se if change.se > 0 else min(1.0, 3 / change.count)
    return max(-1.0, change.mean - half), min(1.0, change.mean + half)


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t by the Cornish-Fisher expansion: to 0.01 from 3 degrees of freedom on, too small below."""
    z, v = Z95, freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


def pass_at(n: int, correct: int, k: int) -> float:
    """The chance that at least one of k samples is right: `1 - C(n-c, k) / C(n, k)`, as a product in float64.

    Unbiased for `1 - (1 - p)^k`. k > n is an error, never clamped.
    """
    _check(n, correct, k)
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / j for j in range(n - correct + 1, n + 1))


def all_at(n: int, correct: int, k: int) -> float:
    """The chance that all k samples are right (pass^k, reliability): `C(c, k) / C(n, k)`, 0 if c < k."""
    _check(n, correct, k)
    if correct < k:
        return 0.0
    return math.prod((correct - j) / (n - j) for j in range(k))


def average_at(n: int, correct: int, k: int) -> float:
    """The mean accuracy of k samples (avg@k): `c / n`, whatever k <= n."""
    _check(n, correct, k)
    return correct / n


def majority_at(answers: Sequence[str | None], right: Iterable[str], k: int) -> float:
    """The chance that the most frequent answer of k samples is right (maj@k).

    `answers` are normalised; None is a sample without an answer and does not vote; `right` are the right answers.
    Ties count by the share of the tied answers that are right; nobody votes: 0.
    """
    counts, known = Counter(answer for answer in answers if answer is not None), set(right)
    return plurality_at({name: (count, count * (name in known)) for name, count in counts.items()}, len(answers), k)


def plurality_at(answers: Mapping[str, tuple[int, int]], n: int, k: int) -> float:
    """maj@k from counts: `answers` says of each answer how many of the n samples gave it and how many of those are right.

    The winner is worth the share of its samples that are right: 0 or 1 where nothing but the answer decides. Samples
    without an answer do not vote. Exact over all C(n, k) choices: for an answer drawn j times, sum over the ways to
    draw every other answer at most j times, t of them j times, weighted 1 / (t + 1).
    """
    _check(n, sum(right for _, right in answers.values()), k)
    counts = {name: count for name, (count, _) in answers.items()}
    if k == n:
        return _vote(answers)
    total, value = math.comb(n, k), 0.0
    for name, (count, right) in sorted(answers.items()):
        for j in range(1, min(count, k) + 1) if right else ():
            rivals = [other for rival, other in counts.items() if rival != name and other >= j]
            free = n - count - sum(rivals)  # the silent, and answers that are too rare to be drawn j times
            for (drawn, ties), ways in _draws(rivals, j, k - j).items():
                ways *= math.comb(count, j) * math.comb(free, k - j - drawn)
                value += right / count * (ways / total) / (ties + 1)
    return value


def _vote(answers: Mapping[str, tuple[int, int]]) -> float:
    """What the winner of one vote is worth, tied ones on average."""
    most = max((count for count, _ in answers.values()), default=0)
    tied = [right / count for count, right in answers.values() if count == most and count]
    return math.fsum(tied) / len(tied) if tied else 0.0


def _draws(counts: Sequence[int], most: int, room: int) -> dict[tuple[int, int], int]:
    """Ways to draw from piles of `counts`, at most `most` of each: {(drawn in all, piles drawn `most` times): ways}."""
    table = {(0, 0): 1}
    for count in counts:
        grown: Counter[tuple[int, int]] = Counter()
        for (drawn, ties), ways in table.items():
            for take in range(min(count, most, room - drawn) + 1):
                grown[drawn + take, ties + (take == most)] += ways * math.comb(count, take)
        table = dict(grown)
    return table


def powers_of_two(n: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to n: the k that n samples are reported for."""
    return tuple(1 << i for i in range(n.bit_length()) if n)


def _check(n: int, correct: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ConfigError(f"k = {k}", f"there are {n} samples of a problem", f"k is between 1 and {n}.")
    if not 0 <= correct <= n:
        raise DataError(f"correct = {correct}", f"there are {n} samples of a problem", f"It is between 0 and {n}.")
