"""Stage `mix`: reward components become the score that credit starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from covey.batch import Batch, Credited
from covey.errors import ConfigError, did_you_mean
from covey.metrics import Metrics, mean
from covey.registry import Component, Per, State, Value, build, component
from covey.stages.kl import estimate
from covey.stages.masked import compact, log_ratio, masked, sum_by
from covey.stages.tex import name as tex
from covey.stages.tex import number


class Mix(Component):
    """Makes the score. `per` says of what: `row` [N], `component` [N K] or `token` [N T]."""

    per: ClassVar[Per] = "row"


class Shaping(Component):
    """A term added to the score of each row."""

    def __call__(self, batch: Batch) -> Float[Tensor, " N"]:
        """The term per row."""
        raise NotImplementedError


class RowScore(Mix):
    """What mixes with one score per row have in common: the weighted sum of the components, and the terms added to it."""

    weights: Mapping[str, float] = Field(
        default_factory=dict, description="weight per reward component; others as declared"
    )
    shaping: tuple[Component, ...] = Field(default=(), description="terms added to the score")

    @field_validator("shaping", mode="before")
    @classmethod
    def _members(cls, value: object) -> tuple[Component, ...]:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(build("shaping", item, "recipe.mix.shaping") for item in items)

    def row_score(self, batch: Batch) -> Float[Tensor, " N"]:
        """sum_k weight_k * reward_k + shaping terms, per row; NaN where a component of non-zero weight is."""
        weight = weight_of(batch, self.weights, "recipe.mix.weights")
        used = batch.reward[:, weight != 0].double()
        score = (used * weight[weight != 0]).sum(1)
        for term in self.shaping:
            score = score + term(batch)  # type: ignore[operator]
        return score

    def row_latex(self) -> str:
        """The sum as LaTeX."""
        own = "".join(rf"{number(w)}\,r^{{\mathrm{{{tex(name)}}}}}_n+" for name, w in self.weights.items())
        rest = r"\sum_k w_k\,r^k_n" if not self.weights else r"\sum_{k\,\mathrm{other}} w_k\,r^k_n"
        return own + rest + "".join(f"+{term.latex()}".replace("+-", "-") for term in self.shaping)

    def measure(self, batch: Credited) -> Metrics:
        """The mean of each shaping term over rows."""
        return {
            f"shaping/{term.kind}": mean(float(term(batch).sum()), batch.size)  # type: ignore[operator]
            for term in self.shaping
        }

    def exemptions(self) -> Mapping[str, str]:
        """Those of the terms."""
        return {name: reason for term in self.shaping for name, reason in term.exemptions().items()}


def weight_of(batch: Batch, weights: Mapping[str, float], where: str) -> Float[Tensor, " K"]:
    """The weight of each reward component: the given one, else the one that its reward declares."""
    for name in weights:
        if name not in batch.reward_names:
            raise ConfigError(
                f"{where}.{name}", "the reward has no such component", did_you_mean(name, batch.reward_names)
            )
    declared = zip(batch.reward_names, batch.reward_weights, strict=True)
    chosen = [weights.get(name, own) for name, own in declared]
    return torch.tensor(chosen, dtype=torch.float64, device=batch.reward.device)


@component("mix", "weighted_sum")
class WeightedSum(RowScore):
    """score = sum_k weight_k * reward_k + shaping terms, per row.

    A component that is not named in `weights` has the weight that its reward declares (1 unless it says otherwise). A row with
    an unscorable component of non-zero weight has score NaN: it gets no credit and stays out of all statistics.
    """

    def __call__(self, batch: Batch) -> Float[Tensor, " N"]:
        """The score [N]."""
        return self.row_score(batch)

    def latex(self) -> str:
        """The sum."""
        return self.row_latex()


@component("mix", "token_kl")
class TokenKl(RowScore):
    """score_t = (t is the row's last policy token) * row score - coef * KL_t, per token (arXiv 2203.02155, 2501.03262).

    The row score is that of `weighted_sum`; KL_t estimates the divergence of the learner at the start of the step from the
    reference, and is a number, not a loss: only k1 has the gradient of the reverse KL here (arXiv 2510.01555). An `adaptive`
    controller moves the coefficient after each batch: coef <- coef * (1 + clip(KL / target - 1, -0.2, 0.2) * rollouts / horizon)
    (arXiv 1909.08593), with KL the mean over policy tokens.
    """

    per: ClassVar[Per] = "token"
    needs: ClassVar[tuple[str, ...]] = ("ref_logp",)

    coef: float = Field(default=0.001, gt=0, description="nats of divergence to units of reward (beta), at the start")
    estimator: Literal["k1", "k2", "k3"] = Field(default="k1", description="estimator of the divergence per token")
    controller: Literal["fixed", "adaptive"] = Field(default="fixed", description="whether the coefficient moves")
    target: float = Field(default=0.1, gt=0, description="adaptive: nats per token that the coefficient is to hold")
    horizon_rollouts: int = Field(default=10_000, ge=1, description="adaptive: rollouts over which it moves")

    @model_validator(mode="after")
    def _read(self) -> TokenKl:
        if self.controller == "fixed":
            self.refuse_unread("recipe.mix", "controller=fixed", "target", "horizon_rollouts")
        return self

    def initial(self) -> State:
        """The coefficient, if it moves."""
        return {"coef": self.coef} if self.controller == "adaptive" else {}

    def divergence(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The estimate per policy token, log-ratio clamped to +-20."""
        x = log_ratio(batch.old_logp.double(), batch.columns["ref_logp"].double(), batch.mask)
        return masked(estimate(self.estimator, x), batch.mask)

    def __call__(self, batch: Batch, state: State | None = None) -> Tensor | tuple[Tensor, State]:
        """The score [N T]; with an adaptive controller also the new coefficient."""
        coef, kl = float((state or {"coef": self.coef})["coef"]), self.divergence(batch)
        score = masked(self.row_score(batch)[:, None].expand(kl.shape), last_tokens(batch.mask)) - coef * kl
        if self.controller == "fixed":
            return score
        tokens, rollouts = float(batch.mask.sum()), int(torch.unique(batch.rollout).numel())
        if not tokens:
            return score, {"coef": coef}
        error = min(max(float(kl.sum()) / tokens / self.target - 1, -0.2), 0.2)
        return score, {"coef": coef * (1 + error * rollouts / self.horizon_rollouts)}

    def latex(self) -> str:
        """The score of a token."""
        coef = number(self.coef) if self.controller == "fixed" else r"\beta"
        x = r"(\ell^{old}_{n,t}-\ell^{ref}_{n,t})"
        term = {"k1": x, "k2": rf"\tfrac12{x}^2", "k3": rf"\big(e^{{-{x}}}-1+{x}\big)"}[self.estimator]
        return rf"\mathbf 1[t=\mathrm{{last}}]\,\big({self.row_latex()}\big)-{coef}\,{term}"

    def measure(self, batch: Credited) -> Metrics:
        """What is taken off the scores, per token, besides what the shaping terms add."""
        kl = mean(float(self.divergence(batch).sum()), float(batch.mask.sum()))
        return {**super().measure(batch), "kl/in_score": kl}

    def exemptions(self) -> Mapping[str, str]:
        """The divergence is part of the score."""
        return {**super().exemptions(), "equal_rewards": "the divergence from the reference is part of the score"}


class Condition(Value):
    """A reward component that another one has to reach."""

    on: str = Field(description="the component that is asked, before any condition")
    at_least: float = Field(description="the value that it has to reach")


@component("mix", "separate")
class Separate(Mix):
    """The reward components as they are, [N K]: the advantage normalises, weighs and adds them (arXiv 2601.05242).

    A condition makes a component count only where another one reaches a value: r_k <- r_k 1[r_l >= at_least] (eq. 8), asked of
    the raw r_l; where r_l could not be scored neither can r_k.
    """

    per: ClassVar[Per] = "component"

    conditions: Mapping[str, Condition] = Field(
        default_factory=dict, description="by component: which other one must reach what for it to count"
    )

    def __call__(self, batch: Batch) -> Float[Tensor, "N K"]:
        """The components [N K] after the conditions."""
        raw, columns = batch.reward.double(), list(batch.reward.double().unbind(1))
        for name, condition in self.conditions.items():
            for known in (name, condition.on):
                if known not in batch.reward_names:
                    raise ConfigError(
                        f"recipe.mix.conditions.{name}",
                        f"the reward has no component '{known}'",
                        did_you_mean(known, batch.reward_names),
                    )
            at, asked = batch.reward_names.index(name), raw[:, batch.reward_names.index(condition.on)]
            met = torch.where(asked >= condition.at_least, raw[:, at], torch.zeros_like(asked))
            columns[at] = torch.where(asked.isnan(), asked, met)
        return torch.stack(columns, 1) if columns else raw

    def latex(self) -> str:
        """The components, with the conditions."""
        parts = [
            rf"r^{{\mathrm{{{tex(name)}}}}}_n\leftarrow r^{{\mathrm{{{tex(name)}}}}}_n\,"
            rf"\mathbf 1[r^{{\mathrm{{{tex(c.on)}}}}}_n\ge {number(c.at_least)}]"
            for name, c in self.conditions.items()
        ]
        return r",\quad ".join(["r^k_n", *parts])


def last_tokens(mask: Bool[Tensor, "N T"]) -> Bool[Tensor, "N T"]:
    """True on the last policy token of each row; nowhere in a row without one."""
    after = mask.flip(1).long().cumsum(1).flip(1)
    return mask & (after == 1)


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

    def latex(self) -> str:
        """The punishment; len counts policy tokens, C is the budget."""
        factor = "" if self.factor == 1 else rf"{number(self.factor)}\cdot "
        if self.cache_share == 0:
            return rf"\big(-{number(self.factor)}\cdot\mathbf 1[L_n>C]\big)"
        share = number(self.cache_share)
        return rf"{factor}\max\!\Big(-1,\min\!\big(0,\tfrac{{(1-{share})C-L_n}}{{{share}\,C}}\big)\Big)"


@component("shaping", "kl_sum")
class KlSum(Shaping):
    """Takes the divergence of the whole response off its score: -coef * sum_t (old_t - ref_t) (arXiv 2402.14740 eq. 1).

    Part of the score, so the baseline sees it too. The log-ratio per token is clamped to +-20.
    """

    needs: ClassVar[tuple[str, ...]] = ("ref_logp",)
    coef: float = Field(default=0.05, gt=0, description="nats of divergence to units of reward (beta)")

    def __call__(self, batch: Batch) -> Float[Tensor, " N"]:
        """The term per row; the rows of a rollout share its sum."""
        x = log_ratio(batch.old_logp.double(), batch.columns["ref_logp"].double(), batch.mask)
        index, count = compact(batch.rollout)
        return -self.coef * sum_by(x.sum(1), index, count)[index]

    def latex(self) -> str:
        """The sum over the response."""
        return rf"-{number(self.coef)}\sum_t(\ell^{{old}}_{{n,t}}-\ell^{{ref}}_{{n,t}})"

    def exemptions(self) -> Mapping[str, str]:
        """The divergence is part of the score."""
        return {"equal_rewards": "the divergence from the reference is part of the score"}
