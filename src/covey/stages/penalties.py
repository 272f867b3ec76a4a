"""Stage `penalties`: costs beside the gain, each with its own coefficient and its own weighting.

A penalty's weighting is formed on the action mask of the whole optimizer step, without filters or corrections: a row that is
taken out of the gain still feels the penalties.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from covey.batch import Credited, Live
from covey.metrics import Metrics, mean
from covey.registry import Component, Couples, State, build, component
from covey.stages.kl import Estimator, estimate, k1, k3
from covey.stages.masked import LOG_RATIO_LIMIT, log_ratio, masked
from covey.stages.tex import number
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


_KL = {
    "k1": "d",
    "k2": r"\tfrac12 d^2",
    "k3": "e^{-d}-1+d",
    "k3_straight_through": r"\tfrac12 d^2+\operatorname{sg}\big(e^{-d}-1+d-\tfrac12 d^2\big)",
    "k3_importance": r"\rho_{n,t}\,\big(e^{-d}-1+d\big)",
}
"""The estimators as LaTeX, d the log-ratio."""


@component("penalty", "kl")
class Kl(Penalty):
    """coef * KL to the reference or to the old policy, by an estimator of `covey.stages.kl`.

    The default shows the value of k3 and has the gradient of the reverse KL. `k3` is what arXiv 2402.03300 writes; as a loss its
    gradient is that of the forward KL. The log-ratio is clamped to +-20.
    """

    coef: float = Field(default=0.04, gt=0, description="the factor of the KL term (beta)")
    estimator: Estimator = Field(
        default="k3_straight_through", description="which estimator; see covey.stages.kl for the gradient of each"
    )
    to: Literal["reference", "old"] = Field(
        default="reference", description="the policy that the divergence is measured to"
    )

    def columns(self) -> tuple[str, ...]:
        """`ref_logp` when the divergence is to the reference."""
        return ("ref_logp",) if self.to == "reference" else ()

    def latex(self) -> str:
        """The cost."""
        k = _KL[self.estimator]
        return k.replace(
            "d", rf"(\ell^{{\theta}}_{{n,t}}-\ell^{{{'ref' if self.to == 'reference' else 'old'}}}_{{n,t}})"
        )

    def __call__(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The cost [N T]."""
        moved = log_ratio(live.logp, batch.old_logp.to(live.logp.dtype), batch.mask)
        return masked(estimate(self.estimator, self._apart(live, batch), moved), batch.mask)

    def observe(self, live: Live, batch: Credited) -> Metrics:
        """How often the log-ratio was cut, which takes the gradient of the token."""
        cut = (self._apart(live, batch).abs() >= LOG_RATIO_LIMIT) & batch.mask
        return {"penalty/kl_clamped": mean(float(cut.sum()), float(batch.mask.sum()))}

    def _apart(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        anchor = batch.columns["ref_logp"] if self.to == "reference" else batch.old_logp
        return log_ratio(live.logp, anchor.to(live.logp.dtype), batch.mask)


@component("penalty", "entropy")
class Entropy(Penalty):
    """-coef * entropy of the policy at each position: a bonus for staying undecided.

    With a `target` the coefficient follows the entropy (arXiv 2505.22312): after each optimizer step it rises by `delta` where
    the mean entropy of that step was at most the target and falls by it elsewhere, within 0 and `most`; it is applied only
    after a step whose entropy was at most the target, so not in the first one.
    """

    live: ClassVar[tuple[str, ...]] = ("entropy",)
    coef: float = Field(
        default=0.001, gt=0, description="the factor of the entropy bonus; with a target, its first value"
    )
    target: float | None = Field(
        default=None, gt=0, description="entropy in nats per token that the coefficient steers to; null: it is fixed"
    )
    delta: float = Field(default=0.005, gt=0, description="how far a steered coefficient moves per optimizer step")
    most: float = Field(default=1.0, gt=0, description="largest value of a steered coefficient")

    @model_validator(mode="after")
    def _read(self) -> Entropy:
        if self.target is None:
            self.refuse_unread("recipe.penalties.entropy", "target=null", "delta", "most")
        return self

    def initial(self) -> State:
        """A steered coefficient starts at `coef` and is not applied before an entropy was measured."""
        return {} if self.target is None else {"coef": self.coef, "applied": 0.0}

    def latex(self) -> str:
        """The cost."""
        entropy = r"-\mathcal H\big(\pi_\theta(\cdot\mid n,{<}t)\big)"
        if self.target is None:
            return entropy
        return rf"{entropy}\ \text{{applied while }}\bar{{\mathcal H}}\le {number(self.target)}"

    def __call__(self, live: Live, batch: Credited, state: State | None = None) -> Float[Tensor, "N T"]:
        """The cost [N T], the negative entropy in nats; of a steered coefficient times its value over `coef`."""
        cost = masked(-live.outputs["entropy"], batch.mask)
        return cost if state is None else cost * (state["applied"] / self.coef)

    def observe(self, live: Live, batch: Credited, state: State | None = None) -> Metrics:
        """The coefficient that is applied."""
        return {"entropy/coef": mean(self.coef if state is None else float(state["applied"]), 1.0)}

    def sums(self, live: Live, batch: Credited) -> Mapping[str, float]:
        """Entropy and tokens of a slice."""
        if self.target is None:
            return {}
        entropy = masked(live.outputs["entropy"].detach(), batch.mask).double().sum()
        return {"entropy": float(entropy), "tokens": float(batch.mask.sum())}

    def advance(self, state: State, sums: Mapping[str, float]) -> State:
        """Move the coefficient by the entropy of a whole optimizer step; a step without tokens leaves it alone."""
        if self.target is None or not sums.get("tokens"):
            return state
        low = sums["entropy"] / sums["tokens"] <= self.target
        coef = min(max(state["coef"] + (self.delta if low else -self.delta), 0.0), self.most)
        return {"coef": coef, "applied": coef if low else 0.0}


@component("penalty", "constraint")
class Constraint(Penalty):
    """Keeps D, the divergence of the step from the old policy, below a limit (arXiv 2505.12366).

    D = sum of the weighting times d, by default the mean over all tokens of the optimizer step; d is the k1 or k3 estimate of
    KL(old, policy) on tokens of the old policy: `direct`, old - logp, may be negative; `low_variance`, rho - 1 - log rho, not.
    The cost is sg(m) d with a multiplier m: `hinge`, m = max(D - limit, 0), whose gradient is that of max(D - limit, 0)^2 / 2
    (a `coef` twice as large gives the square without the half); or `dual`, a state that is raised by rate * (D - limit) after
    each optimizer step and never below 0, so that m settles where D meets the limit.
    """

    couples: ClassVar[Couples] = "step"
    coef: float = Field(default=1000.0, gt=0, description="the factor of the constraint (beta)")
    limit: float = Field(default=1e-4, ge=0, description="divergence in nats per token that costs nothing (delta)")
    divergence: Literal["direct", "low_variance"] = Field(default="low_variance", description="estimator of D")
    multiplier: Literal["hinge", "dual"] = Field(
        default="hinge", description="hinge: the excess of this very step; dual: the sum of excesses, kept as state"
    )
    rate: float = Field(default=1.0, gt=0, description="how much of an excess a dual multiplier takes up per step")

    @model_validator(mode="after")
    def _read(self) -> Constraint:
        if self.multiplier == "hinge":
            self.refuse_unread("recipe.penalties.constraint", "multiplier=hinge", "rate")
        return self

    def initial(self) -> State:
        """A dual multiplier starts at 0."""
        return {"multiplier": 0.0} if self.multiplier == "dual" else {}

    def latex(self) -> str:
        """The cost."""
        d = r"\rho_{n,t}-1-x_{n,t}" if self.divergence == "low_variance" else r"-x_{n,t}"
        weight = rf"\operatorname{{sg}}\big(\max(D-{number(self.limit)},0)\big)" if self.multiplier == "hinge" else r"m"
        return rf"{weight}\,({d}),\quad D=\sum w^{{\mathrm{{constraint}}}}_{{n,t}}({d})"

    def __call__(self, live: Live, batch: Credited, state: State | None = None) -> Float[Tensor, "N T"]:
        """The cost [N T]."""
        d = self._distance(live, batch)
        if state is not None:
            return d * float(state["multiplier"])
        return d * (self._mean(d, batch).detach() - self.limit).clamp(min=0)

    def observe(self, live: Live, batch: Credited, state: State | None = None) -> Metrics:
        """D, whether it is beyond the limit, the multiplier (all of the whole step), and how often a log-ratio was cut."""
        found = float(self._mean(self._distance(live, batch), batch))
        excess = max(found - self.limit, 0.0)
        cut = log_ratio(live.logp, batch.old_logp.to(live.logp.dtype), batch.mask).abs() >= LOG_RATIO_LIMIT
        return {
            "constraint/divergence": mean(found, 1.0),
            "constraint/active": mean(float(excess > 0), 1.0),
            "constraint/multiplier": mean(excess if state is None else float(state["multiplier"]), 1.0),
            "constraint/clamped": mean(float(cut.sum()), float(batch.mask.sum())),
        }

    def sums(self, live: Live, batch: Credited) -> Mapping[str, float]:
        """D of a slice: its share in the weighted sum."""
        if self.multiplier == "hinge":
            return {}
        return {"divergence": float(self._mean(self._distance(live, batch).detach(), batch))}

    def advance(self, state: State, sums: Mapping[str, float]) -> State:
        """Raise the dual multiplier by the excess of a whole optimizer step, lower it where there was room."""
        if "divergence" not in sums:
            return state
        return {"multiplier": max(state["multiplier"] + self.rate * (sums["divergence"] - self.limit), 0.0)}

    def _distance(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        back = log_ratio(batch.old_logp.to(live.logp.dtype), live.logp, batch.mask)
        return masked(k3(back) if self.divergence == "low_variance" else k1(back), batch.mask)

    def _mean(self, d: Float[Tensor, "N T"], batch: Credited) -> Float[Tensor, ""]:
        return (batch.penalty_weight[self.kind].to(d.device) * d.double()).sum().to(d.dtype)
