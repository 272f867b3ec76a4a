"""Stage `advantage`: what is still to come of the score at each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from covey.batch import Batch
from covey.registry import Per, component
from covey.stages.advantages import Advantage
from covey.stages.masked import masked
from covey.stages.mix import last_tokens
from covey.stages.tex import number


@component("advantage", "return_to_go")
class ReturnToGo(Advantage):
    """A_t = R_t + gamma R_t+ + gamma^2 R_t++ ..., over the tokens that the policy chose, without a baseline (arXiv 2501.03262).

    t+ is the policy's next token: what an environment says in between neither resets the return nor discounts it. A score per
    row stands on the row's last policy token. Rows outside the statistics get 0.
    """

    reads: ClassVar[tuple[Per, ...]] = ("row", "token")

    gamma: float = Field(default=1.0, ge=0, le=1, description="what a reward one policy token later is worth")

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The advantage [N T]."""
        score, counted = batch.columns["score"].double(), batch.mask & batch.keep.statistics[:, None]
        if score.dim() == 1:
            score = torch.where(last_tokens(batch.mask), score[:, None], torch.zeros_like(score)[:, None])
        reward = masked(score, counted)
        if self.gamma == 1:
            return masked(reward.flip(1).cumsum(1).flip(1), counted)
        out, later = torch.zeros_like(reward), torch.zeros_like(reward.sum(1))
        for t in reversed(range(reward.shape[1])):
            later = torch.where(counted[:, t], reward[:, t] + self.gamma * later, later)
            out[:, t] = later
        return masked(out, counted)

    def latex(self) -> str:
        """The sum over later policy tokens; d counts them from t on."""
        discount = "" if self.gamma == 1 else rf"{number(self.gamma)}^{{d(t,t')}}\,"
        return rf"\sum_{{t'\ge t}}{discount}R_{{n,t'}}"

    def exemptions(self) -> Mapping[str, str]:
        """There is nothing that a return is compared with."""
        return {"equal_rewards": "without a baseline the reward itself is the advantage"}
