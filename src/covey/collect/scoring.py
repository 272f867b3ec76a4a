"""Scores go onto rollouts: a number per component or a typed failure, never something in between."""

from __future__ import annotations

import asyncio
import math
import sys
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import redirect_stdout

from covey.errors import CoveyError, DataError
from covey.metrics import Metric, Metrics, mean, total
from covey.protocols import Reward
from covey.rewards.failures import explain, fail, type_of
from covey.types import Group, Rollout, Score

WINDOW = 3
"""Steps over which failures are looked at together: one step may be an outage."""


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
        scores = [fail((name,), explain(error))] * len(group.rollouts)
    if len(scores) != len(group.rollouts):
        found = f"{len(scores)} scores for the {len(group.rollouts)} rollouts of prompt {group.prompt.id}"
        raise DataError("reward", found, "Return one score per rollout, in order.")
    rollouts = (_scored(*pair) for pair in zip(group.rollouts, scores, strict=True))
    return group.with_(rollouts=tuple(rollouts))


def _scored(rollout: Rollout, score: Score) -> Rollout:
    """A value that is not finite is a failure: it would poison every statistic it enters."""
    finite = {name: value for name, value in score.values.items() if math.isfinite(value)}
    bad = {name: f"nonfinite: the score is {value}" for name, value in score.values.items() if name not in finite}
    return rollout.with_(rewards=finite, failures={**score.failures, **bad}, facts=score.facts, detail=score.detail)


def count_failures(rollouts: Sequence[Rollout]) -> dict[str, Metric]:
    """The share of rollouts that could not be scored, and how many of each type; a rollout counts once.

    None from a function is the type of a rollout only if there is no other.
    """
    kinds = [[type_of(reason) for reason in rollout.failures.values()] for rollout in rollouts if rollout.failures]
    counts = Counter(next((kind for kind in found if kind != "none"), "none") for found in kinds)
    by_type = {f"reward/failed_{kind}": total(count) for kind, count in sorted(counts.items())}
    return {"reward/failed": mean(len(kinds), len(rollouts)), **by_type}


def _is_scored(rollout: Rollout) -> bool:
    """Whether a component counts: beside nothing but None there are only components of weight 0."""
    reasons = rollout.failures.values()
    return bool(rollout.rewards) and (not reasons or any(type_of(reason) != "none" for reason in reasons))


class FailureRate:
    """Ends a run whose reward fails too often: more than the share `most` of all rollouts sampled in the last steps.

    None, which a function returns on purpose, is no such failure. Steps without any score at all, whatever the reason, end
    a run as soon as there were `WINDOW` of them in a row.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self._steps: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._unscored = 0

    def note(self, step: int, metrics: Metrics, groups: Sequence[Group]) -> None:
        """Look at a finished step. Raises DataError."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        reasons = [text for rollout in rollouts for text in rollout.failures.values()]
        self._unscored = 0 if any(map(_is_scored, rollouts)) else self._unscored + 1
        where, right = f"step {step}", "Mend the reward; the reasons stand under `failures` in rollouts/."
        if self._unscored >= WINDOW:
            reason = reasons[0] if reasons else "no component"
            raise DataError(where, f"no rollout could be scored in {WINDOW} steps in a row ({reason:.200})", right)
        if "reward/failed" not in metrics:
            return
        failed, own = metrics["reward/failed"], metrics.get("reward/failed_none")
        self._steps.append((failed.total - (own.total if own else 0), failed.count))
        share = sum(count for count, _ in self._steps) / max(1.0, sum(of for _, of in self._steps))
        if len(self._steps) == WINDOW and share > self.most:
            reason = next((text for text in reasons if type_of(text) != "none"), "see reward/failed_* in metrics.jsonl")
            found = f"{share:.0%} of the rollouts of {WINDOW} steps could not be scored ({reason:.200})"
            raise DataError(where, found, f"{right} Up to scoring.max_failed={self.most:g} of them may fail.")
