"""Stage `shapers`: advantages are reweighted, in the order of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from covey.batch import Batch
from covey.registry import Component, Per, component
from covey.stages.masked import compact, divide, log_ratio, masked, moments_by, spread_by
from covey.stages.tex import number

ROUNDING = 1e-12
"""Values whose spread is this share of their size are equal: what is left of them is rounding."""


@component("shaper", "sign_weight")
class SignWeight(Component):
    """Multiplies positive advantages by one factor and negative ones by another (arXiv 2506.01347)."""

    positive: float = Field(default=1.0, ge=0, description="factor of advantages above 0")
    negative: float = Field(default=1.0, ge=0, description="factor of advantages below 0")

    def __call__(self, advantage: Float[Tensor, "N T"], batch: Batch) -> Float[Tensor, "N T"]:
        """The weighted advantage."""
        return torch.where(advantage > 0, self.positive * advantage, self.negative * advantage)

    def latex(self) -> str:
        """Two factors by sign."""
        above, below = number(self.positive), number(self.negative)
        return rf"A_{{n,t}}\,({above}\cdot\mathbf 1[A_{{n,t}}>0]+{below}\cdot\mathbf 1[A_{{n,t}}<0])"


@component("shaper", "kl_to_go")
class KlToGo(Component):
    """A_t <- A_t - coef * sum over the policy's tokens from t on of (old - ref): a divergence that no baseline sees.

    Unlike a divergence in the score it is neither compared with the group nor divided by its std. The log-ratio per token is
    clamped to +-20. Rows outside the statistics keep their advantage.
    """

    per: ClassVar[Per] = "token"
    needs: ClassVar[tuple[str, ...]] = ("ref_logp",)
    coef: float = Field(default=0.01, gt=0, description="nats of divergence to units of reward (beta)")

    def to_go(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The divergence that is still to come at each token, in nats; 0 on rows outside the statistics."""
        x = log_ratio(batch.old_logp.double(), batch.columns["ref_logp"].double(), batch.mask)
        return masked(x.flip(1).cumsum(1).flip(1), batch.mask & batch.keep.statistics[:, None])

    def __call__(self, advantage: Float[Tensor, "N T"], batch: Batch) -> Float[Tensor, "N T"]:
        """The advantage less the divergence."""
        return advantage.double() - self.coef * self.to_go(batch)

    def latex(self) -> str:
        """The difference."""
        return rf"A_{{n,t}}-{number(self.coef)}\sum_{{t'\ge t}}(\ell^{{old}}_{{n,t'}}-\ell^{{ref}}_{{n,t'}})"

    def exemptions(self) -> Mapping[str, str]:
        """The divergence is part of the advantage."""
        return {"equal_rewards": "the divergence from the reference is part of the advantage"}


@component("shaper", "whiten")
class Whiten(Component):
    """A <- (A - mean) / std over the rollout batch (arXiv 2501.03262, 1707.06347 as implemented).

    unit `rollout`: every response counts once, by the mean over its policy tokens; `token`: every policy token counts once, so
    long responses count more and the mean over responses is not 0. Rows outside the statistics keep 0, and with `active_groups`
    so do groups whose advantages are all equal. Fewer than two units, or units that are equal up to rounding, give exactly 0.
    """

    unit: Literal["rollout", "token"] = Field(default="rollout", description="what counts once in mean and std")
    center: bool = Field(default=True, description="whether the mean is taken off; without it only the scale changes")
    ddof: Literal[0, 1] = Field(default=1, description="1: unbiased variance; 0: population variance")
    eps: float = Field(default=1e-8, ge=0, description="keeps the divisor off 0")
    inside: bool = Field(default=True, description="true: sqrt(variance + eps); false: std + eps")
    over: Literal["all", "active_groups"] = Field(
        default="all", description="the rows that are whitened: all, or those of groups whose advantages differ"
    )

    def __call__(self, advantage: Float[Tensor, "N T"], batch: Batch) -> Float[Tensor, "N T"]:
        """The whitened advantage."""
        advantage = advantage.double()
        counted = batch.mask & batch.keep.statistics[:, None]
        if self.over == "active_groups":
            counted = counted & _active(advantage, counted, batch)
        values = advantage[counted]
        if self.unit == "rollout":
            index, count = compact(batch.rollout[:, None].expand(batch.mask.shape)[counted])
            values = moments_by(values, torch.ones_like(values, dtype=torch.bool), index, count, 0)[0]
        member = torch.ones_like(values, dtype=torch.bool)
        everyone = torch.zeros_like(values, dtype=torch.long)
        mean, std = moments_by(values, member, everyone, 1, self.ddof)
        divisor = (std.square() + self.eps).sqrt() if self.inside else std + self.eps
        equal = spread_by(values, member, everyone, 1) <= ROUNDING * _largest(values)
        divisor = torch.where(equal, torch.zeros_like(divisor), divisor)
        centered = advantage - mean if self.center else advantage
        return masked(divide(centered, divisor.expand_as(centered)), counted)

    def latex(self) -> str:
        """The quotient; what is counted stands below mean and variance."""
        units = "n" if self.unit == "rollout" else "n,t"
        rows = "" if self.over == "all" else r"\,:\,\sigma_{g(n)}>0"
        unit = r"\bar A_n" if self.unit == "rollout" else r"A_{n,t}"
        top = rf"A_{{n,t}}-\operatorname{{mean}}_{{{units}{rows}}}{unit}" if self.center else r"A_{n,t}"
        kind = rf"\operatorname{{var}}_{{{units}{rows}}}{unit}"
        eps = f"+{number(self.eps)}" if self.eps else ""
        bottom = rf"\sqrt{{{kind}{eps}}}" if self.inside else rf"\sqrt{{{kind}}}{eps}"
        return rf"\frac{{{top}}}{{{bottom}}}\quad(\mathrm{{ddof}}={self.ddof})"


def _largest(values: Tensor) -> Tensor:
    return values.abs().max() if values.numel() else torch.zeros((), dtype=values.dtype, device=values.device)


def _active(advantage: Float[Tensor, "N T"], counted: Bool[Tensor, "N T"], batch: Batch) -> Bool[Tensor, "N 1"]:
    """Rows of groups whose advantages differ."""
    index, count = compact(batch.group)
    spread = spread_by(advantage[counted], counted[counted], index[:, None].expand(counted.shape)[counted], count)
    return (spread > ROUNDING * _largest(advantage[counted]))[index][:, None]
