"""Stage `surrogate`: the gain of each token, whose gradient the policy follows."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from covey.batch import Credited, Live
from covey.metrics import Metric, Metrics, mean
from covey.registry import Component, component
from covey.stages.masked import divide, masked


class Surrogate(Component):
    """A gain per token. `reads_ratio` says whether the recipe needs a ratio for it.

    `grain` says what one gain is of: a `token`, a `sequence` (the same on all tokens of a row), or what the `ratio` is of.
    """

    reads_ratio: ClassVar[bool] = True
    grain: ClassVar[Literal["token", "sequence", "ratio"]] = "ratio"

    def measure(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Metrics:
        """What to report of how it acted, from detached inputs (log_ratio: 0 where no ratio is read).

        Shares are of the tokens that carry weight.
        """
        return {}


def advantage_of(batch: Credited, dtype: torch.dtype) -> Float[Tensor, "N T"]:
    """The advantage where the policy chose the token, 0 elsewhere."""
    return masked(batch.advantage.to(dtype), batch.mask)


def score_of(live: Live, batch: Credited) -> Float[Tensor, "N T"]:
    """logp where the policy chose the token and can choose it: a token that the learner rules out is left out."""
    return masked(live.logp, batch.mask & live.logp.isfinite())


def share(where: Bool[Tensor, "N T"], batch: Credited) -> Metric:
    """How many of the tokens that carry weight."""
    counted = batch.weight != 0
    return mean(float((where & counted).sum()), float(counted.sum()))


def average(values: Float[Tensor, "N T"], batch: Credited) -> Metric:
    """The mean over the tokens that carry weight."""
    counted = batch.weight != 0
    return mean(float(masked(values, counted).double().sum()), float(counted.sum()))


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

    def measure(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Metrics:
        """Tokens whose gradient the clip removed, by side, and all tokens outside of the band, whatever their advantage."""
        ratio, advantage = log_ratio.exp(), batch.advantage
        low, high = ratio < 1 - self.low, ratio > 1 + self.high
        out = {
            "clip/low": share(low & (advantage < 0), batch),
            "clip/high": share(high & (advantage > 0), batch),
            "ratio/out_of_band": share(low | high, batch),
        }
        if self.dual is not None:
            out["clip/dual"] = share((ratio > self.dual) & (advantage < 0), batch)
        return out

    def latex(self) -> str:
        """The smaller of the plain and the clipped gain, bounded below where `dual` says so."""
        ratio = r"\rho_{n,t}"
        clipped = rf"\operatorname{{clip}}({ratio},\ {1 - self.low:g},\ {1 + self.high:g})\,A_{{n,t}}"
        plain = rf"\min\left({ratio}\,A_{{n,t}},\ {clipped}\right)"
        if self.dual is None:
            return plain
        bounded = rf"\max\left({plain},\ {self.dual:g}\,A_{{n,t}}\right)"
        return rf"\begin{{cases}}{bounded} & A_{{n,t}}<0\\ {plain} & A_{{n,t}}\ge 0\end{{cases}}"


@component("surrogate", "policy_gradient")
class PolicyGradient(Surrogate):
    """gain = A log pi(y_t): the score-function gradient, right for one optimizer step per batch (Williams 1992).

    Where sampler and learner differ, or for more steps, its importance-weighted form is `detached_weight` with a bound `high`
    (and ratio `token` with anchor `sampled` for the weight min(exp(l - l_sampled), high)).
    """

    reads_ratio: ClassVar[bool] = False
    grain: ClassVar[Literal["token", "sequence", "ratio"]] = "token"

    def __call__(self, log_ratio: None, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The gain [N T]; a token that the learner rules out has 0."""
        score = score_of(live, batch)
        return advantage_of(batch, score.dtype) * score

    def latex(self) -> str:
        """The score weighted by the advantage."""
        return r"A_{n,t}\,\ell^{\theta}_{n,t}"


@component("surrogate", "geometric_mean")
class GeometricMean(Surrogate):
    """gain = A_n exp(mean over the row of the cut log-ratio), the same on each token of the row (arXiv 2507.20673).

    Log-ratios are cut on one side, in log space, before they are averaged: from above by `high` where A > 0, from below by
    -low where A < 0. A cut token has no gradient of its own but still scales the gain of its row. A is the mean of the row's
    advantages, which are meant to be equal; a row without tokens has 0.
    """

    grain: ClassVar[Literal["token", "sequence", "ratio"]] = "sequence"

    low: float = Field(default=0.4, ge=0, description="how far a log-ratio may fall below 0 where A < 0")
    high: float = Field(default=0.4, ge=0, description="how far a log-ratio may rise above 0 where A > 0")

    def __call__(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The gain [N T]."""
        advantage = advantage_of(batch, log_ratio.dtype)
        length = batch.mask.sum(1, keepdim=True).to(log_ratio.dtype)
        falling = torch.where(advantage < 0, log_ratio.clamp(min=-self.low), torch.zeros_like(log_ratio))
        cut = masked(torch.where(advantage > 0, log_ratio.clamp(max=self.high), falling), batch.mask)
        ratio = divide(cut.sum(1, keepdim=True), length).exp()
        worth = divide(advantage.sum(1, keepdim=True), length)
        return masked((ratio * worth).expand_as(log_ratio), batch.mask)

    def measure(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Metrics:
        """Tokens that were cut, by side, and all tokens outside of the band, whatever their advantage."""
        low, high = log_ratio < -self.low, log_ratio > self.high
        return {
            "clip/low": share(low & (batch.advantage < 0), batch),
            "clip/high": share(high & (batch.advantage > 0), batch),
            "ratio/out_of_band": share(low | high, batch),
        }

    def latex(self) -> str:
        """The exponential of the mean of cut log-ratios."""
        above, below = rf"\min(x_{{n,t'}},\ {self.high:g})", rf"\max(x_{{n,t'}},\ {-self.low:g})"
        cut = rf"\begin{{cases}}{above} & A_n>0\\ {below} & A_n<0\end{{cases}}"
        return rf"A_n\,\exp\left(\frac{{1}}{{L_n}}\sum_{{t'}}{cut}\right)"


@component("surrogate", "soft_gate")
class SoftGate(Surrogate):
    """gain = (4 / tau) sigmoid(tau (rho - 1)) A: a smooth gate in place of the clip (arXiv 2511.20347).

    Its gradient by log rho is 4 s (1 - s) rho A with s the sigmoid: that of the ratio at rho = 1, fading on both sides, faster
    for a larger tau. tau is `positive` where A > 0 and `negative` elsewhere.
    """

    positive: float = Field(default=1.0, gt=0, description="tau where A > 0")
    negative: float = Field(default=1.05, gt=0, description="tau where A <= 0; larger: unlearning fades faster")

    def __call__(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The gain [N T]."""
        advantage = advantage_of(batch, log_ratio.dtype)
        tau = self._tau(advantage)
        return masked(4 / tau * torch.sigmoid(tau * torch.expm1(log_ratio)) * advantage, batch.mask)

    def _tau(self, advantage: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        return torch.where(
            advantage > 0, torch.full_like(advantage, self.positive), torch.full_like(advantage, self.negative)
        )

    def measure(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Metrics:
        """How much of the ratio's gradient the gate lets through: 1 at ratio 1, 0 far from it."""
        tau = self._tau(advantage_of(batch, log_ratio.dtype))
        gate = torch.sigmoid(tau * torch.expm1(log_ratio))
        return {"gate/mean": average(4 * gate * (1 - gate), batch)}

    def latex(self) -> str:
        """The gate with its temperature by sign of the advantage."""
        tau = rf"\tau=\begin{{cases}}{self.positive:g} & A_{{n,t}}>0\\ {self.negative:g} & A_{{n,t}}\le 0\end{{cases}}"
        return rf"\frac{{4}}{{\tau}}\operatorname{{sigmoid}}\left(\tau(\rho_{{n,t}}-1)\right)A_{{n,t}},\qquad {tau}"
