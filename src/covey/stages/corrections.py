"""Stage `corrections`: factors for tokens that another distribution sampled than the learner's old policy."""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from covey.batch import Batch
from covey.registry import Component, component
from covey.stages.masked import divide, log_ratio, masked
from covey.stages.tex import number


@component("correction", "truncated_importance")
class TruncatedImportance(Component):
    """factor = min(old / sampled, cap) per token, detached (truncated importance sampling between sampler and learner).

    unit `row`: one factor for all tokens of a row, the geometric mean of theirs; for gains that are geometric means themselves.
    """

    cap: float = Field(default=2.0, ge=1, description="largest factor")
    unit: Literal["token", "row"] = Field(default="token", description="what one factor is of; row: the geometric mean")

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The factor [N T]; 1 where sampler and learner agree."""
        factor = log_ratio(batch.old_logp, batch.sampled_logp, batch.mask).clamp(max=math.log(self.cap))
        if self.unit == "row":
            length = batch.mask.sum(1, keepdim=True).to(factor.dtype)
            factor = divide(factor.sum(1, keepdim=True), length).expand(batch.mask.shape)
        return masked(factor.exp(), batch.mask)

    def latex(self) -> str:
        """The truncated ratio of learner to sampler."""
        if self.unit == "token":
            return rf"\min\!\big(e^{{\ell^{{old}}_{{n,t}}-\ell^{{samp}}_{{n,t}}}},\,{number(self.cap)}\big)"
        token = rf"\min\!\big(\ell^{{old}}_{{n,t'}}-\ell^{{samp}}_{{n,t'}},\,\log {number(self.cap)}\big)"
        return rf"\exp\left(\frac{{1}}{{L_n}}\sum_{{t'}}{token}\right)"
