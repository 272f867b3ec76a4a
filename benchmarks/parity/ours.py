"""covey's side: loss and gradient, or advantages, of a preset with changes on one undivided batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.parity.data import Case
from covey import recipes
from covey.batch import Credited, Live
from covey.recipes.recipe import Recipe
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.masked import broadcast
from covey.stages.objective import objective


@dataclass(frozen=True)
class Found:
    """What a peer's function gave: a loss with its gradient by logp, or advantages [N T]; and whose preset must equal it.

    `call` names the peer's function, `mode` its aggregation; `preset` and `changes` make our recipe: `get(preset).but(...)`;
    `where` names the batch, `tokenwise` says that each token has an advantage of its own, `limit` is the difference that must
    not be exceeded (more than 1e-9 only where the peer works in float32).
    """

    kind: Literal["loss", "advantage", "critic"]
    call: str
    mode: str
    preset: str
    tensor: Tensor
    loss: float = 0.0
    changes: dict[str, Any] = field(default_factory=dict)
    where: str = "ragged"
    limit: float = 1e-9
    note: str = ""
    tokenwise: bool = False

    @property
    def recipe(self) -> Recipe:
        """Our recipe."""
        return recipes.get(self.preset).but(**self.changes)

    def difference(self, cases: Mapping[str, Case]) -> float:
        """The largest |difference| of loss and gradient (or of advantages) between the peer and covey."""
        case = cases[self.where]
        if self.kind == "advantage":
            gap = torch.where(case.mask, advantage(self.recipe, case) - self.tensor, 0.0)
            return float(gap.abs().max())
        if self.kind == "critic":
            loss, gradient = critic_loss(self.recipe, case)
        else:
            loss, gradient = loss_and_gradient(self.recipe, case, case.token_advantage if self.tokenwise else None)
        return max(abs(loss - self.loss), float((gradient - self.tensor).abs().max()))


def words(options: Mapping[str, Any]) -> str:
    """Options as `name=value`, for the page."""
    return ", ".join(f"{name}={value}" for name, value in options.items())


def loss_and_gradient(recipe: Recipe, case: Case, per_token: Tensor | None = None) -> tuple[float, Tensor]:
    """The loss of one optimizer step on the given advantages, and its gradient by the policy's logp."""
    batch = case.batch()
    for part in recipe.filters:
        batch = batch.with_(keep=batch.keep & part(batch))
    given = broadcast(case.advantage, case.mask) if per_token is None else per_token
    ones = broadcast(torch.ones(case.size, dtype=torch.float64), case.mask)
    columns = {**batch.columns, "correction": ones, "score": case.reward.sum(1)}
    credited = Credited(**{**vars(batch), "columns": columns}, advantage=given, weight=torch.zeros_like(given))
    logp = case.logp.clone().requires_grad_()
    loss, _ = objective(recipe, Live(logp), weigh(recipe, credited), initial_states(recipe))
    (gradient,) = torch.autograd.grad(loss, logp)
    return float(loss.detach()), gradient


def critic_loss(recipe: Recipe, case: Case) -> tuple[float, Tensor]:
    """The critic's loss of one optimizer step on the given returns, and its gradient by the values."""
    batch, zeros = case.batch(), torch.zeros(case.mask.shape, dtype=torch.float64)
    step = Credited(
        **{**vars(batch), "columns": {**batch.columns, "returns": case.returns}}, advantage=zeros, weight=zeros
    )
    step = step.with_(penalty_weight={recipe.critic.kind: recipe.critic.weigh(step)})
    value = case.new_value.clone().requires_grad_()
    loss, _ = recipe.critic.loss(Live(case.logp, {"value": value}), step)
    (gradient,) = torch.autograd.grad(loss, value)
    return float(loss.detach()), gradient


def advantage(recipe: Recipe, case: Case) -> Tensor:
    """The advantages [N T] that credit gives."""
    batch = case.batch()
    return credit(recipe, batch, initial_states(recipe))[0].advantage
