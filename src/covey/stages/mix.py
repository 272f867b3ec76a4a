"""Stage `mix`: reward components become the score that credit starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from covey.batch import Batch
from covey.errors import ConfigError, did_you_mean
from covey.registry import Component, Per, build, component


class Mix(Component):
    """Makes the score. `per` says of what: `row` [N], `component` [N K] or `token` [N T]."""

    per: ClassVar[Per] = "row"


class Shaping(Component):
    """A term added to the score of each row."""

    def __call__(self, batch: Batch) -> Float[Tensor, " N"]:
        """The term per row."""
        raise NotImplementedError


@component("mix", "weighted_sum")
class WeightedSum(Mix):
    """score = sum_k weight_k * reward_k + shaping terms, per row.

    A component that is not named in `weights` has the weight that its reward declares (1 unless it says otherwise). A row with
    an unscorable component of non-zero weight has score NaN: it gets no credit and stays out of all statistics.
    """

    weights: Mapping[str, float] = Field(
        default_factory=dict, description="weight per reward component; others as declared"
    )
    shaping: tuple[Component, ...] = Field(default=(), description="terms added to the score")

    @field_validator("shaping", mode="before")
    @classmethod
    def _members(cls, value: object) -> tuple[Component, ...]:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(build("shaping", item, "recipe.mix.shaping") for item in items)

    def __call__(self, batch: Batch) -> Float[Tensor, " N"]:
        """The score [N]."""
        for name in self.weights:
            if name not in batch.reward_names:
                raise ConfigError(
                    f"recipe.mix.weights.{name}",
                    "the reward has no such component",
                    did_you_mean(name, batch.reward_names),
                )
        declared = zip(batch.reward_names, batch.reward_weights, strict=True)
        weight = torch.tensor([self.weights.get(name, own) for name, own in declared], dtype=torch.float64)
        used = batch.reward[:, weight != 0].double()
        score = (used * weight[weight != 0]).sum(1)
        for term in self.shaping:
            score = score + term(batch)  # type: ignore[operator]
        return score


@component("shaping", "soft_overlong")
class SoftOverlong(Shaping):
    """Punishes a response the closer it comes to its token budget (arXiv 2503.14476 eq. 13).

    With L the budget, c = cache_share * L and len the length: factor * clip(((L - c) - len) / c, -1, 0).
    A share of 0 is a hard step at the budget: -factor for len > L.
    """

    cache_share: float = Field(
        default=0.2, ge=0, lt=1, description="share of the token budget in which the punishment grows"
    )
    factor: float = Field(default=1.0, gt=0, description="largest punishment, in units of reward")

    def __call__(self, batch: Batch) -> Float[Tensor, " N"]:
        """The punishment per row, in [-factor, 0]."""
        limit, length = batch.limit.double(), batch.mask.sum(1).double()
        if self.cache_share == 0:
            return -self.factor * (length > limit).double()
        cache = self.cache_share * limit
        return self.factor * ((limit - cache - length) / cache).clamp(-1, 0)
