"""Stage `advantage`: generalised advantage estimation, what a token is worth compared with what a critic expected."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from covey.batch import Batch, Credited
from covey.metrics import Metrics, mean
from covey.registry import Per, component
from covey.stages.advantages import Advantage
from covey.stages.masked import broadcast, divide, masked
from covey.stages.mix import last_tokens
from covey.stages.tex import number
from covey.types import STOPS, Stop


@component("advantage", "gae")
class Gae(Advantage):
    """A_t = delta_t + gamma lam A_{t+},  delta_t = r_t + gamma V_{t+} - V_t  (GAE, arXiv 1506.02438), and returns A_t + V_t.

    t+ is the next token that the policy chose: what an environment says in between is no action and takes no time. After the last
    one A and V are 0. A score per row is the reward of its last token. V (`value`) is the critic's word on prompt + y_<t at the
    start of the step, read where token t is predicted. Rows outside the statistics have advantage and returns 0.
    """

    reads: ClassVar[tuple[Per, ...]] = ("row", "token")
    gamma: float = Field(default=1.0, ge=0, le=1, description="what a reward one token later is worth")
    lam: float = Field(
        default=0.95, ge=0, le=1, description="trust in sampled rewards: 1 only they count, 0 only the critic"
    )
    bootstrap_truncated: bool = Field(
        default=False, description="whether a response that was cut off goes on with the critic's value; false: with 0"
    )

    def columns(self) -> tuple[str, ...]:
        """`value`, and `value_end` (of the state after the last token) where truncated responses go on with it."""
        return ("value", "value_end") if self.bootstrap_truncated else ("value",)

    def latex(self) -> str:
        """The advantage, what it sums, and the returns, with these options."""
        end = r"V_{T+1}\text{ after a cut, else }0" if self.bootstrap_truncated else "0"
        later, decay = _times(self.gamma, r"V_{n,t^+}"), _times(self.gamma * self.lam, r"A_{n,t^+}")
        return (
            rf"\delta_{{n,t}}{decay},\quad \delta_{{n,t}} = R_{{n,t}}{later} - V_{{n,t}},\quad "
            rf"\mathrm{{ret}}_{{n,t}} = A_{{n,t}}+V_{{n,t}}\quad (A_{{t^+}}=0,\ V_{{t^+}}={end}\text{{ after the last token}})"
        )

    def exemptions(self) -> dict[str, str]:
        """Equal rewards still differ from what the critic expected of each."""
        return {"equal_rewards": "rewards are compared with the critic's values, not with each other"}

    def __call__(self, batch: Batch) -> tuple[Float[Tensor, "N T"], dict[str, Tensor]]:
        """The advantage [N T], and the column `returns` [N T] that the critic learns."""
        counted = batch.mask & batch.keep.statistics[:, None]
        value = masked(batch.columns["value"].double(), counted)
        score, last = batch.columns["score"].double(), last_tokens(batch.mask)
        reward = masked(score, counted) if score.ndim == 2 else broadcast(score, counted & last)
        advantage = torch.zeros_like(value)
        later, expected = value.new_zeros(batch.size), self._after_the_last(batch)
        for t in reversed(range(value.shape[1])):
            here = counted[:, t]
            delta = reward[:, t] + self.gamma * expected - value[:, t]
            later = torch.where(here, delta + self.gamma * self.lam * later, later)
            expected = torch.where(here, value[:, t], expected)
            advantage[:, t] = masked(later, here)
        return advantage, {"returns": masked(advantage + value, counted)}

    def _after_the_last(self, batch: Batch) -> Float[Tensor, " N"]:
        """V after the last token: 0, or what the critic expects of a response that was cut off."""
        if not self.bootstrap_truncated:
            return torch.zeros(batch.size, dtype=torch.float64, device=batch.mask.device)
        return masked(batch.columns["value_end"].double(), batch.stop == STOPS.index(Stop.LENGTH))

    def measure(self, batch: Credited) -> Metrics:
        """How well the critic foresaw the returns: 1 - Var(returns - V) / Var(returns) over tokens; a constant gives 0."""
        counted = batch.mask & batch.keep.statistics[:, None]
        value, returns = batch.columns["value"][counted].double(), batch.columns["returns"][counted].double()
        tokens = float(value.numel())
        spread, left = ((x - divide(x.sum(), torch.tensor(tokens))).square().sum() for x in (returns, returns - value))
        explained = float(1 - left / spread) if spread > 0 else 0.0
        return {
            "critic/value_mean": mean(float(value.sum()), tokens),
            "critic/return_mean": mean(float(returns.sum()), tokens),
            "critic/explained_variance": mean(explained, float(spread > 0)),
        }


def _times(factor: float, symbol: str) -> str:
    """`+ factor symbol` as LaTeX; nothing where the factor is 0."""
    return "" if factor == 0 else f" + {'' if factor == 1 else number(factor)}{symbol}"
