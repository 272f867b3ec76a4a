"""Stage `critic`: what is learnt about the value of a state, and how. Mathematics only: engines keep and move the weights."""

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
from covey.stages.tex import number
from covey.stages.weighting import TokenMean


class Critic(Component):
    """Learns V(prompt + y_<t) from the returns that the advantage made, on the same tokens as the policy.

    Its head starts at 0, so the first advantages are those without a baseline. The loss is 0.5 * token mean of
    max((V - ret)^2, (V^c - ret)^2), V^c = V_0 + clip(V - V_0, -clip, clip), V_0 the value at the start of the step: clipping
    stops the gradient only where the clipped error is the larger one (arXiv 1707.06347 as implemented since). Rows outside the
    statistics teach it nothing and count in the mean.

    How fast it learns is a factor of the policy's learning rate: the ratio of the two time scales belongs to the method, the
    rate itself, its schedule and warm-up to the budget; and a run without a critic has no key for one.
    """

    live: ClassVar[tuple[str, ...]] = ("value",)
    joint: ClassVar[bool] = False
    """Whether its loss is a term of the policy's."""
    clip: float | None = Field(
        default=0.2, gt=0, description="how far a value may move from where the step began; null: any"
    )
    lr_factor: float = Field(default=10.0, gt=0, le=1e6, description="its learning rate, in units of the policy's")
    warm_up_steps: int = Field(default=0, ge=0, description="first steps of the run in which only the critic learns")

    def __call__(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The cost [N T], half the (clipped) squared error."""
        value, counted = live.outputs["value"], _counted(batch)
        value = masked(value, counted)
        returns = masked(batch.columns["returns"].to(value.dtype), counted)
        error = (value - returns).square()
        if self.clip is not None:
            error = torch.maximum(error, (self._clipped(value, batch) - returns).square())
        return masked(0.5 * error, counted)

    def _clipped(self, value: Tensor, batch: Credited) -> Tensor:
        before = masked(batch.columns["value"].to(value.dtype), _counted(batch))
        return before + (value - before).clamp(-self.clip, self.clip)  # type: ignore[operator]

    def loss(self, live: Live, batch: Credited) -> tuple[Tensor, Metrics]:
        """The weighted cost of a slice, a plain sum, and what there is to report of it."""
        cost = self(live, batch)
        return (batch.penalty_weight[self.kind].to(cost.dtype) * cost).sum(), self.measure(live, batch, cost.detach())

    def weigh(self, step: Credited) -> Float[Tensor, "N T"]:
        """The weight of each token's cost, formed over a whole optimizer step: a token mean."""
        return TokenMean()(step)

    def measure(self, live: Live, batch: Credited, cost: Float[Tensor, "N T"]) -> Metrics:
        """Loss per token, and the share of tokens whose gradient the clip removed."""
        counted = _counted(batch)
        tokens = float(counted.sum())
        found = {"critic/loss": mean(float(cost.double().sum()), tokens)}
        if self.clip is None:
            return found
        value = masked(live.outputs["value"].detach(), counted)
        returns = masked(batch.columns["returns"].to(value.dtype), counted)
        clipped, free = self._clipped(value, batch), (value - returns).square()
        stopped = counted & (clipped != value) & ((clipped - returns).square() > free)
        return {**found, "critic/clipped": mean(float(stopped.sum()), tokens)}

    def latex(self) -> str:
        """The loss with these options."""
        free = r"(V^\theta_{n,t}-\mathrm{ret}_{n,t})^2"
        if self.clip is None:
            return rf"\frac{{1}}{{2T}}\sum_{{n,t}} {free}"
        moved = rf"V_{{n,t}}+\mathrm{{clip}}(V^\theta_{{n,t}}-V_{{n,t}},-{number(self.clip)},{number(self.clip)})"
        return rf"\frac{{1}}{{2T}}\sum_{{n,t}} \max\big({free},\ ({moved}-\mathrm{{ret}}_{{n,t}})^2\big)"


@component("critic", "separate")
class SeparateCritic(Critic):
    """A model of its own, a copy of the first policy with a scalar head, that learns before the policy on the same tokens."""


@component("critic", "shared")
class SharedCritic(Critic):
    """A scalar head on the policy's own trunk: policy loss + coef * value loss, one forward pass for both.

    In its warm-up only the head learns, so that the policy stays as it is.
    """

    joint: ClassVar[bool] = True
    coef: float = Field(default=0.1, gt=0, description="how much of the value loss enters the policy's loss")

    def loss(self, live: Live, batch: Credited) -> tuple[Tensor, Metrics]:
        """As every critic's, times `coef`; the report is before it."""
        loss, metrics = super().loss(live, batch)
        return self.coef * loss, metrics

    def latex(self) -> str:
        """The term that is added to the policy's loss."""
        return rf"{number(self.coef)}\cdot {super().latex()}"


def _counted(batch: Credited) -> Tensor:
    """Tokens whose return is known."""
    return batch.mask & batch.keep.statistics[:, None]
