"""What is off in a run, seen from its latest metrics: each finding has a code, what was seen and what to turn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from covey.types import Group

History = Sequence[Mapping[str, float]]

WINDOW = 5
"""Steps that a condition has to last where a single step would be noise."""
LATEST = 50
"""Latest steps that conditions look back on, besides the first `WINDOW`."""
AGAIN = 50
"""Steps after which a finding that lasts, or comes and goes, is told again."""
FAILURE = "failure/"
"""Prefix, in the rows of a history, of how many rollouts of the step failed by one type of reason."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One health line: a stable code, what was seen, and the knob that usually mends it."""

    code: str
    seen: str
    knob: str

    def __str__(self) -> str:
        return f"{self.code}: {self.seen}. {self.knob}"


class Watch:
    """Looks at a run step by step, and says what is off when it appears; a finding that lasts is not repeated for a while."""

    def __init__(self, *, again: int = AGAIN) -> None:
        self.again = again
        self._history: list[Mapping[str, float]] = []
        self._told: dict[str, int] = {}

    def step(self, n: int, values: Mapping[str, float], groups: Sequence[Group] = ()) -> list[Finding]:
        """What has to be told after step `n` with these metrics and groups; usually nothing."""
        self._remember({**values, **_failures(groups)})
        found = [f for f in check(self._history) if n - self._told.get(f.code, -self.again) >= self.again]
        self._told |= {finding.code: n for finding in found}
        return found

    def recall(self, rows: History, told: Iterable[tuple[int, str]]) -> None:
        """Go on where a resumed run stood: the metrics of its steps, and what was told after which step."""
        self._history, self._told = [], {code: n for n, code in told}
        for row in rows:
            self._remember(row)

    def _remember(self, values: Mapping[str, float]) -> None:
        self._history.append(values)
        if len(self._history) > WINDOW + LATEST:
            del self._history[WINDOW]


def _failures(groups: Sequence[Group]) -> dict[str, float]:
    """Reasons by type: the word before their colon."""
    reasons = [reason for group in groups for rollout in group.rollouts for reason in rollout.failures.values()]
    words = [word if colon and word.isalpha() else "other" for word, colon, _ in (r.partition(":") for r in reasons)]
    return {f"{FAILURE}{word}": float(count) for word, count in Counter(words).items()}


def check(history: History) -> list[Finding]:
    """The findings of the latest step, given the metrics of all steps so far (oldest first); usually none.

    A metric that is absent or NaN raises nothing.
    """
    if not history:
        return []
    findings = (condition(history) for condition in CONDITIONS)
    return [finding for finding in findings if finding is not None]


def _now(history: History, name: str) -> float:
    return history[-1].get(name, math.nan)


def _last(history: History, name: str, count: int = WINDOW) -> list[float]:
    """The latest `count` values, or nothing if one of them is missing."""
    values = [row.get(name, math.nan) for row in history[-count:]]
    return values if len(values) == count and not any(math.isnan(value) for value in values) else []


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def equal_groups(history: History) -> Finding | None:
    """No group had a signal for `WINDOW` steps: the policy did not learn from them."""
    mixed = _last(history, "group/mixed")
    if not mixed or max(mixed) > 0:
        return None
    return Finding("equal-groups", f"no group had a signal for {WINDOW} steps{_side(history)}", _cure(history))


def no_signal(history: History) -> Finding | None:
    """This step had no group with a signal: its gradient is zero."""
    if _now(history, "group/mixed") > 0 or math.isnan(_now(history, "group/mixed")) or equal_groups(history):
        return None
    return Finding("no-signal", f"no group of this step has a signal{_side(history[-1:])}", _cure(history[-1:]))


def little_signal(history: History) -> Finding | None:
    """At most one group in eight had a signal, over `WINDOW` steps."""
    share = _mean(_last(history, "group/mixed"))
    if not 0 < share <= 1 / 8 or no_signal(history):
        return None
    seen = f"only {share:.0%} of the groups had a signal over {WINDOW} steps{_side(history)}"
    return Finding("little-signal", seen, _cure(history))


def _shares(history: History) -> tuple[float, float]:
    rows = history[-WINDOW:]
    return _mean([row.get("group/all_right", math.nan) for row in rows]), _mean(
        [row.get("group/all_wrong", math.nan) for row in rows]
    )


def _side(history: History) -> str:
    right, wrong = _shares(history)
    if right > 0.5:
        return " (most are all right)"
    return " (most are all wrong)" if wrong > 0.5 else ""


def _cure(history: History) -> str:
    right, _ = _shares(history)
    if right > 0.5:
        return "The problems are too easy: take harder ones, or stop here."
    return "Easier problems, more samples per prompt or a higher temperature bring signal."


def truncation(history: History) -> Finding | None:
    """More than a fifth of the rollouts hit the token budget."""
    share = _now(history, "stop/truncated")
    if not share > 0.2:
        return None
    return Finding(
        "truncation", f"{share:.0%} of the rollouts hit the token budget", "Raise budget.sampling.max_tokens."
    )


def entropy_collapse(history: History) -> Finding | None:
    """The entropy fell below a tenth of its start while less than 0.9 is solved: the policy stopped exploring."""
    first, last = (
        _mean([row.get("entropy/sampled", math.nan) for row in history[:WINDOW]]),
        _mean(_last(history, "entropy/sampled")),
    )
    solved = _mean(_last(history, "reward/correct") or _last(history, "reward/mean"))
    if len(history) <= WINDOW or not last < 0.1 * first or not solved < 0.9:
        return None
    seen = f"entropy fell from {first:.2f} to {last:.3f} nats per token while {solved:.0%} is solved"
    return Finding(
        "entropy-collapse", seen, "A lower learning rate, a higher upper clip or an entropy bonus keeps it up."
    )


def entropy_explosion(history: History) -> Finding | None:
    """The entropy is more than twice that of the start and above one nat, and the reward is no better."""
    first, last = _start(history, "entropy/sampled"), _mean(_last(history, "entropy/sampled"))
    if not last > max(2 * first, 1.0) or _better(history):
        return None
    seen = f"entropy rose from {first:.2f} to {last:.2f} nats per token while the reward is no better"
    return Finding("entropy-explosion", seen, "Lower budget.optimizer.lr; resume from before the rise.")


def length_growth(history: History) -> Finding | None:
    """Responses became twice as long without a better reward."""
    first, last = _start(history, "length/mean"), _mean(_last(history, "length/mean"))
    if not last > 2 * first or _better(history):
        return None
    seen = f"responses grew from {first:.0f} to {last:.0f} tokens while the reward is no better"
    return Finding("length-growth", seen, "Weigh tokens alike (recipe.weighting=constant) or penalise length.")


def length_collapse(history: History) -> Finding | None:
    """Responses became less than a third as long without a better reward."""
    first, last = _start(history, "length/mean"), _mean(_last(history, "length/mean"))
    if not last < first / 3 or _better(history):
        return None
    seen = f"responses shrank from {first:.0f} to {last:.1f} tokens while the reward is no better"
    return Finding("length-collapse", seen, "Raise budget.sampling.max_tokens or weaken the length penalty.")


def _start(history: History, name: str) -> float:
    """The mean over the first `WINDOW` steps, once that many other ones came after them; else NaN."""
    values = [row.get(name, math.nan) for row in history[:WINDOW]]
    return _mean(values) if len(history) >= 2 * WINDOW else math.nan


def _better(history: History) -> bool:
    """Whether the reward is above that of the start by more than twice the standard error of the difference."""
    first = [row.get("reward/mean", math.nan) for row in history[:WINDOW]]
    last = _last(history, "reward/mean") or [math.nan]
    error = math.sqrt((_variance(first) + _variance(last)) / WINDOW)
    return _mean(last) - _mean(first) > 2 * error


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)


def clipping(history: History) -> Finding | None:
    """The clip removed the gradient of more than a fifth of the tokens, over `WINDOW` steps."""
    low, high = _mean(_last(history, "clip/low")), _mean(_last(history, "clip/high"))
    if not low + high > 0.2:
        return None
    seen = f"{low + high:.0%} of the tokens are clipped over {WINDOW} steps"
    return Finding(
        "clipping", seen, "Fewer optimizer steps per batch or a lower budget.optimizer.lr keep the ratio near 1."
    )


def kl_growth(history: History) -> Finding | None:
    """The policy is more than half a nat per token away from the reference, over `WINDOW` steps."""
    gap = _mean(_last(history, "penalty/kl"))
    if not gap > 0.5:
        return None
    seen = f"the policy is {gap:.2f} nats per token away from the reference"
    return Finding("kl-growth", seen, "Raise recipe.penalties.kl.coef or lower budget.optimizer.lr.")


def gradient_spike(history: History) -> Finding | None:
    """The gradient is more than ten times the median of the latest steps that had one, of which ten are needed."""
    before = sorted(norm for row in history[-LATEST:-1] if (norm := row.get("grad/norm", math.nan)) > 0)
    norm = _now(history, "grad/norm")
    if len(before) < 10 or not norm > 10 * before[len(before) // 2]:
        return None
    seen = f"the gradient's norm is {norm:.3g}, usually {before[len(before) // 2]:.3g}"
    return Finding("gradient-spike", seen, "Look at the rows of this step; lower budget.optimizer.lr if it comes back.")


def reward_failures(history: History) -> Finding | None:
    """Some rollouts could not be scored; None on purpose counts only when most of them have no score."""
    failed = _now(history, "reward/failed")
    types = {name.removeprefix(FAILURE): count for name, count in history[-1].items() if name.startswith(FAILURE)}
    if not failed > (0.5 if types.keys() == {"none"} else 0):
        return None
    counts = ", ".join(f"{name} {count:g}" for name, count in sorted(types.items(), key=lambda item: -item[1]))
    seen = f"{failed:.0%} of the rollouts could not be scored" + (f" ({counts})" if counts else "")
    return Finding("reward-failures", seen, "Their reasons stand under `failures` in rollouts/.")


def skipped_steps(history: History) -> Finding | None:
    """The gradient was not finite, so the weights were left as they were."""
    if not _now(history, "grad/skipped") > 0:
        return None
    return Finding(
        "skipped-step", "the gradient was not finite and the step was left out", "Lower budget.optimizer.lr."
    )


def nonfinite(history: History) -> Finding | None:
    """Log-probabilities were NaN or infinite."""
    count = _now(history, "logp/nonfinite")
    if not count > 0:
        return None
    return Finding(
        "nonfinite",
        f"{count:g} log-probabilities are not finite",
        "Lower budget.optimizer.lr; look at the data of the step.",
    )


def mismatch(history: History) -> Finding | None:
    """Sampler and learner disagree about the same tokens under the same weights."""
    gap = _now(history, "kl/sampled_vs_old")
    if not abs(gap) > 0.1:
        return None
    return Finding(
        "mismatch", f"sampler and learner differ by {gap:.2f} nats per token", "Check both engines; add a correction."
    )


def short_step(history: History) -> Finding | None:
    """Sampling again and again did not fill the step."""
    missing = _now(history, "admit/missing")
    if not missing > 0:
        return None
    seen = f"the step has {missing:g} groups less than asked: too few were admitted"
    return Finding("short-step", seen, "Raise max_waves of recipe.admit, or take other problems.")


CONDITIONS: tuple[Callable[[History], Finding | None], ...] = (
    equal_groups,
    no_signal,
    little_signal,
    short_step,
    truncation,
    length_growth,
    length_collapse,
    entropy_collapse,
    entropy_explosion,
    clipping,
    kl_growth,
    gradient_spike,
    reward_failures,
    skipped_steps,
    nonfinite,
    mismatch,
)
