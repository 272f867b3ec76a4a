"""Stage `ratio`: the log-ratio of the policy to the one that a step started from (or sampled with), per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from covey.batch import Credited, Live
from covey.registry import Component, component
from covey.stages.masked import LOG_RATIO_LIMIT, divide, log_ratio, masked


class Ratio(Component):
    """A log-ratio with its anchor: `old` (the learner at the start of the step) or `sampled` (what the sampler reported).

    `grain` says what one value is of: a `token`, or a `sequence` whose tokens all carry the same value.
    """

    grain: ClassVar[Literal["token", "sequence"]] = "token"

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

    def tokenwise_latex(self, t: str = "t") -> str:
        """The log-ratio of token t as LaTeX."""
        anchor = "old" if self.anchor == "old" else "samp"
        return rf"\ell^{{\theta}}_{{n,{t}}}-\ell^{{{anchor}}}_{{n,{t}}}"

    def sum_latex(self) -> str:
        """The sum of a row's token log-ratios as LaTeX."""
        token = self.tokenwise_latex("t'")
        return rf"\sum_{{t'}}\left({token}\right)"


@component("ratio", "token")
class TokenRatio(Ratio):
    """log rho_t = log pi(y_t) - log pi_old(y_t) (arXiv 1707.06347)."""

    def __call__(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The log-ratio [N T]."""
        return self.tokenwise(live, batch)

    def latex(self) -> str:
        """The difference of two log-probabilities."""
        return self.tokenwise_latex()


@component("ratio", "sequence")
class SequenceRatio(Ratio):
    """The mean of a row's token log-ratios, the same on each of its tokens: the length-normalised ratio (arXiv 2507.18071)."""

    grain: ClassVar[Literal["token", "sequence"]] = "sequence"

    def __call__(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The log-ratio [N T]; a row without tokens has 0."""
        return _mean(self.tokenwise(live, batch), batch)

    def latex(self) -> str:
        """The mean over the row."""
        return rf"\frac{{1}}{{L_n}}{self.sum_latex()}"


@component("ratio", "sequence_token")
class SequenceTokenRatio(Ratio):
    """The value of the length-normalised sequence ratio with the gradient of the token's own: sg(s_n) exp(l - sg(l)).

    With one advantage per row it has the value and the gradient of `sequence` under a weighting that is the same on the tokens
    of a row; it also takes an advantage per token (arXiv 2507.18071, section 4.3). Above `ceiling` there is no gradient.
    """

    grain: ClassVar[Literal["token", "sequence"]] = "sequence"

    ceiling: float = Field(
        default=LOG_RATIO_LIMIT, gt=0, le=LOG_RATIO_LIMIT, description="largest log-ratio that is not cut"
    )

    def __call__(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The log-ratio [N T]."""
        token = self.tokenwise(live, batch)
        return (_mean(token, batch).detach() + (token - token.detach())).clamp(max=self.ceiling)

    def latex(self) -> str:
        """The value of the row beside the gradient of the token."""
        own = r"\ell^{\theta}_{n,t}-\operatorname{sg}(\ell^{\theta}_{n,t})"
        whole = rf"\operatorname{{sg}}\left(\frac{{1}}{{L_n}}{self.sum_latex()}\right)+{own}"
        return whole if self.ceiling == LOG_RATIO_LIMIT else rf"\min\left({whole},\ {self.ceiling:g}\right)"


@component("ratio", "sequence_sum")
class SequenceSumRatio(Ratio):
    """The sum of a row's token log-ratios: the ratio of whole responses, without length normalisation.

    Its spread grows with the square root of the length. The sum is clamped to +-20 like every log-ratio, counted as
    `ratio/clamped`: a clamped row has no gradient.
    """

    grain: ClassVar[Literal["token", "sequence"]] = "sequence"

    def __call__(self, live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The log-ratio [N T]; a row without tokens has 0."""
        total = self.tokenwise(live, batch).sum(1, keepdim=True).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return masked(total.expand(batch.mask.shape), batch.mask)

    def exemptions(self) -> Mapping[str, str]:
        """A sum has the gradient of each of its terms, a mean a share of it."""
        reason = "each token of a row has the gradient of the whole response: the row's weight, not its own"
        return {**super().exemptions(), "first_step": reason}

    def latex(self) -> str:
        """The sum over the row."""
        return self.sum_latex()


def _mean(token: Float[Tensor, "N T"], batch: Credited) -> Float[Tensor, "N T"]:
    """The mean over a row's tokens, on each of them."""
    length = batch.mask.sum(1, keepdim=True).to(token.dtype)
    return masked(divide(token.sum(1, keepdim=True), length).expand_as(token), batch.mask)
