"""Surrogates whose weight is detached: the policy gradient of each token, scaled by what its ratio says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from covey.batch import Credited, Live
from covey.metrics import Metrics
from covey.registry import component
from covey.stages.masked import masked
from covey.stages.surrogates import Surrogate, advantage_of, average, score_of, share


class Detached(Surrogate):
    """gain = sg(weight) A log pi(y_t): the weight scales the gradient of the score and is never differentiated."""

    grain: ClassVar[Literal["token", "sequence", "ratio"]] = "token"

    def weight(
        self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited, advantage: Float[Tensor, "N T"]
    ) -> Float[Tensor, "N T"]:
        """The weight of each token, from detached inputs."""
        raise NotImplementedError

    def __call__(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The gain [N T]; a token that the learner rules out has 0."""
        score = score_of(live, batch)
        advantage = advantage_of(batch, score.dtype)
        still = Live.of({name: value.detach() for name, value in live.tensors().items()})
        weight = masked(self.weight(log_ratio.detach(), still, batch, advantage), batch.mask)
        return weight * advantage * score


@component("surrogate", "detached_weight")
class DetachedWeight(Detached):
    """gain = sg(clip(rho, low, high)) A log pi(y_t): a truncated importance weight; no token is dropped (arXiv 2506.13585).

    `low` and `high` are absolute bounds of the weight. `drop_low` and `drop_high` bring back the tokens that a clipped ratio
    drops (its eq. 6-7): weight 0 where A < 0 and rho < 1 - drop_low, or A > 0 and rho > 1 + drop_high; null drops none.
    """

    low: float = Field(default=0.0, ge=0, le=1, description="smallest weight")
    high: float = Field(
        default=5.0, gt=0, description="largest weight; below 1 (refused) it shrinks what the policy itself drew"
    )
    drop_low: float | None = Field(
        default=None, ge=0, le=1, description="fall of the ratio that drops A < 0; null: none"
    )
    drop_high: float | None = Field(default=None, ge=0, description="rise of the ratio that drops A > 0; null: none")

    def exemptions(self) -> Mapping[str, str]:
        """A bound below 1 cuts even the weight 1."""
        return {} if self.high >= 1 else {"first_step": "the bound cuts weights at ratio 1"}

    def weight(
        self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited, advantage: Float[Tensor, "N T"]
    ) -> Float[Tensor, "N T"]:
        """The weight of each token."""
        ratio = log_ratio.exp()
        return masked(
            ratio.clamp(self.low, self.high), ~(self._below(ratio, advantage) | self._above(ratio, advantage))
        )

    def _below(self, ratio: Float[Tensor, "N T"], advantage: Float[Tensor, "N T"]) -> Bool[Tensor, "N T"]:
        if self.drop_low is None:
            return torch.zeros_like(ratio, dtype=torch.bool)
        return (advantage < 0) & (ratio < 1 - self.drop_low)

    def _above(self, ratio: Float[Tensor, "N T"], advantage: Float[Tensor, "N T"]) -> Bool[Tensor, "N T"]:
        if self.drop_high is None:
            return torch.zeros_like(ratio, dtype=torch.bool)
        return (advantage > 0) & (ratio > 1 + self.drop_high)

    def measure(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Metrics:
        """Tokens whose weight was cut (the upper bound also for A < 0 alone), mean weight, and dropped tokens by side."""
        ratio, advantage = log_ratio.exp(), advantage_of(batch, log_ratio.dtype)
        out = {
            "clip/weight_low": share(ratio < self.low, batch),
            "clip/weight_high": share(ratio > self.high, batch),
            "clip/weight_high_negative": share((ratio > self.high) & (advantage < 0), batch),
            "weight/mean": average(self.weight(log_ratio, live, batch, advantage), batch),
        }
        if self.drop_low is not None:
            out["clip/low"] = share(self._below(ratio, advantage), batch)
        if self.drop_high is not None:
            out["clip/high"] = share(self._above(ratio, advantage), batch)
        return out

    def latex(self) -> str:
        """The bounded weight, 0 where a token is dropped."""
        weight = rf"\operatorname{{clip}}(\rho_{{n,t}},\ {self.low:g},\ {self.high:g})"
        dropped = []
        if self.drop_low is not None:
            dropped.append(rf"A_{{n,t}}<0,\ \rho_{{n,t}}<{1 - self.drop_low:g}")
        if self.drop_high is not None:
            dropped.append(rf"A_{{n,t}}>0,\ \rho_{{n,t}}>{1 + self.drop_high:g}")
        gain = rf"\operatorname{{sg}}\left({weight}\right)A_{{n,t}}\,\ell^{{\theta}}_{{n,t}}"
        if not dropped:
            return gain
        zeros = r"\\ ".join(f"0 & {case}" for case in dropped)
        return rf"\begin{{cases}}{zeros}\\ {gain} & \mathrm{{else}}\end{{cases}}"


@component("surrogate", "gamma_weight")
class GammaWeight(Detached):
    """gain = sg(phi(rho)) A log pi(y_t), phi(w) = w^power exp(decay (1 - w)): soft on both sides, 1 at w = 1 (arXiv 2602.10693).

    Meant for the ratio of whole responses (`sequence_sum`). Power and decay depend on the sign of the advantage.
    """

    power: float = Field(
        default=2.0, ge=0, description="exponent of the weight where A >= 0: how fast small ratios fade"
    )
    decay: float = Field(default=3.0, gt=0, description="rate of decay where A >= 0: how fast large ratios fade")
    negative_power: float = Field(default=3.0, ge=0, description="exponent of the weight where A < 0")
    negative_decay: float = Field(default=2.0, gt=0, description="rate of decay where A < 0")

    def weight(
        self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited, advantage: Float[Tensor, "N T"]
    ) -> Float[Tensor, "N T"]:
        """The weight of each token."""
        positive = self.power * log_ratio - self.decay * torch.expm1(log_ratio)
        negative = self.negative_power * log_ratio - self.negative_decay * torch.expm1(log_ratio)
        return torch.where(advantage < 0, negative, positive).exp()

    def measure(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Metrics:
        """The mean weight."""
        weight = self.weight(log_ratio, live, batch, advantage_of(batch, log_ratio.dtype))
        return {"weight/mean": average(weight, batch)}

    def latex(self) -> str:
        """The weight by sign of the advantage."""
        positive = rf"\rho_{{n,t}}^{{{self.power:g}}}e^{{{self.decay:g}(1-\rho_{{n,t}})}} & A_{{n,t}}\ge 0"
        negative = (
            rf"\rho_{{n,t}}^{{{self.negative_power:g}}}e^{{{self.negative_decay:g}(1-\rho_{{n,t}})}} & A_{{n,t}}<0"
        )
        weight = rf"\begin{{cases}}{positive}\\ {negative}\end{{cases}}"
        return rf"\operatorname{{sg}}\left({weight}\right)A_{{n,t}}\,\ell^{{\theta}}_{{n,t}}"


@component("surrogate", "divergence_mask")
class DivergenceMask(Detached):
    """gain = sg(min(rho, cap) M) A log pi(y_t): M = 0 where a token moved too far in the direction of A (arXiv 2602.04879).

    How far is not the ratio but the divergence of the two-outcome distributions "this token or any other", between the policy
    (p) and the anchor (q): `tv` |p - q|, `kl` q log(q / p) + (1 - q) log((1 - q) / (1 - p)). M = 0 where A > 0, p > q and it
    exceeds `high`, or A < 0, p < q and it exceeds `low`. The anchor is best that of the ratio; the paper's is the sampler.
    """

    divergence: Literal["tv", "kl"] = Field(default="tv", description="total variation, or Kullback-Leibler in nats")
    low: float = Field(default=0.15, ge=0, description="largest divergence downwards where A < 0 (kl: about 0.05)")
    high: float = Field(default=0.15, ge=0, description="largest divergence upwards where A > 0 (kl: about 0.05)")
    anchor: Literal["old", "sampled"] = Field(
        default="old", description="the policy that the divergence is measured to"
    )
    cap: float | None = Field(default=None, ge=1, description="largest weight of a token; null: any")

    def exemptions(self) -> Mapping[str, str]:
        """A sampler is not the learner."""
        if self.anchor == "old":
            return {}
        return {"first_step": "tokens far from the sampler are masked where the learner has not moved"}

    def weight(
        self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited, advantage: Float[Tensor, "N T"]
    ) -> Float[Tensor, "N T"]:
        """The weight of each token, 0 where it is masked."""
        moved, divergence = self._distance(live, batch)
        ratio = log_ratio.exp()
        weight = ratio if self.cap is None else ratio.clamp(max=self.cap)
        return masked(weight, ~(self._below(moved, divergence, advantage) | self._above(moved, divergence, advantage)))

    def _distance(self, live: Live, batch: Credited) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
        """p - q of each token, and the divergence, in float64."""
        anchor = masked((batch.old_logp if self.anchor == "old" else batch.sampled_logp).double(), batch.mask)
        logp = masked(live.logp.double(), batch.mask)
        p, q = logp.exp(), anchor.exp()
        if self.divergence == "tv":
            return p - q, (p - q).abs()
        same, other = q * (anchor - logp), (1 - q) * (torch.log1p(-q) - torch.log1p(-p))
        return p - q, masked(same, q > 0) + masked(other, q < 1)

    def _below(self, moved: Tensor, divergence: Tensor, advantage: Tensor) -> Bool[Tensor, "N T"]:
        return (advantage < 0) & (moved < 0) & (divergence > self.low)

    def _above(self, moved: Tensor, divergence: Tensor, advantage: Tensor) -> Bool[Tensor, "N T"]:
        return (advantage > 0) & (moved > 0) & (divergence > self.high)

    def measure(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Metrics:
        """Masked tokens by side, the mean divergence where it is finite, and tokens whose weight was cut."""
        moved, divergence = self._distance(live, batch)
        advantage = advantage_of(batch, log_ratio.dtype)
        out = {
            "clip/low": share(self._below(moved, divergence, advantage), batch),
            "clip/high": share(self._above(moved, divergence, advantage), batch),
            "ratio/divergence": average(masked(divergence, divergence.isfinite()), batch),
        }
        if self.cap is not None:
            out["clip/weight_high"] = share(log_ratio.exp() > self.cap, batch)
        return out

    def latex(self) -> str:
        """The weight with its two conditions."""
        anchor = "old" if self.anchor == "old" else "samp"
        p, q = r"\pi^{\theta}_{n,t}", rf"\pi^{{{anchor}}}_{{n,t}}"
        tv = rf"|{p}-{q}|"
        kl = rf"{q}\log\frac{{{q}}}{{{p}}}+(1-{q})\log\frac{{1-{q}}}{{1-{p}}}"
        far = rf"D_{{n,t}}={tv if self.divergence == 'tv' else kl}"
        up = rf"0 & A_{{n,t}}>0,\ {p}>{q},\ D_{{n,t}}>{self.high:g}"
        down = rf"0 & A_{{n,t}}<0,\ {p}<{q},\ D_{{n,t}}>{self.low:g}"
        weight = r"\rho_{n,t}" if self.cap is None else rf"\min(\rho_{{n,t}},\ {self.cap:g})"
        gain = rf"\operatorname{{sg}}({weight})\,A_{{n,t}}\,\ell^{{\theta}}_{{n,t}} & \mathrm{{else}}"
        return rf"\begin{{cases}}{up}\\ {down}\\ {gain}\end{{cases}},\quad {far}"
