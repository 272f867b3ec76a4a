"""Batches without an engine: rows made of tensors, and the direction in which a recipe moves a policy on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from covey.batch import Batch, Credited, Keep, Live
from covey.recipes.recipe import Recipe
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.objective import objective, outputs
from covey.types import STOPS, Stop


def make_batch(
    tokens: Tensor,
    reward: Tensor,
    group: Tensor,
    *,
    mask: Tensor | None = None,
    prompts: Sequence[int] | None = None,
    limit: int | None = None,
    names: Sequence[str] = (),
) -> Batch:
    """Rows of one rollout each: `tokens` [N T], `reward` [N] or [N K], `group` [N]; `prompts` says which prompt a group asks.

    Rows whose mask fills the limit without having chosen to stop are the caller's to mark; here all have ended.
    """
    n, width = tokens.shape
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    reward = reward[:, None] if reward.dim() == 1 else reward
    ids = [int(g) for g in torch.unique(group)]
    zero = torch.zeros(n, width, dtype=torch.float64)
    return Batch(
        prompts={g: (g if prompts is None else prompts[g],) for g in ids},
        tokens=tokens,
        mask=mask,
        sampled_logp=zero,
        old_logp=zero,
        turn=torch.zeros_like(tokens),
        version=torch.zeros_like(tokens),
        length=mask.sum(1),
        group=group,
        rollout=torch.arange(n),
        stop=torch.full((n,), STOPS.index(Stop.END)),
        limit=torch.full((n,), limit or width),
        reward=reward.double(),
        reward_names=tuple(names) or tuple(f"part{k}" for k in range(reward.shape[1])),
        reward_weights=(1.0,) * reward.shape[1],
        keep=Keep.all(n),
    )


def bandit(draws: Sequence[tuple[int, ...]], reward: Tensor) -> Batch:
    """One group per draw, one token per response: the arm, which is worth `reward[arm]`."""
    arms = torch.tensor(draws).flatten()
    group = torch.arange(len(draws)).repeat_interleave(len(draws[0]))
    return make_batch(arms[:, None], reward[arms], group)


def hold(batch: Batch, logp: Tensor, columns: Mapping[str, Tensor] | None = None) -> Batch:
    """The batch as the policy of `logp` sampled it; that policy is the reference too, unless columns say otherwise."""
    held = torch.where(batch.mask, logp.detach(), 0.0)
    return batch.with_(old_logp=held, sampled_logp=held, columns={"ref_logp": held, **(columns or {})})


def prepare(recipe: Recipe, batch: Batch) -> Credited:
    """Credit and weights of a batch that is one optimizer step, from the recipe's first state."""
    return weigh(recipe, credit(recipe, batch, initial_states(recipe))[0])


def loss_of(recipe: Recipe, logits: Tensor, step: Credited) -> Tensor:
    """The recipe's loss on rows of one bandit: all live outputs follow from its logits [V]."""
    logp = logits.log_softmax(-1)
    chosen = logp[step.tokens]
    entropy = -(logp.exp() * logp).sum(-1).expand(step.tokens.shape)
    wanted = {name: {"entropy": entropy}[name] for name in outputs(recipe)}
    return objective(recipe, Live(chosen, wanted), step, initial_states(recipe))[0]


def ascend(recipe: Recipe, batch: Batch, logits: Tensor, chance: Tensor | None = None) -> Tensor:
    """The direction that a recipe moves the logits in, rows weighted by `chance` where batches share one tensor."""
    logits = logits.detach().clone().requires_grad_()
    step = prepare(recipe, hold(batch, logits.log_softmax(0)[batch.tokens]))
    if chance is not None:
        step = step.with_(weight=step.weight * chance[:, None])
    (gradient,) = torch.autograd.grad(-loss_of(recipe, logits, step), logits)
    return gradient
