"""What a claim is: a paper's statement, what is measured of it here, and the rule that turns numbers into a verdict.

The rule is part of the claim and never changes with the numbers: a claim that does not hold is written down as such.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Verdict = Literal["reproduced", "not seen", "contradicted"]
Trial = Callable[[int], Mapping[str, float]]
"""Seed -> numbers by name: the first is judged, the others stand beside it."""

ROUNDING = 1e-9
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Two-sided 95 % points of Student's t by degrees of freedom, from 1 on; 1.96 beyond."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds and its 95 % interval (Student's t); of a number without chance, the number and its rounding."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The interval of some values; of a single one its rounding, as nothing else can be said."""
        n, mean = len(values), math.fsum(values) / len(values)
        if n == 1:
            room = ROUNDING * max(1.0, abs(mean))
            return cls(mean, mean - room, mean + room)
        error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
        room = (_STUDENT[n - 2] if n - 2 < len(_STUDENT) else 1.96) * error
        return cls(mean, mean - room, mean + room)

    def __str__(self) -> str:
        if self.high - self.low <= 4 * ROUNDING * max(1.0, abs(self.mean)):
            return (
                f"{self.mean:.6g}" if abs(self.mean) >= 1e-12 or self.mean == 0 else "< 1e-12"
            )  # rounding, not a number
        return f"{_short(self.mean)} [{_short(self.low)}, {_short(self.high)}]"


def _short(value: float) -> str:
    """Three digits, and whole numbers from a thousand up."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Rule(Protocol):
    """Interval -> verdict."""

    def __call__(self, found: Interval) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class Positive:
    """The claim is a direction: reproduced above 0, not seen where the interval holds 0, contradicted below."""

    def __call__(self, found: Interval) -> Verdict:
        """The verdict by where 0 lies."""
        if not all(map(math.isfinite, (found.low, found.high))) or found.low <= 0 <= found.high:
            return "not seen"
        return "reproduced" if found.low > 0 else "contradicted"

    def __str__(self) -> str:
        return "> 0"


@dataclass(frozen=True, slots=True)
class Near:
    """The claim is a number: reproduced if the interval lies within `room` of it, contradicted if wholly outside."""

    number: float
    room: float = 1e-8

    def __call__(self, found: Interval) -> Verdict:
        """The verdict by where the band lies."""
        low, high = self.number - self.room, self.number + self.room
        if not all(map(math.isfinite, (found.low, found.high))):
            return "not seen"
        if low <= found.low and found.high <= high:
            return "reproduced"
        return "contradicted" if found.high < low or found.low > high else "not seen"

    def __str__(self) -> str:
        return f"{self.number:g} ± {self.room:g}"


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The claim is that something is not lost: reproduced if the interval lies above the number, contradicted if below."""

    number: float

    def __call__(self, found: Interval) -> Verdict:
        """The verdict by where the number lies."""
        shift = self.number
        return Positive()(Interval(found.mean - shift, found.low - shift, found.high - shift))

    def __str__(self) -> str:
        return f"> {self.number:g}"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a claim's trials gave: the judged interval, what stands beside it, the verdict, and the processor's seconds."""

    claim: Claim
    value: Interval
    beside: Mapping[str, Interval]
    verdict: Verdict
    seeds: int
    seconds: float

    def plain(self) -> dict[str, object]:
        """The finding as plain data, the claim's words included."""
        words = {name: getattr(self.claim, name) for name in ("name", "says", "paper", "measures", "note")}
        numbers = {"value": self.value.mean, "low": self.value.low, "high": self.value.high}
        beside = {name: {"value": part.mean, "low": part.low, "high": part.high} for name, part in self.beside.items()}
        return {
            **words, "recipes": list(self.claim.recipes), "expected": str(self.claim.rule), **numbers, "seeds": self.seeds,
            "verdict": self.verdict, "beside": beside, "seconds": round(self.seconds, 3),
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement of a paper, made small enough to be checked on one processor thread.

    `recipes` are those that it is about, `says` the statement, `paper` the paper's own number and source, `measures` what the
    judged number is, `note` what the small scale leaves out. `seeds` 1 says that nothing is drawn: the number is exact.
    """

    name: str
    recipes: tuple[str, ...]
    says: str
    paper: str
    measures: str
    trial: Trial
    rule: Rule = field(default=Positive())
    seeds: int = 1
    quick: int = 3
    note: str = ""

    def run(self, *, quick: bool = False) -> Finding:
        """Run the trials and judge; `quick` takes fewer seeds, which widens the interval."""
        count, start = min(self.seeds, self.quick) if quick else self.seeds, time.process_time()
        trials = [self.trial(seed) for seed in range(count)]
        joined = {name: Interval.of([trial[name] for trial in trials]) for name in trials[0]}
        judged, *rest = joined
        return Finding(
            claim=self,
            value=joined[judged],
            beside={name: joined[name] for name in rest},
            verdict=self.rule(joined[judged]),
            seeds=count,
            seconds=time.process_time() - start,
        )
