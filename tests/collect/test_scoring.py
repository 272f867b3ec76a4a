"""Scores that are no numbers, or too few, are said and never become a 0."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from covey.collect.scoring import score_groups
from covey.errors import DataError
from covey.types import Group, Prompt, Rollout, RolloutKey, Score, Stop, Turn

GROUP = Group(
    "g",
    Prompt("p", (), None, "t"),
    (1,),
    tuple(Rollout(RolloutKey("p", i), (Turn((1,), (-1.0,)),), Stop.END, 4) for i in range(2)),
)


class Fixed:
    def __init__(self, *scores: Score) -> None:
        self.scores = scores

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> Sequence[Score]:
        return self.scores


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_not_finite_is_a_failure(value: float) -> None:
    [group] = asyncio.run(score_groups(Fixed(Score({"good": value, "form": 1.0}), Score({"good": 1.0})), [GROUP]))
    assert group.rollouts[0].rewards == {"form": 1.0}
    assert group.rollouts[0].failures == {"good": f"nonfinite: the score is {value}"}
    assert group.rollouts[1].failures == {}


def test_a_reward_that_returns_too_few_scores_is_told() -> None:
    with pytest.raises(DataError, match="1 scores for the 2 rollouts of prompt p"):
        asyncio.run(score_groups(Fixed(Score({"good": 1.0})), [GROUP]))
