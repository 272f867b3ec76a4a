"""Stage `advantage`: what a row (or token) is worth compared with its baseline, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from covey.batch import Batch, Credited
from covey.metrics import Metrics
from covey.metrics import mean as mean_of
from covey.registry import Component, Per, State, component
from covey.stages.masked import broadcast, compact, count_by, divide, masked, moments_by, spread_by
from covey.stages.mix import weight_of
from covey.stages.tex import name as tex
from covey.stages.tex import number


class Advantage(Component):
    """Makes the advantage [N T] of the column `score`. `reads` says which scores it understands."""

    reads: ClassVar[tuple[Per, ...]] = ("row",)


@component("advantage", "group_norm")
class GroupNorm(Advantage):
    """A = (R - baseline of its prompt's group) / (scale + eps), the same on every token of the row.

    baseline `mean`: mean of the group; `leave_one_out`: mean of the others, G/(G-1) (R - mean) (arXiv 2402.14740).
    scale `none`: 1, no eps (arXiv 2503.20783); `group`: the group's std (arXiv 2402.03300); `batch`: the std of all raw scores of
    the rollout batch (arXiv 2508.08221); `batch_centered`: of all scores less their group's mean; `mean`: the group's mean, for
    outcomes of 0 and 1, where a group without a right one (or a mean that is not positive) gets 0 (arXiv 2602.02710).
    A group of one, or of equal scores, gets exactly 0. Rows outside the statistics get 0.
    """

    baseline: Literal["mean", "leave_one_out"] = Field(default="mean", description="what a row is compared with")
    scale: Literal["none", "group", "batch", "batch_centered", "mean"] = Field(
        default="group", description="what the difference is divided by"
    )
    ddof: Literal[0, 1] = Field(default=1, description="1: unbiased variance; 0: population variance")
    eps: float = Field(default=1e-6, ge=0, description="added to the std after the square root, or to the mean")

    @model_validator(mode="after")
    def _read(self) -> GroupNorm:
        unread = {"none": ("ddof", "eps"), "mean": ("ddof",)}.get(self.scale, ())
        self.refuse_unread("recipe.advantage", f"scale={self.scale}", *unread)
        return self

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The advantage [N T]."""
        score, member = batch.columns["score"].double(), batch.keep.statistics
        index, count = compact(batch.group)
        mean, std = moments_by(score, member, index, count, self.ddof)
        centered = masked(score - mean[index], member)
        if self.baseline == "leave_one_out":
            size = count_by(member, index, count)
            centered = centered * divide(size, size - 1)[index]
        if self.scale == "group":
            centered = divide(centered, std[index] + self.eps)
        if self.scale == "mean":
            centered = masked(divide(centered, mean[index] + self.eps), mean[index] > 0)
        if self.scale in ("batch", "batch_centered"):
            everyone = torch.zeros_like(index)
            values = score if self.scale == "batch" else score - mean[index]
            _, spread = moments_by(values, member, everyone, 1, self.ddof)
            centered = divide(centered, spread[everyone] + self.eps)
        return broadcast(centered, batch.mask)

    def latex(self) -> str:
        """The difference, and what it is divided by."""
        others = r"\tfrac{1}{G-1}\sum_{j\in g(n),\,j\ne n}R_j"
        difference = r"R_n-\mu_{g(n)}" if self.baseline == "mean" else rf"R_n-{others}"
        if self.scale == "none":
            return difference
        below = {
            "group": r"\sigma_{g(n)}",
            "batch": r"\operatorname{std}_{n'}R_{n'}",
            "batch_centered": r"\operatorname{std}_{n'}(R_{n'}-\mu_{g(n')})",
            "mean": r"\mu_{g(n)}",
        }[self.scale]
        eps = f"+{number(self.eps)}" if self.eps else ""
        degrees = "" if self.scale == "mean" else rf"\quad(\mathrm{{ddof}}={self.ddof})"
        return rf"\frac{{{difference}}}{{{below}{eps}}}{degrees}"


@component("advantage", "component_norm")
class ComponentNorm(Advantage):
    """A = sum_k weight_k (r_k - mean of the group) / (std of the group + eps): components normalised apart (arXiv 2601.05242).

    So a rare component is heard beside a common one. A component that could not be scored stays out of its own statistics and
    adds 0; so does one that is the same in the whole group. Weights act on what is normalised (eq. 7).
    """

    reads: ClassVar[tuple[Per, ...]] = ("component",)

    weights: Mapping[str, float] = Field(
        default_factory=dict, description="weight per reward component; others as declared"
    )
    ddof: Literal[0, 1] = Field(default=1, description="1: unbiased variance; 0: population variance")
    eps: float = Field(default=1e-6, ge=0, description="added to the std after the square root")

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The advantage [N T]."""
        score = batch.columns["score"].double()
        weight = weight_of(batch, self.weights, "recipe.advantage.weights")
        index, count = compact(batch.group)
        total = torch.zeros(batch.size, dtype=torch.float64, device=score.device)
        for k in range(score.shape[1]):
            member = batch.keep.statistics & ~score[:, k].isnan()
            mean, std = moments_by(score[:, k], member, index, count, self.ddof)
            total = total + weight[k] * divide(masked(score[:, k] - mean[index], member), std[index] + self.eps)
        return broadcast(total, batch.mask)

    def latex(self) -> str:
        """The sum of quotients."""
        eps = f"+{number(self.eps)}" if self.eps else ""
        named = ", ".join(rf"w_{{\mathrm{{{tex(name)}}}}}={number(w)}" for name, w in self.weights.items())
        notes = ", ".join(filter(None, [rf"\mathrm{{ddof}}={self.ddof}", named]))
        return rf"\sum_k w_k\frac{{r^k_n-\mu_{{g(n)}}(r^k)}}{{\sigma_{{g(n)}}(r^k){eps}}}\quad({notes})"

    def measure(self, batch: Credited) -> Metrics:
        """Per component the share of groups in which it is the same for all: nothing is learnt of it there."""
        score, (index, count) = batch.columns["score"].double(), compact(batch.group)
        out = {}
        for k, name in enumerate(batch.reward_names):
            spread = spread_by(score[:, k], batch.keep.statistics & ~score[:, k].isnan(), index, count)
            out[f"group/equal_{name}"] = mean_of(float((spread == 0).sum()), count)
        return out


@component("advantage", "batch_baseline")
class BatchBaseline(Advantage):
    """A = R - b with one baseline for the whole rollout batch (Williams 1992), the same on every token of the row.

    `mean`: mean of all rows (a batch of one gets 0); `leave_one_out`: mean of the other rows, unbiased; `moving`: a moving
    average b <- decay * b + (1 - decay) * mean, the value before the update is used, started at the first batch's mean;
    `none`: b = 0. Rows outside the statistics get 0.
    """

    baseline: Literal["mean", "leave_one_out", "moving", "none"] = Field(default="mean", description="what b is")
    decay: float = Field(
        default=0.9, ge=0, lt=1, description="share of the old value that a moving baseline keeps per step"
    )

    @model_validator(mode="after")
    def _read(self) -> BatchBaseline:
        if self.baseline != "moving":
            self.refuse_unread("recipe.advantage", f"baseline={self.baseline}", "decay")
        return self

    def exemptions(self) -> Mapping[str, str]:
        """Without a baseline a reward teaches by itself."""
        return (
            {"equal_rewards": "without a baseline the reward itself is the advantage"}
            if self.baseline == "none"
            else {}
        )

    def initial(self) -> State:
        """A moving baseline has not seen a batch yet."""
        return {"baseline": None} if self.baseline == "moving" else {}

    def __call__(self, batch: Batch, state: State | None = None) -> Tensor | tuple[Tensor, State]:
        """The advantage [N T]; with a moving baseline also its new state."""
        score, member = masked(batch.columns["score"].double(), batch.keep.statistics), batch.keep.statistics
        n, everyone = member.sum().double(), torch.zeros_like(batch.group)
        mean = moments_by(score, member, everyone, 1, 0)[0].squeeze(0)
        if self.baseline == "none":
            return broadcast(score, batch.mask)
        if self.baseline == "moving":
            seen = (state or self.initial())["baseline"]
            if n == 0:  # nothing was measured: the average stays as it is
                return broadcast(score, batch.mask), {"baseline": seen}
            before = mean if seen is None else torch.tensor(seen, dtype=torch.float64)
            after = self.decay * before + (1 - self.decay) * mean
            return broadcast(masked(score - before, member), batch.mask), {"baseline": float(after)}
        centered = masked(score - mean, member)
        if self.baseline == "leave_one_out":
            centered = centered * divide(n, n - 1)
        return broadcast(centered, batch.mask)

    def latex(self) -> str:
        """The difference to the one baseline."""
        if self.baseline == "moving":
            keep, new = number(self.decay), number(1 - self.decay)
            return rf"R_n-b,\quad b\leftarrow {keep}\,b+{new}\,\tfrac1N\sum_{{n'}}R_{{n'}}\ \text{{(afterwards)}}"
        return {
            "mean": r"R_n-\tfrac1N\sum_{n'}R_{n'}",
            "leave_one_out": r"R_n-\tfrac1{N-1}\sum_{n'\ne n}R_{n'}",
            "none": "R_n",
        }[self.baseline]
