"""Stage `ratio`: the log-ratio of the policy to the one that a step started from (or sampled with), per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from covey.batch import Credited, Live
from covey.registry import Component, component
from covey.stages.masked import divide, log_ratio, masked


class Ratio(Component):
    """A log-ratio with its anchor: `old` (the learner at the start of the step) or `sampled` (what the sampler reported)."""

    anchor: Literal["old", "sampled"] = Field(default="old", description="the policy in the denominator")

    def exemptions(self) -> Mapping[str, str]:
        """A sampler is not the learner."""
        if self.anchor == "old":
            return {}
        return {"first_step": "the ratio to the sampler is not 1 where the learner has not moved"}

    def tokenwise(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """log(policy / anchor) of each token, masked and clamped."""
        anchor = batch.old_logp if self.anchor == "old" else batch.sampled_logp
        return log_ratio(live.logp, anchor.to(live.logp.dtype), batch.mask)


@component("ratio", "token")
class TokenRatio(Ratio):
    """log rho_t = log pi(y_t) - log pi_old(y_t) (arXiv 1707.06347)."""

    def __call__(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The log-ratio [N T]."""
        return self.tokenwise(live, batch)


@component("ratio", "sequence")
class SequenceRatio(Ratio):
    """The mean of a row's token log-ratios, the same on each of its tokens: the length-normalised ratio (arXiv 2507.18071)."""

    def __call__(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The log-ratio [N T]; a row without tokens has 0."""
        token = self.tokenwise(live, batch)
        length = batch.mask.sum(1, keepdim=True).to(token.dtype)
        mean = divide(token.sum(1, keepdim=True), length)
        return masked(mean.expand_as(token), batch.mask)
