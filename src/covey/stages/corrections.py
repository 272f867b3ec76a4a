"""Stage `corrections`: factors for tokens that another distribution sampled than the learner's old policy."""

from __future__ import annotations

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from covey.batch import Batch
from covey.registry import Component, component
from covey.stages.masked import log_ratio, masked
from covey.stages.tex import number


@component("correction", "truncated_importance")
class TruncatedImportance(Component):
    """factor = min(old / sampled, cap) per token, detached (truncated importance sampling between sampler and learner)."""

    cap: float = Field(default=2.0, ge=1, description="largest factor")

    def __call__(self, batch: Batch) -> Float[Tensor, "N T"]:
        """The factor [N T]; 1 where sampler and learner agree."""
        factor = log_ratio(batch.old_logp, batch.sampled_logp, batch.mask).exp().clamp(max=self.cap)
        return masked(factor, batch.mask)

    def latex(self) -> str:
        """The truncated ratio of learner to sampler."""
        return rf"\min\!\big(e^{{\ell^{{old}}_{{n,t}}-\ell^{{samp}}_{{n,t}}}},\,{number(self.cap)}\big)"
