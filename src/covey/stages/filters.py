"""Stage `filters`: which rows count in the loss, in statistics, in denominators. Several are combined by AND."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from covey.batch import Batch, Keep
from covey.registry import Component, component
from covey.stages.masked import compact, spread_by
from covey.types import STOPS, Stop


@component("filter", "overlong")
class Overlong(Component):
    """Takes truncated responses out of the loss: their reward says nothing of what they would have become.

    `mask`: no loss, but the reward stays in the group's statistics and the row in the denominators; `exclude`: out of the
    statistics too (arXiv 2503.14476 section 3.4; peers differ, so it is an option). A response that ends with its stop token
    exactly at the limit is not truncated.
    """

    mode: Literal["mask", "exclude"] = Field(default="mask", description="what truncated rows are taken out of")

    def __call__(self, batch: Batch) -> Keep:
        """Keep rows that were not cut off."""
        whole = batch.stop != STOPS.index(Stop.LENGTH)
        yes = torch.ones_like(whole)
        return Keep(loss=whole, statistics=whole if self.mode == "exclude" else yes, denominator=yes)


@component("filter", "varied")
class Varied(Component):
    """Takes groups with all-equal scores out of the loss and, if asked, out of the denominators."""

    tolerance: float = Field(default=0.0, ge=0, description="largest max - min that still counts as all equal")
    denominator: Literal["all", "kept"] = Field(
        default="all", description="whether dropped rows still count in denominators"
    )

    def __call__(self, batch: Batch) -> Keep:
        """Keep rows of groups whose scores differ."""
        index, count = compact(batch.group)
        score = batch.columns["score"]
        spread = spread_by(score, batch.keep.statistics & ~score.isnan(), index, count)
        varied = (spread > self.tolerance)[index]
        yes = torch.ones_like(varied)
        return Keep(loss=varied, statistics=yes, denominator=varied if self.denominator == "kept" else yes)
