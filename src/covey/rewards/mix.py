"""Several rewards as one: each keeps its components, with its weights."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, ClassVar

from pydantic import Field, model_validator

from covey.errors import ConfigError, DataError, did_you_mean
from covey.registry import Component, component
from covey.rewards.failures import type_of
from covey.types import Prompt, Rollout, Score


@component("reward", "mix")
class Mix(Component):
    """The components of several rewards side by side; a name that occurs again gets a number: `correct`, `correct_2`.

    A component for which its function returned None is left out of that rollout's sum, and the weights of the others stay. A
    rollout for which all with a weight did, or with a failure of another type in any of them, is not scored. Of facts of one
    name the first reward's stays.
    """

    rewards: tuple[Any, ...] = Field(description="rewards: kinds, FILE.py:function, or both", min_length=1)
    weights: Mapping[str, float] = Field(
        default_factory=dict,
        description="weight by name of a component, or of each reward in order; others keep their own",
    )

    isolated: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _build(cls, data: Any) -> Any:
        from covey.rewards.kinds import build_reward

        if not isinstance(data, Mapping) or "rewards" not in data:
            return data
        given = data["rewards"] if isinstance(data["rewards"], (list, tuple)) else [data["rewards"]]
        rewards = tuple(build_reward(part, f"reward.rewards[{place}]") for place, part in enumerate(given))
        return {**data, "rewards": rewards, "weights": _settle(data.get("weights") or {}, rewards)}

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """All rewards at once; the scores of a rollout side by side."""
        found = await asyncio.gather(*(reward.score(prompt, rollouts) for reward in self.rewards))
        for scores in found:
            if len(scores) != len(rollouts):
                said = f"{len(scores)} scores for the {len(rollouts)} rollouts of prompt {prompt.id}"
                raise DataError("reward", said, "Return one score per rollout, in order.")
        names = name_apart(self.rewards)
        return [self._join(names, [scores[place] for scores in found]) for place in range(len(rollouts))]

    def _join(self, names: Sequence[Mapping[str, str]], scores: Sequence[Score]) -> Score:
        """The scores that several rewards gave one rollout."""
        values: dict[str, float] = {}
        failures: dict[str, str] = {}
        facts: dict[str, Any] = {}
        for new, score in zip(names, scores, strict=True):
            values |= {new.get(name, name): value for name, value in score.values.items()}
            failures |= {new.get(name, name): reason for name, reason in score.failures.items()}
            facts = {**score.facts, **facts}
        real = {name: reason for name, reason in failures.items() if type_of(reason) != "none"}
        if real or any(self.weights.get(name, 1.0) for name in values):  # else a sum of nothing would pass as 0
            failures = real
        return Score(values, failures, facts, "\n".join(score.detail for score in scores if score.detail))

    def check(self, prompt: Prompt) -> None:
        """Raises DataError where one of them cannot read the prompt's row."""
        for reward in self.rewards:
            if hasattr(reward, "check"):
                reward.check(prompt)


def name_apart(rewards: Sequence[Any]) -> list[dict[str, str]]:
    """For each reward its components' own names and the names they have in the mix."""
    used: set[str] = set()
    named: list[dict[str, str]] = []
    for reward in rewards:
        names = {}
        for own in dict(getattr(reward, "weights", {})) or {"reward": 1.0}:
            numbered = (f"{own}_{number}" for number in count(2))
            names[own] = own if own not in used else next(name for name in numbered if name not in used)
            used.add(names[own])
        named.append(names)
    return named


def _settle(weights: Any, rewards: Sequence[Any]) -> dict[str, float]:
    """The weight of every component, by name, from what the rewards declare and what the user says of it."""
    named = name_apart(rewards)
    own = [dict(getattr(reward, "weights", {})) for reward in rewards]
    whole = {new: own[at].get(name, 1.0) for at, names in enumerate(named) for name, new in names.items()}
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in whole:
                raise ConfigError(f"reward.weights.{name}", "no reward has this component", did_you_mean(name, whole))
        return {**whole, **weights}
    if not isinstance(weights, (list, tuple)) or not all(isinstance(w, (int, float)) for w in weights):
        raise ConfigError("reward.weights", f"got {weights!r:.60}", "Give a number for each reward, in order.")
    if len(weights) != len(rewards):
        found = f"{len(weights)} weights for {len(rewards)} rewards"
        raise ConfigError("reward.weights", found, "Give one for each, in order.")
    return {new: factor * whole[new] for factor, names in zip(weights, named, strict=True) for new in names.values()}


def weigh(rewards: Any, weights: Any) -> Mix:
    """The mix of a list of rewards with these weights, in order or by name of a component."""
    if rewards is None:
        raise ConfigError("reward_weights", "there are no rewards to weigh", "Give reward=[f, g].")
    return Mix(rewards=rewards, weights=weights)
