"""What a response is worth: each reward scores all rollouts of one prompt, as numbers or as typed failures."""

from __future__ import annotations

from covey.rewards.functions import FunctionReward, load_function, wrap_function
from covey.rewards.kinds import build_reward
from covey.rewards.length import CosineLength, LengthBand, Repetition
from covey.rewards.match import ExactMatch, NumberMatch
from covey.rewards.maths import MathMatch
from covey.rewards.mix import Mix
from covey.rewards.model import RewardModel
from covey.rewards.regex import RegexMatch
from covey.rewards.schema import JsonSchema
from covey.rewards.shape import Tags

__all__ = [
    "CosineLength",
    "ExactMatch",
    "FunctionReward",
    "JsonSchema",
    "LengthBand",
    "MathMatch",
    "Mix",
    "NumberMatch",
    "RegexMatch",
    "Repetition",
    "RewardModel",
    "Tags",
    "build_reward",
    "load_function",
    "wrap_function",
]
