"""Puts a recipe through every property and says which hold, how closely, and which one fails where."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from covey.errors import ConfigError
from covey.proof.properties import EXEMPTABLE, PROPERTIES, Gap, Property
from covey.recipes.recipe import Recipe
from covey.stages.objective import couples

SEEDS = 20
"""Random batches per property."""
Outcome = Literal["holds", "fails", "exempt", "idle"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one property says of a recipe: `worst` is the largest relative difference among `cases`.

    `reason` says why an exempt property need not hold, why an idle one does not apply, or where a failing one fails.
    """

    property: str
    outcome: Outcome
    worst: float = 0.0
    cases: int = 0
    seed: int | None = None
    reason: str = ""

    def plain(self) -> dict[str, Any]:
        """The verdict as plain data."""
        return {**asdict(self), "sentence": PROPERTIES[self.property].sentence}


def prove(recipe: Recipe, seeds: Iterable[int] = range(SEEDS)) -> list[Verdict]:
    """A verdict on every property. Raises ConfigError if a component exempts itself from what always has to hold."""
    exempt, numbers = recipe.exemptions(), list(seeds)
    for name in exempt:
        if name not in EXEMPTABLE:
            found = f"a component exempts itself from '{name}'"
            raise ConfigError(f"recipe {recipe.name}", found, f"Only these can be exempted: {', '.join(EXEMPTABLE)}.")
    return list(_verdicts(recipe, numbers, exempt))


def _verdicts(recipe: Recipe, seeds: Sequence[int], exempt: dict[str, str]) -> Iterator[Verdict]:
    for name, prop in PROPERTIES.items():
        if name in exempt:
            tried = _judge(name, prop, recipe, seeds)
            needless = "" if tried.outcome == "fails" else " (it holds here all the same)"
            yield Verdict(name, "exempt", tried.worst, tried.cases, reason=f"{exempt[name]}{needless}")
        elif name == "two_passes" and couples(recipe) == "row":
            yield Verdict(name, "idle", reason="no component couples rows")
        else:
            yield _judge(name, prop, recipe, seeds)


def _judge(name: str, prop: Property, recipe: Recipe, seeds: Sequence[int]) -> Verdict:
    worst, count = 0.0, 0
    for seed in seeds:
        for gap in _cases(prop, recipe, seed):
            worst, count = max(worst, math.inf if math.isnan(gap.size) else gap.size), count + 1
            if not gap.holds:
                return Verdict(name, "fails", worst, count, seed, f"seed {seed}: {_describe(gap)}")
    return Verdict(name, "holds", worst, count)


def _cases(prop: Property, recipe: Recipe, seed: int) -> Iterator[Gap]:
    """The cases of a seed; a component that breaks down is a case like others, whatever it raises."""
    try:
        with torch.enable_grad():
            yield from prop.cases(recipe, seed)
    except Exception as error:
        yield Gap(f"{type(error).__name__}: {' '.join(str(error).split()):.200}", math.nan)


def _describe(gap: Gap) -> str:
    if math.isnan(gap.size):
        return gap.what
    if math.isinf(gap.size):
        return f"{gap.what} is not finite"
    limit = "exactly 0 is right" if gap.limit == 0 else f"at most {gap.limit:.0e} is right"
    return f"{gap.what} is off by {gap.size:.2g}, {limit}"
