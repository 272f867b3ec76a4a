"""Surrogates that hold the entropy of the policy by the few tokens that lower it most (arXiv 2505.22617).

The covariance of a token is kappa = (A - mean A) (logp - mean logp), means over the counted tokens of the optimizer step: to
first order a step lowers the entropy by the sum of it. Both surrogates pick tokens of large kappa over the whole step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from covey.batch import Credited, Live
from covey.errors import ConfigError
from covey.metrics import Metrics, mean
from covey.registry import Couples, component
from covey.stages.coupled import LOWEST_LOGP
from covey.stages.masked import divide, masked
from covey.stages.surrogates import Clip, Surrogate
from covey.stages.tex import factor, number


def covariance(live: Live, batch: Credited, counted: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """kappa of each counted token, detached, in float64; 0 elsewhere."""
    tokens = counted.sum().double()
    logp = masked(live.logp.detach().double().clamp(min=LOWEST_LOGP), counted)
    advantage = masked(batch.advantage.double(), counted)
    centred = [value - divide(value.sum(), tokens) for value in (advantage, logp)]
    return masked(centred[0] * centred[1], counted)


def quota(share: float, counted: Bool[Tensor, "N T"]) -> int:
    """How many tokens a share is: rounded down, but never none."""
    return max(1, int(share * int(counted.sum())))


def largest(values: Float[Tensor, "N T"], candidates: Bool[Tensor, "N T"], count: int) -> Bool[Tensor, "N T"]:
    """The candidates with the `count` largest values; those that tie with the last of them are in as well."""
    found = values[candidates]
    if found.numel() <= count:
        return candidates
    return candidates & (values >= found.topk(count).values.min())


@component("surrogate", "covariance_clip")
class CovarianceClip(Clip):
    """The clipped gain without a few tokens of large covariance, drawn at random (arXiv 2505.22617).

    Candidates are the counted tokens that the clip leaves alone with floor < kappa < ceiling; `share` of all counted tokens, at
    least one, is drawn from them by the column `noise` and loses its gain and gradient; denominators stay.
    """

    needs: ClassVar[tuple[str, ...]] = ("noise",)
    couples: ClassVar[Couples] = "step"
    low: float = Field(default=1.0, ge=0, le=1, description="how far the ratio may fall below 1; 1: any")
    high: float = Field(default=1.0, ge=0, description="how far the ratio may rise above 1")
    share: float = Field(default=2e-4, gt=0, le=1, description="share of the step's tokens that is dropped")
    floor: float = Field(default=1.0, description="candidates have a larger covariance")
    ceiling: float = Field(default=5.0, description="candidates have a smaller covariance")

    @model_validator(mode="after")
    def _ordered(self) -> CovarianceClip:
        if self.floor >= self.ceiling:
            found = f"{self.floor} is not below ceiling={self.ceiling}: no token is a candidate"
            raise ConfigError("recipe.surrogate.floor", found, "Lower it.")
        return self

    def latex(self) -> str:
        """The gain."""
        drawn = rf"\{{{number(self.floor)}<\kappa<{number(self.ceiling)}\}}"
        zero = rf"0\ \text{{for }}{number(self.share)}\,T\text{{ tokens drawn from }}{drawn},\text{{ else }}"
        kappa = r"\quad\kappa_{n,t}=(A_{n,t}-\bar A)(\ell^{\theta}_{n,t}-\bar\ell^{\theta})"
        return f"{zero}{super().latex()},{kappa}"

    def exemptions(self) -> Mapping[str, str]:
        """Dropped tokens have no gradient."""
        return {**super().exemptions(), "first_step": "the tokens that are drawn lose their gradient"}

    def __call__(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The gain [N T]."""
        gain = super().__call__(log_ratio, live, batch)
        return masked(gain, ~self._dropped(log_ratio.detach(), live, batch))

    def _dropped(self, log_ratio: Tensor, live: Live, batch: Credited) -> Bool[Tensor, "N T"]:
        counted = batch.mask & batch.keep.loss[:, None]
        kappa, ratio, advantage = covariance(live, batch, counted), log_ratio.exp(), batch.advantage
        clipped = ratio * advantage > ratio.clamp(1 - self.low, 1 + self.high) * advantage
        candidates = counted & ~clipped & (kappa > self.floor) & (kappa < self.ceiling)
        return largest(-batch.columns["noise"].double(), candidates, quota(self.share, counted))

    def measure(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Metrics:
        """What the clip removed, the mean covariance, and the share of tokens that was dropped."""
        counted = batch.mask & batch.keep.loss[:, None]
        dropped = self._dropped(log_ratio, live, batch)
        return {
            **super().measure(log_ratio, live, batch),
            **_measured(live, batch, counted),
            "covariance/dropped": mean(float(dropped.sum()), float(counted.sum())),
        }


@component("surrogate", "covariance_kl")
class CovarianceKl(Surrogate):
    """gain = rho A, unclipped, less coef * |logp - old logp| for the tokens of largest covariance (arXiv 2505.22617).

    `share` of the counted tokens, at least one, is held by the penalty; only tokens of positive covariance are: the others do
    not lower the entropy. Tokens that tie with the last one are held as well. At ratio 1 the penalty has no gradient, so it
    acts from a batch's second optimizer step on.
    """

    couples: ClassVar[Couples] = "step"
    share: float = Field(default=2e-3, gt=0, le=1, description="share of the step's tokens that is held")
    coef: float = Field(default=1.0, gt=0, description="the factor of the penalty on held tokens")

    def latex(self) -> str:
        """The gain."""
        held = rf"\mathbf{{1}}[\kappa_{{n,t}}\text{{ among the top }}{number(self.share)}\,T]"
        kappa = r"\kappa_{n,t}=(A_{n,t}-\bar A)(\ell^{\theta}_{n,t}-\bar\ell^{\theta})"
        return rf"\rho_{{n,t}}A_{{n,t}}-{factor(self.coef)}{held}\,|x_{{n,t}}|,\quad {kappa}"

    def __call__(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The gain [N T]."""
        advantage = masked(batch.advantage.to(log_ratio.dtype), batch.mask)
        cost = self.coef * masked(log_ratio.abs(), self._held(live, batch))
        return masked(log_ratio.exp() * advantage, batch.mask) - cost

    def _held(self, live: Live, batch: Credited) -> Bool[Tensor, "N T"]:
        counted = batch.mask & batch.keep.loss[:, None]
        kappa = covariance(live, batch, counted)
        return largest(kappa, counted & (kappa > 0), quota(self.share, counted))

    def measure(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Metrics:
        """The mean covariance, the share of held tokens, and how far these have moved."""
        counted, held = batch.mask & batch.keep.loss[:, None], self._held(live, batch)
        moved = float(masked(log_ratio.abs(), held).double().sum())
        return {
            **_measured(live, batch, counted),
            "covariance/held": mean(float(held.sum()), float(counted.sum())),
            "covariance/moved": mean(moved, float(held.sum())),
        }


def _measured(live: Live, batch: Credited, counted: Tensor) -> Metrics:
    kappa = covariance(live, batch, counted)
    top = largest(kappa, counted, quota(2e-4, counted))
    return {
        "covariance/mean": mean(float(kappa.sum()), float(counted.sum())),
        "covariance/top": mean(float(masked(kappa, top).sum()), float(top.sum())),
    }
