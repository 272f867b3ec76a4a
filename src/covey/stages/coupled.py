"""Surrogates with one value per group, which no single row determines: what the responses of a prompt are against each other.

The value J_g of a group is spread evenly over its counted tokens; under weighting `group_sum` the gain of the step is the mean
of J_g over groups. The unit is the rollout: its rows are taken together, and one that a filter took out of the loss, or without
tokens of its own, leaves its group as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from covey.batch import Batch, Credited, Live
from covey.errors import ConfigError
from covey.metrics import Metrics, mean
from covey.registry import Couples, component
from covey.stages.advantages import Advantage
from covey.stages.masked import (
    LOG_RATIO_LIMIT,
    bounds_by,
    broadcast,
    compact,
    count_by,
    divide,
    log_ratio,
    masked,
    sum_by,
)
from covey.stages.surrogates import Surrogate
from covey.stages.tex import factor, number

LOWEST_LOGP = -1000.0
"""A token that the learner rules out (logp = -inf) enters a mean of log-probabilities as this: finite, without gradient."""


@dataclass(frozen=True)
class Rollouts:
    """The M rollouts of a batch, in B groups: which of them are present, and what belongs together."""

    counted: Bool[Tensor, "N T"]
    tokens: Float[Tensor, " M"]
    of_row: Int[Tensor, " N"]
    group: Int[Tensor, " M"]
    group_of_row: Int[Tensor, " N"]
    groups: int

    @classmethod
    def of(cls, batch: Batch) -> Rollouts:
        """The rollouts whose rows count in the loss."""
        counted = batch.mask & batch.keep.loss[:, None]
        of_row, count = compact(batch.rollout)
        group_of_row, groups = compact(batch.group)
        group = torch.zeros(count, dtype=torch.long, device=of_row.device).scatter_(0, of_row, group_of_row)
        return cls(counted, sum_by(counted.sum(1).double(), of_row, count), of_row, group, group_of_row, groups)

    @property
    def present(self) -> Bool[Tensor, " M"]:
        """Rollouts with tokens that count."""
        return self.tokens > 0

    def total(self, values: Float[Tensor, "N T"]) -> Float[Tensor, " M"]:
        """The sum over a rollout's counted tokens, in float64."""
        return sum_by(masked(values, self.counted).sum(1), self.of_row, self.tokens.numel())

    def average(self, values: Float[Tensor, "N T"]) -> Float[Tensor, " M"]:
        """The mean over a rollout's counted tokens; 0 without any."""
        return divide(self.total(values), self.tokens)

    def by_group(self, values: Float[Tensor, " M"], member: Bool[Tensor, " M"]) -> Float[Tensor, " B"]:
        """The mean over the members of each group; 0 without any."""
        size = count_by(member, self.group, self.groups)
        return divide(sum_by(masked(values, member), self.group, self.groups), size)

    def spread(self, values: Float[Tensor, " B"]) -> Float[Tensor, "N T"]:
        """A value per group, evenly on the group's counted tokens."""
        tokens = sum_by(self.tokens, self.group, self.groups)
        return broadcast(divide(values, tokens)[self.group_of_row], self.counted)


@component("surrogate", "residual")
class Residual(Surrogate):
    """Regression of implicit on actual rewards, both centred in the group (arXiv 2504.19599).

    With Q_n = coef * sum_t (logp - anchor) over the tokens of response n and A_n its advantage,
    e_n = (Q_n - sg(mean Q)) - (A_n - mean A) and J_g = -sum_n e_n^2 / (2 (G - 1)); means and G are over the responses that are
    present. The stopped mean leaves the gradient as it is, since the e_n of a group sum to 0. A group of one has J = 0.
    The advantage has to be the centred reward itself (`group_norm` with scale none): with a std the optimum is another policy.
    """

    couples: ClassVar[Couples] = "group"
    reads_ratio: ClassVar[bool] = False
    per_group: ClassVar[bool] = True
    coef: float = Field(
        default=0.1, gt=0, description="the factor of the implicit reward (beta): strength of the KL constraint"
    )
    anchor: Literal["old", "reference"] = Field(
        default="old", description="the policy of the KL constraint: a moving trust region, or the fixed reference"
    )

    def columns(self) -> tuple[str, ...]:
        """`ref_logp` when the constraint is to the reference."""
        return ("ref_logp",) if self.anchor == "reference" else ()

    def latex(self) -> str:
        """The gain."""
        anchor = "old" if self.anchor == "old" else "ref"
        implicit = rf"Q_k={factor(self.coef)}\sum_t(\ell^{{\theta}}_{{k,t}}-\ell^{{{anchor}}}_{{k,t}})"
        error = r"\big(Q_k-\operatorname{sg}(\bar Q_g)-A_k\big)^2"
        return rf"-\frac{{1}}{{T_g}}\,\frac{{1}}{{2(G-1)}}\sum_{{k\in g}}{error},\quad {implicit}"

    def exemptions(self) -> Mapping[str, str]:
        """A regression is no policy gradient."""
        return {
            "equal_rewards": "where rewards are equal it pulls the implicit rewards of the group to one value too",
            "first_step": "the gradient of a group is coef / (G - 1) times that of the sum of its responses",
        }

    def __call__(self, log_ratio: None, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The gain [N T]."""
        found = Rollouts.of(batch)
        implicit, actual = self._rewards(found, live, batch)
        error = masked(implicit - actual, found.present)
        size = count_by(found.present, found.group, found.groups)
        loss = divide(sum_by(error.square(), found.group, found.groups), 2 * (size - 1))
        return found.spread(-masked(loss, size > 1))

    def _rewards(self, found: Rollouts, live: Live, batch: Credited) -> tuple[Tensor, Tensor]:
        """Implicit and actual rewards [M], centred over the present rollouts of each group."""
        implicit = self.coef * found.total(self._moved(found, live, batch))
        actual = found.average(batch.advantage)
        level = found.by_group(implicit.detach(), found.present)[found.group]
        return implicit - level, actual - found.by_group(actual, found.present)[found.group]

    def _moved(self, found: Rollouts, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The log-ratio of each counted token to the anchor, clamped: a cut token has no gradient."""
        anchor = batch.columns["ref_logp"] if self.anchor == "reference" else batch.old_logp
        return log_ratio(live.logp, anchor.to(live.logp.dtype), found.counted)

    def measure(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Metrics:
        """How far the implicit rewards are from the actual ones, and how much of each there is."""
        found = Rollouts.of(batch)
        implicit, actual = (masked(part, found.present) for part in self._rewards(found, live, batch))
        responses, tokens = float(found.present.sum()), float(found.counted.sum())
        return {
            "residual/mse": mean(float((implicit - actual).square().sum()), responses),
            "residual/implicit_var": mean(float(implicit.square().sum()), responses),
            "residual/actual_var": mean(float(actual.square().sum()), responses),
            "residual/cov": mean(float((implicit * actual).sum()), responses),
            "residual/clamped": mean(float((self._moved(found, live, batch).abs() >= LOG_RATIO_LIMIT).sum()), tokens),
        }


@component("surrogate", "contrast")
class Contrast(Surrogate):
    """Raises the scores of a group's good responses above those of its bad ones (arXiv 2505.12366).

    Score s_n: `likelihood`, the mean logp of the response's tokens, or `ratio`, their mean ratio to the old policy, unclipped.
    With P the responses of positive and M those of negative advantage, J_g = mean_P s - tau log mean_M exp(s / tau); without a
    tau the mean of M takes the place of its soft maximum. A group without both classes has J = 0.
    """

    couples: ClassVar[Couples] = "group"
    reads_ratio: ClassVar[bool] = False
    per_group: ClassVar[bool] = True
    score: Literal["likelihood", "ratio"] = Field(default="likelihood", description="what is compared")
    tau: float | None = Field(
        default=10.0, gt=0, description="temperature of the soft maximum over bad responses; null: their mean"
    )

    def latex(self) -> str:
        """The gain."""
        inner = r"\ell^{\theta}_{k,t}" if self.score == "likelihood" else r"\rho_{k,t}"
        bad = r"\frac{1}{|M_g|}\sum_{k\in M_g}s_k"
        if self.tau is not None:
            power = "s_k" if self.tau == 1 else f"s_k/{number(self.tau)}"
            bad = rf"{factor(self.tau)}\log\big(\frac{{1}}{{|M_g|}}\sum_{{k\in M_g}}e^{{{power}}}\big)"
        classes = r"P_g=\{A_k>0\},\ M_g=\{A_k<0\}"
        good = r"\frac{1}{|P_g|}\sum_{k\in P_g}s_k"
        return rf"\frac{{1}}{{T_g}}\Big({good}-{bad}\Big),\quad s_k=\frac{{1}}{{L_k}}\sum_t {inner},\ {classes}"

    def exemptions(self) -> Mapping[str, str]:
        """Classes are compared, advantages are not followed."""
        return {"first_step": "the slope of a response is 1/|P| or its softmax weight in M, not its advantage"}

    def __call__(self, log_ratio: None, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The gain [N T]."""
        found = Rollouts.of(batch)
        score, good, bad, both = self._parts(found, live, batch)
        value = found.by_group(score, good) - self._level(found, score, bad)
        return found.spread(masked(value, both))

    def _parts(self, found: Rollouts, live: Live, batch: Credited) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores, good and bad responses [M], and which groups have both [B]."""
        if self.score == "likelihood":
            score = found.average(live.logp.clamp(min=LOWEST_LOGP))
        else:
            moved = log_ratio(live.logp, batch.old_logp.to(live.logp.dtype), found.counted)
            score = found.average(moved.exp())
        advantage = found.average(batch.advantage)
        good, bad = found.present & (advantage > 0), found.present & (advantage < 0)
        sizes = [count_by(part, found.group, found.groups) for part in (good, bad)]
        return score, good, bad, (sizes[0] > 0) & (sizes[1] > 0)

    def _level(self, found: Rollouts, score: Tensor, bad: Tensor) -> Float[Tensor, " B"]:
        """The (soft) level of the bad responses of each group; 0 without any."""
        if self.tau is None:
            return found.by_group(score, bad)
        top = bounds_by(score.detach(), bad, found.group, found.groups)[1]
        top = masked(top, top.isfinite())
        lifted = masked((score - top[found.group]) / self.tau, bad).exp()
        average = found.by_group(lifted, bad)
        return top + self.tau * torch.where(average > 0, average, torch.ones_like(average)).log()

    def measure(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Metrics:
        """How far the classes are apart, how many groups have both, what the worst of the bad responses weighs."""
        found = Rollouts.of(batch)
        score, good, bad, both = self._parts(found, live, batch)
        margin = found.by_group(score, good) - found.by_group(score, bad)
        weight = masked((score - self._level(found, score, bad)[found.group]) / (self.tau or torch.inf), bad).exp()
        share = divide(weight, count_by(bad, found.group, found.groups)[found.group])
        hardest = bounds_by(share, bad, found.group, found.groups)[1]
        groups = float(both.sum())
        return {
            "contrast/margin": mean(float(masked(margin, both).sum()), groups),
            "contrast/both": mean(groups, found.groups),
            "contrast/hardest": mean(float(masked(hardest, both).sum()), groups),
        }


@component("advantage", "two_classes")
class TwoClasses(Advantage):
    """A = +1 for scores above the threshold and -1 for others; 0 in a group that has only one of the two (arXiv 2505.12366).

    Without a threshold the scores have to be 0 or 1. Rows outside the statistics get 0.
    """

    threshold: float | None = Field(
        default=0.5, description="scores above it are good; null: scores are 0 or 1, others are refused"
    )

    def latex(self) -> str:
        """The advantage."""
        level = 0.5 if self.threshold is None else self.threshold
        return rf"\operatorname{{sign}}(R_n-{number(level)})\ \text{{if both signs occur in }}g(n),\text{{ else }}0"

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The advantage [N T]."""
        score, member = batch.columns["score"].double(), batch.keep.statistics
        if self.threshold is None and bool((member & (score != 0) & (score != 1)).any()):
            found = "the reward has values other than 0 and 1"
            raise ConfigError("recipe.advantage.threshold", found, "Say above which score a response is good.")
        good = member & (score > (0.5 if self.threshold is None else self.threshold))
        bad = member & ~good
        index, count = compact(batch.group)
        sizes = [count_by(part, index, count) for part in (good, bad)]
        both = (sizes[0] > 0) & (sizes[1] > 0)
        return broadcast(masked(good.double() - bad.double(), both[index]), batch.mask)
