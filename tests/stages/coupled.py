"""Test-only components that couple rows and carry state: nothing that ships does either yet, so these prove the mechanism."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from covey.batch import Credited, Live
from covey.recipes.recipe import Recipe
from covey.registry import Couples, State, component
from covey.stages.kl import k3
from covey.stages.masked import compact, log_ratio, masked
from covey.stages.penalties import Penalty
from covey.stages.surrogates import Surrogate


@component("surrogate", "test_step_coupled")
class StepCoupled(Surrogate):
    """gain = rho A (mean over the step's tokens of rho H): every token's gain depends on every row, through two live outputs."""

    live: ClassVar[tuple[str, ...]] = ("entropy",)
    couples: ClassVar[Couples] = "step"

    def exemptions(self) -> Mapping[str, str]:
        """Its factor is not 1 at the first step."""
        return {"first_step": "multiplies by the step's entropy"}

    def __call__(self, log_ratio: Tensor, live: Live, batch: Credited) -> Tensor:
        """The gain [N T]."""
        ratio = log_ratio.exp()
        tokens = batch.mask.sum().clamp(min=1)
        factor = masked(ratio * live.outputs["entropy"], batch.mask).sum() / tokens
        return masked(ratio * batch.advantage.to(ratio.dtype), batch.mask) * factor


@component("surrogate", "test_group_coupled")
class GroupCoupled(Surrogate):
    """gain = rho A exp(mean log-ratio of its group): depends on the other rows of the group alone."""

    couples: ClassVar[Couples] = "group"

    def exemptions(self) -> Mapping[str, str]:
        """Its factor moves at the first step."""
        return {"first_step": "the factor of the group has a gradient too"}

    def __call__(self, log_ratio: Tensor, live: Live, batch: Credited) -> Tensor:
        """The gain [N T]."""
        index, count = compact(batch.group)
        zero = torch.zeros(count, dtype=log_ratio.dtype)
        total = zero.index_add(0, index, log_ratio.sum(1))
        tokens = zero.index_add(0, index, batch.mask.sum(1).to(log_ratio.dtype)).clamp(min=1)
        factor = (total / tokens).exp()[index][:, None]
        return masked(log_ratio.exp() * batch.advantage.to(log_ratio.dtype) * factor, batch.mask)


@component("penalty", "test_adaptive_kl")
class AdaptiveKl(Penalty):
    """KL to the old policy with a coefficient that follows the KL measured in the step before: state of a live component."""

    coef: float = Field(default=1.0, gt=0, description="the factor of the whole term")
    target: float = Field(default=0.05, gt=0, description="the KL per token that the coefficient steers to")

    def initial(self) -> State:
        """The coefficient before the first step."""
        return {"coef": 0.2}

    def __call__(self, live: Live, batch: Credited, *, state: State) -> Tensor:
        """The cost [N T]."""
        return state["coef"] * self._kl(live, batch)

    def sums(self, live: Live, batch: Credited) -> Mapping[str, float]:
        """What `advance` needs, as sums over the rows of a slice."""
        return {"kl": float(self._kl(live, batch).detach().double().sum()), "tokens": float(batch.mask.sum())}

    def advance(self, state: State, sums: Mapping[str, float]) -> State:
        """Raise the coefficient by up to 20 % when the KL was above the target, lower it when below."""
        measured = sums["kl"] / max(sums["tokens"], 1.0)
        return {"coef": state["coef"] * (1 + min(max(measured / self.target - 1, -0.2), 0.2))}

    def _kl(self, live: Live, batch: Credited) -> Tensor:
        return masked(k3(log_ratio(live.logp, batch.old_logp.to(live.logp.dtype), batch.mask)), batch.mask)


def coupled(surrogate: Surrogate | None = None) -> Recipe:
    """A recipe with a coupled surrogate (of the step, unless another is given) and the adaptive penalty."""
    return Recipe(
        name="test_coupled",
        mix="weighted_sum",
        advantage="group_norm",
        weighting="rollout_mean",
        ratio="token",
        surrogate=surrogate or StepCoupled(),
        penalties=(AdaptiveKl(),),
    )
