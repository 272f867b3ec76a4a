"""Stage `weighting`: the whole normalisation of the loss as one tensor, formed over an optimizer step before anything is split.

Every weighting gives `weight[N T]`, and the loss of any slice of rows is the plain sum of weight * term: micro-batches, packing,
accumulation and ranks cannot change the gradient. Rows that a filter took out of the loss have weight 0; whether they still
count in a denominator is the filter's word (`keep.denominator`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from covey.batch import Batch
from covey.registry import Component, component
from covey.stages.masked import compact, divide, sum_by


def _per_row(batch: Batch, per_row: Float[Tensor, " N"]) -> Float[Tensor, "N T"]:
    counted = batch.mask & batch.keep.loss[:, None]
    return torch.where(counted, per_row[:, None], torch.zeros((), dtype=torch.float64))


def _lengths(batch: Batch, counted: Bool[Tensor, " N"]) -> Float[Tensor, " N"]:
    return torch.where(counted, batch.mask.sum(1), 0).double()


@component("weighting", "token_mean")
class TokenMean(Component):
    """1 / (all tokens of the step): every token counts the same (arXiv 2503.14476, as all code reads it)."""

    def latex(self) -> str:
        """The weight."""
        return r"\frac{1}{T}"

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The weight [N T]."""
        tokens = _lengths(batch, batch.keep.denominator).sum()
        return _per_row(batch, divide(torch.ones(batch.size, dtype=torch.float64), tokens.expand(batch.size)))


@component("weighting", "group_token_mean")
class GroupTokenMean(Component):
    """1 / (groups * tokens of the row's group): a token mean inside each prompt (arXiv 2503.14476 eq. 8, to the letter)."""

    def latex(self) -> str:
        """The weight."""
        return r"\frac{1}{B\,\sum_{k\in g(n)}L_k}"

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The weight [N T]."""
        index, count = compact(batch.group)
        tokens = sum_by(_lengths(batch, batch.keep.denominator), index, count)
        groups = _units(batch.group, batch.keep.denominator)
        return _per_row(batch, divide(torch.ones_like(tokens), tokens * groups)[index])


@component("weighting", "group_sum")
class GroupSum(Component):
    """1 / groups on every counted token: the terms of a group are summed, and the step is the mean over its groups.

    For surrogates whose gain is one value per group (`residual`, `contrast`), which they spread evenly over the group's tokens:
    the step's gain is then exactly the mean of these values. Groups without a counted token have the value 0 and still count.
    """

    def latex(self) -> str:
        """The weight."""
        return r"\frac{1}{B}"

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The weight [N T]."""
        groups = _units(batch.group, batch.keep.denominator)
        return _per_row(batch, divide(torch.ones(batch.size, dtype=torch.float64), groups.expand(batch.size)))


def _units(ids: Int[Tensor, " N"], counted: Bool[Tensor, " N"]) -> Float[Tensor, ""]:
    return torch.tensor(float(torch.unique(ids[counted]).numel()), dtype=torch.float64)


class _PerUnit(Component):
    """A weighting that speaks of rollouts (which may have several rows) or of rows."""

    unit: Literal["rollout", "row"] = Field(default="rollout", description="what one vote belongs to")

    def ids(self, batch: Batch) -> Int[Tensor, " N"]:
        """The unit of each row."""
        return batch.rollout if self.unit == "rollout" else torch.arange(batch.size)


@component("weighting", "rollout_mean")
class RolloutMean(_PerUnit):
    """1 / (rollouts * tokens of the rollout): every response counts the same (arXiv 2402.03300)."""

    def latex(self) -> str:
        """The weight."""
        return r"\frac{1}{N\,L_n}"

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The weight [N T]."""
        ids = self.ids(batch)
        index, count = compact(ids)
        tokens = sum_by(_lengths(batch, batch.keep.loss), index, count)
        return _per_row(batch, divide(torch.ones_like(tokens), tokens * _units(ids, batch.keep.denominator))[index])


@component("weighting", "rollout_sum")
class RolloutSum(_PerUnit):
    """1 / rollouts: a response counts as its tokens' sum, the gradient of its whole log-probability (Williams 1992)."""

    def latex(self) -> str:
        """The weight."""
        return r"\frac{1}{N}"

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The weight [N T]."""
        units = _units(self.ids(batch), batch.keep.denominator)
        return _per_row(batch, divide(torch.ones(batch.size, dtype=torch.float64), units.expand(batch.size)))


@component("weighting", "constant")
class Constant(_PerUnit):
    """1 / (rollouts * C) with C constant for the whole run (arXiv 2503.20783): length has no say.

    `limit` takes each row's token budget, which the run's `max_tokens` fixes; never the padded width.
    """

    divisor: Literal["limit"] | Annotated[int, Field(ge=1)] = Field(
        default="limit", description="C in tokens; limit: the token budget of the row"
    )

    def latex(self) -> str:
        """The weight."""
        return rf"\frac{{1}}{{N\cdot {'C' if self.divisor == 'limit' else self.divisor}}}"

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The weight [N T]."""
        units = _units(self.ids(batch), batch.keep.denominator)
        constant = (
            batch.limit.double() if self.divisor == "limit" else torch.full_like(batch.limit, self.divisor).double()
        )
        return _per_row(batch, divide(torch.ones(batch.size, dtype=torch.float64), constant * units))
