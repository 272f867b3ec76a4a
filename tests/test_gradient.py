"""The improver: what it asks of the engine for each optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from covey import recipes
from covey.gradient import GradientImprover, Schedule
from covey.metrics import Metrics, total
from covey.recipes import Recipe
from covey.stages.objective import SUMS
from covey.types import Group, Prompt, Rollout, RolloutKey, Stop, Turn

STEERED = {"kind": "entropy", "coef": 0.1, "target": 1.0, "delta": 0.05}
SCHEDULE = Schedule(passes=1, steps_per_pass=2, seed=0, temperature=1.0, lr=lambda step: 1e-3)


class Engine:
    """Remembers the states that it was given, and answers with these totals of entropy over two tokens."""

    def __init__(self, *entropies: float) -> None:
        self.entropies, self.told = iter(entropies), list[Mapping[str, Any]]()

    def update(self, step: Any, *, states: Mapping[str, Any], **_: Any) -> Metrics:
        self.told.append(states)
        sums = {"entropy": next(self.entropies), "tokens": 2.0}
        return {"loss/value": total(0.0), **{f"{SUMS}penalty.entropy/{k}": total(v) for k, v in sums.items()}}


def groups(count: int) -> list[Group]:
    def rollout(at: int, index: int) -> Rollout:
        turn = Turn((1, 2), by="policy", sampled_logp=(-1.0, -1.0), versions=((2, 0),))
        return Rollout(RolloutKey(f"p{at}", index), (turn,), Stop.END, 8, rewards={"correct": float(index % 2)})

    return [
        Group(f"p{at}", Prompt(f"p{at}", (), None, "test"), (3,), tuple(rollout(at, i) for i in range(4)))
        for at in range(count)
    ]


def improver(recipe: Recipe, engine: Engine) -> GradientImprover:
    return GradientImprover(recipe, engine, [], SCHEDULE, {})


def test_an_engine_is_told_the_states_of_live_components_alone() -> None:
    """The quartiles' list grows with every group of the run: ranks, which do not read it, are not sent it at every step."""
    engine = Engine(1.0, 1.0)
    made = improver(recipes.get("gfpo_adaptive").but(penalties=(STEERED,)), engine)
    made.improve(groups(4), 0)
    assert [set(states) for states in engine.told] == [{"penalty.entropy"}] * 2
    assert len(made.states["filter.k_best_by_difficulty"]["means"]) == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_totals_that_are_not_finite_move_no_state(bad: float) -> None:
    """Such a step leaves weights and optimizer alone; a state that took it up would spoil every later step."""
    engine = Engine(bad, 1.0)
    made = improver(recipes.get("dr_grpo").but(penalties=(STEERED,)), engine)
    made.improve(groups(2), 0)
    first, second = (states["penalty.entropy"] for states in engine.told)
    assert first == second == {"coef": 0.1, "applied": 0.0}
    assert made.states["penalty.entropy"] == pytest.approx({"coef": 0.15, "applied": 0.15})
