"""What a response is worth: each reward scores all rollouts of one prompt, as numbers or as typed failures."""

from __future__ import annotations

from covey.rewards.functions import FunctionReward, load_function, wrap_function
from covey.rewards.kinds import build_reward
from covey.rewards.match import ExactMatch, NumberMatch

__all__ = ["ExactMatch", "FunctionReward", "NumberMatch", "build_reward", "load_function", "wrap_function"]
