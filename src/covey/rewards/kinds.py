"""A reward from whatever names one: a kind, `FILE.py:function`, a Python function, a mapping with `kind`, or a list of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from covey.errors import ConfigError, did_you_mean
from covey.registry import build, kinds
from covey.rewards.functions import FunctionReward, wrap_function

if TYPE_CHECKING:
    from covey.protocols import Reward


def build_reward(value: Any, where: str = "reward") -> Reward:
    """The reward that a value names; of a list their mix. An object with a method `score` is one already."""
    if hasattr(value, "score"):
        reward: Reward = value
        return reward
    if hasattr(value, "state_dict"):
        raise ConfigError(
            where, f"{type(value).__name__} is a model", "Give RewardModel(path=...) its folder or hub id."
        )
    if isinstance(value, Callable):  # type: ignore[arg-type]
        return wrap_function(value)
    if isinstance(value, (list, tuple)):
        value = {"kind": "mix", "rewards": value}
    if isinstance(value, str) and ":" in value:
        return FunctionReward(function=value)
    if isinstance(value, str) and value not in kinds("reward"):
        known = did_you_mean(value, set(kinds("reward")) - {"function", "mix"})
        right = f"A model is reward=reward_model reward.path={value}." if "/" in value else known
        raise ConfigError(where, f"there is no reward '{value}'", f"{right} Or name FILE.py:function.")
    built: Reward = build("reward", value, where)  # type: ignore[assignment]
    return built
