"""Stage `advantage`: what a rollout is worth to a set of k of its group, of which one right answer is enough."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from covey.batch import Batch, Credited
from covey.metrics import Metrics, mean
from covey.registry import component
from covey.stages.advantages import Advantage
from covey.stages.masked import broadcast, compact, count_by, divide, masked
from covey.stages.tex import number


@component("advantage", "pass_at_k")
class PassAtK(Advantage):
    """The advantage of a set of k rollouts, averaged over all sets of the group that a rollout belongs to (arXiv 2508.10751).

    A set is worth 1 if one of it is right. With G rollouts, W of them wrong, the mean over sets is p = 1 - C(W, k) / C(G, k), the
    std s = sqrt(p (1 - p)), and A = (1 - p) / (s + eps) for a right rollout, (1 - p - C(W-1, k-1) / C(G-1, k-1)) / (s + eps) for
    a wrong one. A group with fewer than k wrong rollouts has passed: 0, as for one without a right one, or of fewer than k + 1.
    """

    k: int = Field(default=4, ge=1, description="size of the sets")
    threshold: float = Field(default=0.5, description="a rollout is right if its score is larger")
    scale: Literal["sets", "none"] = Field(
        default="sets", description="divided by the std over sets, or by 1 without eps"
    )
    eps: float = Field(default=1e-6, ge=0, description="added to the std")

    @model_validator(mode="after")
    def _read(self) -> PassAtK:
        if self.scale == "none":
            self.refuse_unread("recipe.advantage", "scale=none", "eps")
        return self

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The advantage [N T]."""
        score, member = batch.columns["score"].double(), batch.keep.statistics
        index, count = compact(batch.group)
        right = member & (score > self.threshold)
        size, wrong = count_by(member, index, count), count_by(member & ~right, index, count)
        failed = _share(wrong, size, self.k)  # share of sets without a right one, = 1 - p
        failed_beside = _share(wrong - 1, size - 1, self.k - 1)  # the same among the sets of one wrong rollout
        deviation = (failed * (1 - failed)).sqrt() + self.eps if self.scale == "sets" else torch.ones_like(failed)
        worth = torch.where(right, failed[index], (failed - failed_beside)[index])
        alive = member & ((failed > 0) & (failed < 1))[index]
        return broadcast(masked(divide(worth, deviation[index]), alive), batch.mask)

    def latex(self) -> str:
        """The two values; W counts the wrong ones of the group."""
        k, eps = self.k, f"+{number(self.eps)}" if self.eps else ""
        missed = rf"\binom{{W_g}}{{{k}}}/\binom{{G}}{{{k}}}"
        beside = rf"\binom{{W_g-1}}{{{k - 1}}}/\binom{{G-1}}{{{k - 1}}}"
        top = rf"q_g-\mathbf 1[R_n\le {number(self.threshold)}]\,{beside}"
        whole = rf"\frac{{{top}}}{{\sqrt{{q_g(1-q_g)}}{eps}}}" if self.scale == "sets" else top
        return rf"{whole},\quad q_g={missed}"

    def measure(self, batch: Credited) -> Metrics:
        """The mean over groups of the chance that k of a group's rollouts hold a right one."""
        score, member = batch.columns["score"].double(), batch.keep.statistics
        index, count = compact(batch.group)
        size = count_by(member, index, count)
        whole = size >= self.k
        passed = 1 - _share(count_by(member & (score <= self.threshold), index, count), size, self.k)
        return {"group/pass_at_k": mean(float(masked(passed, whole).sum()), float(whole.sum()))}


def _share(wrong: Float[Tensor, " M"], size: Float[Tensor, " M"], k: int) -> Float[Tensor, " M"]:
    """C(wrong, k) / C(size, k), factor by factor: the chance that k of `size` are all wrong; 0 with fewer than k wrong."""
    out = torch.ones_like(wrong)
    for drawn in range(k):
        out = out * divide((wrong - drawn).clamp(min=0), (size - drawn).clamp(min=0))
    return out
