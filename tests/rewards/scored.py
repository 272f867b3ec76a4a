"""Prompts and responses to score, and the pool of processes to score them with."""

from __future__ import annotations

import asyncio
from typing import Any

from covey.rewards import build_reward
from covey.rewards.pool import Isolated, Limits, isolate, pools
from covey.types import Message, Prompt, Rollout, RolloutKey, Score, Stop, Turn


def prompt(answer: str | None = "4", *, messages: bool = False, **meta: Any) -> Prompt:
    """A problem whose row was a text, or messages."""
    return Prompt("p/0", (Message("user", "2+2?"),), answer, "rows", meta, messages)


def rollout(text: str, index: int = 0, tokens: tuple[int, ...] = (5, 6, 1)) -> Rollout:
    turn = Turn(tokens, tuple(-0.1 for _ in tokens))
    return Rollout(RolloutKey("p/0", index), (turn,), Stop.END, 16, text)


def rollouts(*texts: str) -> list[Rollout]:
    return [rollout(text, index) for index, text in enumerate(texts)]


def score(reward: Any, *texts: str, limits: Limits | None = None, given: Prompt | None = None) -> list[Score]:
    """The scores that a reward gives in processes of its own."""
    apart = isolate(build_reward(reward), limits or Limits(workers=1, timeout_s=20.0))
    assert pools(apart)
    try:
        return list(asyncio.run(apart.score(given or prompt(), rollouts(*texts))))
    finally:
        for pool in pools(apart):
            pool.close()


def values(scores: list[Score]) -> list[Any]:
    """The only number of each score, or the reason of its failure."""
    return [next(iter((score.values or score.failures).values())) for score in scores]


__all__ = ["Isolated", "Limits", "prompt", "rollout", "rollouts", "score", "values"]
