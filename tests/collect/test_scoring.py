"""Scores that are no numbers, or too few, are said and never become a 0."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from covey.collect.scoring import FailureRate, count_failures, score_groups
from covey.errors import DataError
from covey.metrics import values
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


def rolled(*failures: dict[str, str]) -> list[Rollout]:
    """Scored rollouts, those with reasons failed."""
    return [
        rollout.with_(failures=found, rewards={} if found else {"good": 1.0})
        for found in failures
        for rollout in GROUP.rollouts[:1]
    ]


def test_failures_are_counted_by_type_and_a_rollout_once() -> None:
    found = count_failures(
        rolled(
            {},
            {"a": "none: returned None", "b": "timeout: no score"},
            {"a": "none: returned None"},
            {"a": "the answer holds no number"},
            {"a": "crash: SIGKILL", "b": "timeout: no score"},
        )
    )
    assert values(found) == {
        "reward/failed": 0.8,
        "reward/failed_crash": 1.0,
        "reward/failed_none": 1.0,
        "reward/failed_other": 1.0,
        "reward/failed_timeout": 1.0,
    }
    assert values(count_failures(rolled({}))) == {"reward/failed": 0.0}


BAD, NONE = {"a": "crash: SIGKILL"}, {"a": "none: returned None"}


@pytest.mark.parametrize(
    ("most", "steps", "ends"),
    [
        (0.5, [[BAD, BAD, BAD, {}]] * 3, 3),
        (0.5, [[BAD, BAD, {}, {}]] * 9, None),  # a share of one half is not above one half
        (0.5, [[BAD, BAD, BAD, {}]] * 2 + [[{}] * 4] * 9, None),  # an outage
        (0.5, [[{}] * 4] * 5 + [[BAD, BAD, BAD, {}]] * 5, 8),
        (0.0, [[{}] * 4] * 2 + [[BAD, {}, {}, {}]], 3),
        (1.0, [[BAD, BAD, BAD, {}]] * 9, None),
        (0.5, [[NONE, NONE, NONE, {}]] * 9, None),  # said on purpose
        (1.0, [[NONE] * 4] * 9, 3),  # nothing at all has a score
        (1.0, [[BAD] * 4] * 2 + [[{}] * 4] + [[BAD] * 4] * 3, 6),
    ],
)
def test_a_run_ends_when_too_many_fail(most: float, steps: list[list[dict[str, str]]], ends: int | None) -> None:
    rate, ended = FailureRate(most), None
    for step, failures in enumerate(steps, start=1):
        rollouts = rolled(*failures)
        try:
            rate.note(step, count_failures(rollouts), [GROUP.with_(rollouts=tuple(rollouts))])
        except DataError as error:
            ended = int(error.where.removeprefix("step "))
            break
    assert ended == ends


def test_components_without_weight_do_not_hide_that_nothing_is_scored() -> None:
    rate, watched = FailureRate(1.0), [one.with_(rewards={"watched": 0.7}) for one in rolled(NONE, NONE)]
    group, metrics = GROUP.with_(rollouts=tuple(watched)), count_failures(watched)
    rate.note(1, metrics, [group])
    rate.note(2, metrics, [group])
    with pytest.raises(DataError, match="no rollout could be scored in 3 steps in a row"):
        rate.note(3, metrics, [group])


def test_the_end_says_how_many_and_why() -> None:
    rate, rollouts = FailureRate(0.5), rolled(BAD, BAD, BAD, {})
    group, metrics = GROUP.with_(rollouts=tuple(rollouts)), count_failures(rollouts)
    rate.note(1, metrics, [group])
    rate.note(2, metrics, [group])
    with pytest.raises(DataError) as caught:
        rate.note(3, metrics, [group])
    assert str(caught.value) == (
        "step 3: 75% of the rollouts of 3 steps could not be scored (crash: SIGKILL). Mend the reward; the reasons stand "
        "under `failures` in rollouts/. Up to scoring.max_failed=0.5 of them may fail."
    )
