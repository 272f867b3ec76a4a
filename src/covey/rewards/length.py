"""Rewards for how long a response is: a band around a target, a cosine that depends on being right, a penalty for repetition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, field_validator

from covey.errors import ConfigError
from covey.registry import Component, component
from covey.types import Prompt, Rollout, Score, Stop


def _tokens(default: int | None, description: str, **bounds: Any) -> Any:
    return Field(default=default, description=description, json_schema_extra={"unit": "tokens"}, **bounds)


@component("reward", "length_band")
class LengthBand(Component):
    """1 for a response within `slack` tokens of `target`, from there falling linearly to 0 over `fall` tokens.

    length = max(0, 1 - max(0, |n - target| - slack) / fall), with n the tokens of the policy, its stop token included. It is
    the exact budget of arXiv 2503.04697 eq. 1 with a band and bounds; there is no default for the target.
    """

    target: int = Field(ge=1, description="wanted length of a response", json_schema_extra={"unit": "tokens"})
    slack: int = _tokens(0, "lengths that far from the target count in full", ge=0)
    fall: int | None = _tokens(None, "tokens beyond the band over which the reward falls to 0; null: target", ge=1)

    weights: ClassVar[Mapping[str, float]] = {"length": 1.0}
    isolated: ClassVar[bool] = False

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per response, in order."""
        return [self._score_one(rollout.length) for rollout in rollouts]

    def _score_one(self, n: int) -> Score:
        off = max(0, abs(n - self.target) - self.slack)
        fall = self.target if self.fall is None else self.fall
        return Score({"length": max(0.0, 1.0 - off / fall)}, detail=f"{n} tokens, {self.target} are wanted.")


def _build(value: Any) -> Any:
    from covey.rewards.kinds import build_reward

    return build_reward(value, "reward.of")


@component("reward", "cosine_length")
class CosineLength(Component):
    """Being right is worth more when short, being wrong costs less when long: a cosine in the length (arXiv 2502.03373 eq. 1).

    With n the tokens of the response and L the longest length, for a right one (and likewise for a wrong one):
    cosine = right_long + (right_short - right_long) * (1 + cos(pi * n / L)) / 2. A response of L tokens or more, or one that its
    token budget ended, is worth `exceeded`. Right is one to which the reward `of` gives `correct` = 1 (without such a
    component: its first one is 1); where that cannot say, neither can this. Defaults are those of the paper's code. `correct`
    is kept beside, with weight 0.
    """

    of: Annotated[Any, BeforeValidator(_build)] = Field(
        default="exact_match", description="reward that says what is right: a kind or FILE.py:function"
    )
    longest: int | None = _tokens(None, "the length L; null: the token budget of the response", ge=1)
    right_short: float = Field(default=2.0, description="value of a right response of length 0")
    right_long: float = Field(default=1.0, description="value of a right response of length L")
    wrong_short: float = Field(default=-10.0, description="value of a wrong response of length 0")
    wrong_long: float = Field(default=0.0, description="value of a wrong response of length L")
    exceeded: float = Field(default=-10.0, description="value of a response of L tokens or more, or cut off")

    weights: ClassVar[Mapping[str, float]] = {"cosine": 1.0, "correct": 0.0}
    together: ClassVar[bool] = False

    @field_validator("of")
    @classmethod
    def _one_reward(cls, value: Any) -> Any:
        if getattr(value, "kind", "") == "mix":
            raise ConfigError("reward.of", "several rewards cannot say what is right", "Give one.")
        return value

    @property
    def isolated(self) -> bool:
        """Whether it has to run in a process that can be killed: whether the reward `of` has to."""
        return bool(getattr(self.of, "isolated", True))

    @property
    def given(self) -> bool:
        """Whether the reward `of` exists in this process alone, so that no other can be told of it in words."""
        return bool(getattr(self.of, "given", False)) or not type(self.of).__module__.startswith("covey.")

    def prepare(self) -> None:
        """Load what scoring needs, once for all processes that are forked from this one."""
        if hasattr(self.of, "prepare"):
            self.of.prepare()

    def check(self, prompt: Prompt) -> None:
        """Raises what the reward `of` raises."""
        if hasattr(self.of, "check"):
            self.of.check(prompt)

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per response, in order."""
        scores = await self.of.score(prompt, rollouts)
        return [self._shape(*pair) for pair in zip(rollouts, scores, strict=True)]

    def settle(self, rollout: Rollout, score: Score) -> Score:
        """The score of a response whose check has failed: what the reward `of` makes of that, with the value of its length."""
        return self._shape(rollout, self.of.settle(rollout, score)) if hasattr(self.of, "settle") else score

    def _shape(self, rollout: Rollout, score: Score) -> Score:
        name = "correct" if "correct" in score.values else next(iter(getattr(self.of, "weights", {})), "")
        if name not in score.values or not math.isfinite(score.values[name]):
            reason = next(iter(score.failures.values()), "the reward gives no value")
            return Score(failures=dict.fromkeys(self.weights, reason), facts=score.facts, detail=score.detail)
        right = score.values[name] >= 1 - 1e-9
        values = {"cosine": self._value(rollout, right), "correct": float(right)}
        return Score(values, facts=score.facts, detail=score.detail)

    def _value(self, rollout: Rollout, right: bool) -> float:
        n, longest = rollout.length, self.longest or rollout.limit
        if rollout.stop is Stop.LENGTH or n >= longest:
            return self.exceeded
        short, long = (self.right_short, self.right_long) if right else (self.wrong_short, self.wrong_long)
        return long + (short - long) * (1.0 + math.cos(math.pi * n / longest)) / 2.0


@component("reward", "repetition")
class Repetition(Component):
    """Minus the share of a response's tokens in repeated runs of `ngram` tokens: 0 to -1 (arXiv 2502.03373, n-gram penalty).

    A token is repeated if it lies in a run of n tokens that stood in the response before, overlapping or not;
    repetition = -(repeated tokens) / (tokens). The paper gives each repeated token the penalty itself; this is their mean,
    and the weight scales it. A response shorter than n repeats nothing.
    """

    ngram: int = _tokens(40, "length of a run that may occur only once; 40 is the paper's", ge=1, le=4096)

    weights: ClassVar[Mapping[str, float]] = {"repetition": 1.0}
    isolated: ClassVar[bool] = False

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per response, in order."""
        tokens = (tuple(t for turn in r.turns if turn.by == "policy" for t in turn.tokens) for r in rollouts)
        return [Score({"repetition": -share_repeated(each, self.ngram)}) for each in tokens]


def share_repeated(tokens: Sequence[int], n: int) -> float:
    """Share of the tokens that lie in a run of n tokens which began earlier in the sequence too; 0 of an empty one."""
    seen: set[tuple[int, ...]] = set()
    repeated, covered = 0, 0  # tokens counted so far, and the end of the last repeated run
    for start in range(len(tokens) - n + 1):
        run = tuple(tokens[start : start + n])
        if run in seen:
            repeated += start + n - max(start, covered)
            covered = start + n
        seen.add(run)
    return repeated / len(tokens) if tokens else 0.0
