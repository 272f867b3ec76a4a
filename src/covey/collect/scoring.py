"""Scores go onto rollouts: a number per component or a typed failure, never something in between."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from covey.errors import CoveyError, DataError
from covey.protocols import Reward
from covey.types import Group, Rollout, Score


async def score_groups(reward: Reward, groups: Sequence[Group]) -> list[Group]:
    """The groups with their rollouts scored, all prompts at once, in order. What a reward prints goes to stderr."""
    with redirect_stdout(sys.stderr):
        return list(await asyncio.gather(*(_score(reward, group) for group in groups)))


async def _score(reward: Reward, group: Group) -> Group:
    try:
        scores = await reward.score(group.prompt, group.rollouts)
    except CoveyError:
        raise
    except Exception as error:  # rewards may come from other packages: what they raise is data about these rollouts
        name = next(iter(getattr(reward, "weights", {})), "reward")
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        scores = [Score(failures={name: reason})] * len(group.rollouts)
    if len(scores) != len(group.rollouts):
        found = f"{len(scores)} scores for the {len(group.rollouts)} rollouts of prompt {group.prompt.id}"
        raise DataError("reward", found, "Return one score per rollout, in order.")
    rollouts = (_scored(*pair) for pair in zip(group.rollouts, scores, strict=True))
    return group.with_(rollouts=tuple(rollouts))


def _scored(rollout: Rollout, score: Score) -> Rollout:
    """A value that is not finite is a failure: it would poison every statistic it enters."""
    finite = {name: value for name, value in score.values.items() if math.isfinite(value)}
    bad = {name: f"not finite ({value})" for name, value in score.values.items() if name not in finite}
    return rollout.with_(rewards=finite, failures={**score.failures, **bad}, facts=score.facts, detail=score.detail)
