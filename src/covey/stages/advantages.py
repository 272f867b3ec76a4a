"""Stage `advantage`: what a row (or token) is worth compared with its baseline, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from covey.batch import Batch
from covey.errors import ConfigError
from covey.registry import Component, Per, State, component
from covey.stages.masked import broadcast, compact, count_by, divide, masked, moments_by

Part = TypeVar("Part", bound=Component)


def _refuse_unread(part: Part, choice: str, *names: str) -> Part:
    """The part itself; refused if options that nobody reads under this choice differ from their defaults."""
    for name in names:
        if getattr(part, name) != type(part).model_fields[name].default:
            raise ConfigError(f"recipe.advantage.{name}", f"nobody reads it with {choice}", "Leave it out.")
    return part


class Advantage(Component):
    """Makes the advantage [N T] of the column `score`. `reads` says which scores it understands."""

    reads: ClassVar[tuple[Per, ...]] = ("row",)


@component("advantage", "group_norm")
class GroupNorm(Advantage):
    """A = (R - baseline of its prompt's group) / (scale + eps), the same on every token of the row.

    baseline `mean`: mean of the group; `leave_one_out`: mean of the others, G/(G-1) (R - mean) (arXiv 2402.14740).
    scale `none`: 1, no eps (arXiv 2503.20783); `group`: the group's std (arXiv 2402.03300); `batch`: the std of all raw scores of
    the rollout batch (arXiv 2508.08221). A group of one, or of equal scores, gets exactly 0. Rows outside the statistics get 0.
    """

    baseline: Literal["mean", "leave_one_out"] = Field(default="mean", description="what a row is compared with")
    scale: Literal["none", "group", "batch"] = Field(default="group", description="what the difference is divided by")
    ddof: Literal[0, 1] = Field(default=1, description="1: unbiased variance; 0: population variance")
    eps: float = Field(default=1e-6, ge=0, description="added to the std after the square root")

    @model_validator(mode="after")
    def _read(self) -> GroupNorm:
        return _refuse_unread(self, "scale=none", "ddof", "eps") if self.scale == "none" else self

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The advantage [N T]."""
        score, member = batch.columns["score"], batch.keep.statistics
        index, count = compact(batch.group)
        mean, std = moments_by(score, member, index, count, self.ddof)
        centered = masked(score.double() - mean[index], member)
        if self.baseline == "leave_one_out":
            size = count_by(member, index, count)
            centered = centered * divide(size, size - 1)[index]
        if self.scale == "group":
            centered = divide(centered, std[index] + self.eps)
        if self.scale == "batch":
            everyone = torch.zeros_like(index)
            _, spread = moments_by(score, member, everyone, 1, self.ddof)
            centered = divide(centered, spread[everyone] + self.eps)
        return broadcast(centered, batch.mask)


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
        return self if self.baseline == "moving" else _refuse_unread(self, f"baseline={self.baseline}", "decay")

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
