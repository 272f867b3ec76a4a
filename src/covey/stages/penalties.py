"""Stage `penalties`: costs beside the gain, each with its own coefficient and its own weighting.

A penalty's weighting is formed on the action mask of the whole optimizer step, without filters or corrections: a row that is
taken out of the gain still feels the penalties.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from covey.batch import Credited, Live
from covey.metrics import Metrics, mean
from covey.registry import Component, build, component
from covey.stages.kl import Estimator, estimate
from covey.stages.masked import log_ratio, masked
from covey.stages.weighting import TokenMean


class Penalty(Component):
    """A cost per token with `coef` and `weighting`."""

    coef: float = Field(description="how much of the weighted cost enters the loss")
    weighting: Component = Field(default=TokenMean(), description="how tokens are averaged")

    @field_validator("weighting", mode="before")
    @classmethod
    def _weighting(cls, value: object) -> Component:
        return build("weighting", value, f"recipe.penalties.{cls.kind}.weighting")

    def measure(self, cost: Float[Tensor, "N T"], batch: Credited) -> Metrics:
        """The mean cost per token under the metric's name."""
        return {f"penalty/{self.kind}": mean(float(masked(cost, batch.mask).sum()), float(batch.mask.sum()))}


@component("penalty", "kl")
class Kl(Penalty):
    """coef * KL to the reference or to the old policy, by an estimator of `covey.stages.kl`.

    `k3` is what arXiv 2402.03300 writes; as a loss its gradient is that of the forward KL. The log-ratio is clamped to +-20.
    """

    coef: float = Field(default=0.04, gt=0, description="the factor of the KL term (beta)")
    estimator: Estimator = Field(
        default="k3", description="which estimator; see covey.stages.kl for the gradient of each"
    )
    to: Literal["reference", "old"] = Field(
        default="reference", description="the policy that the divergence is measured to"
    )

    def columns(self) -> tuple[str, ...]:
        """`ref_logp` when the divergence is to the reference."""
        return ("ref_logp",) if self.to == "reference" else ()

    def __call__(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The cost [N T]."""
        anchor = batch.columns["ref_logp"] if self.to == "reference" else batch.old_logp
        x = log_ratio(live.logp, anchor.to(live.logp.dtype), batch.mask)
        moved = log_ratio(live.logp, batch.old_logp.to(live.logp.dtype), batch.mask)
        return masked(estimate(self.estimator, x, moved), batch.mask)


@component("penalty", "entropy")
class Entropy(Penalty):
    """-coef * entropy of the policy at each position: a bonus for staying undecided."""

    live: ClassVar[tuple[str, ...]] = ("entropy",)
    coef: float = Field(default=0.001, gt=0, description="the factor of the entropy bonus")

    def __call__(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The cost [N T], the negative entropy in nats."""
        return masked(-live.outputs["entropy"], batch.mask)
