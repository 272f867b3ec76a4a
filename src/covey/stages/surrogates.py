"""Stage `surrogate`: the gain of each token, whose gradient the policy follows."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from covey.batch import Credited, Live
from covey.metrics import Metrics, mean
from covey.registry import Component, component
from covey.stages.masked import masked


class Surrogate(Component):
    """A gain per token. `reads_ratio` says whether the recipe needs a ratio for it."""

    reads_ratio: ClassVar[bool] = True

    def measure(self, log_ratio: Float[Tensor, "N T"], batch: Credited) -> Metrics:
        """What to report of how it acted."""
        return {}


@component("surrogate", "clip")
class Clip(Surrogate):
    """gain = min(rho A, clip(rho, 1 - low, 1 + high) A) (arXiv 1707.06347; low != high: arXiv 2503.14476).

    `dual` bounds the gain of a negative advantage from below by dual * A (arXiv 1912.09729); absent, it is unbounded.
    """

    low: float = Field(default=0.2, ge=0, le=1, description="how far the ratio may fall below 1")
    high: float = Field(default=0.2, ge=0, description="how far the ratio may rise above 1")
    dual: float | None = Field(
        default=None, gt=1, description="largest ratio that a negative advantage is charged for; null: any"
    )

    def __call__(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The gain [N T]."""
        ratio, advantage = log_ratio.exp(), batch.advantage.to(log_ratio.dtype)
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.low, 1 + self.high) * advantage)
        if self.dual is not None:
            gain = torch.where(advantage < 0, torch.maximum(gain, self.dual * advantage), gain)
        return masked(gain, batch.mask)

    def measure(self, log_ratio: Float[Tensor, "N T"], batch: Credited) -> Metrics:
        """Shares of trained tokens whose gradient the clip removed, by side."""
        ratio, counted = log_ratio.exp(), batch.weight != 0
        low = counted & (batch.advantage < 0) & (ratio < 1 - self.low)
        high = counted & (batch.advantage > 0) & (ratio > 1 + self.high)
        tokens = float(counted.sum())
        return {"clip/low": mean(float(low.sum()), tokens), "clip/high": mean(float(high.sum()), tokens)}


@component("surrogate", "policy_gradient")
class PolicyGradient(Surrogate):
    """gain = A log pi(y_t): the score-function gradient, right for one optimizer step per batch (Williams 1992)."""

    reads_ratio: ClassVar[bool] = False

    def __call__(self, log_ratio: None, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The gain [N T]."""
        return masked(batch.advantage.to(live.logp.dtype) * masked(live.logp, batch.mask), batch.mask)
