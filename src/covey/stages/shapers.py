"""Stage `shapers`: advantages are reweighted, in the order of the recipe."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from covey.batch import Batch
from covey.registry import Component, component


@component("shaper", "sign_weight")
class SignWeight(Component):
    """Multiplies positive advantages by one factor and negative ones by another (arXiv 2506.01347)."""

    positive: float = Field(default=1.0, ge=0, description="factor of advantages above 0")
    negative: float = Field(default=1.0, ge=0, description="factor of advantages below 0")

    def __call__(self, advantage: Float[Tensor, "N T"], batch: Batch) -> Float[Tensor, "N T"]:
        """The weighted advantage."""
        return torch.where(advantage > 0, self.positive * advantage, self.negative * advantage)
