"""Claims about a critic: what its values take away from the variance of the gradient, and what they leave."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from covey import recipes
from covey.batch import Batch, Credited, Live
from covey.recipes.claims.claim import Claim, Near
from covey.recipes.claims.data import hold, make_batch
from covey.recipes.recipe import Recipe
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.objective import objective

LENGTH, ROWS = 10, 16


def outcome_of(lam: float) -> Recipe:
    """The recipe on the plain outcome, not whitened: what its estimator alone says."""
    return recipes.get("ppo").but(mix="weighted_sum", shapers=(), **{"advantage.lam": lam})


def draw_chain(logits: Tensor, draw: torch.Generator) -> Batch:
    """Rows of ten choices between a right and a wrong one; worth 1 with the share of right ones as its chance, at the end."""
    chance = logits.detach().sigmoid()
    right = torch.rand(ROWS, LENGTH, generator=draw, dtype=torch.float64) < chance
    won = torch.rand(ROWS, generator=draw, dtype=torch.float64) < right.double().mean(1)
    batch = make_batch(right.long(), won.double(), torch.arange(ROWS))
    return hold(batch, _logp(logits, batch))


def _logp(logits: Tensor, batch: Batch) -> Tensor:
    return torch.nn.functional.logsigmoid(torch.where(batch.tokens == 1, logits, -logits))


def _values(table: Tensor, batch: Batch) -> Tensor:
    """The critic's word on each state: the place, and how many right choices came before."""
    before = batch.tokens.cumsum(1) - batch.tokens
    return table[torch.arange(LENGTH)[None], before]


def gradient(recipe: Recipe, logits: Tensor, table: Tensor, batch: Batch) -> Tensor:
    """The gradient of the gain by the ten logits, with the critic's values as they are."""
    batch = batch.with_(columns={"value": _values(table, batch).detach(), "ref_logp": batch.old_logp})
    step = weigh(recipe, credit(recipe, batch, initial_states(recipe))[0])
    loss, _ = objective(recipe, Live(_logp(logits, batch)), step, {})
    return torch.autograd.grad(-loss, logits)[0]


def train(recipe: Recipe, logits: Tensor, draw: torch.Generator, steps: int = 150) -> Tensor:
    """A table of values that the recipe's critic has learnt from fresh rows."""
    table = torch.zeros(LENGTH, LENGTH + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=0.02)
    for _ in range(steps):
        batch = draw_chain(logits, draw)
        batch = batch.with_(columns={"value": _values(table, batch).detach(), "ref_logp": batch.old_logp})
        step: Credited = weigh(recipe, credit(recipe, batch, initial_states(recipe))[0])
        live = Live(batch.old_logp, {"value": _values(table, batch)})
        optimizer.zero_grad()
        recipe.critic.loss(live, step)[0].backward()  # type: ignore[union-attr]
        optimizer.step()
    return table.detach()


def outcome(seed: int) -> Mapping[str, float]:
    """With V = 0 and lam = gamma = 1 the advantage is the outcome on every token."""
    draw = torch.Generator().manual_seed(seed)
    batch = draw_chain(torch.zeros(LENGTH, dtype=torch.float64), draw)
    batch = batch.with_(columns={"value": torch.zeros_like(batch.old_logp), "ref_logp": batch.old_logp})
    recipe = outcome_of(1.0)
    found = credit(recipe, batch, initial_states(recipe))[0].advantage
    return {"largest |A - R|": float((found - batch.reward).abs().max())}


def variance(seed: int) -> Mapping[str, float]:
    """Variance of the gradient with the trained critic against that with V = 0; and how far the means are apart."""
    logits = torch.linspace(-0.5, 0.5, LENGTH, dtype=torch.float64).requires_grad_()
    draw, recipe = torch.Generator().manual_seed(seed), outcome_of(1.0)
    table = train(recipe, logits, draw)
    batches = [draw_chain(logits, draw) for _ in range(200)]
    with_one, without = (
        torch.stack([gradient(recipe, logits, values, batch) for batch in batches])
        for values in (table, torch.zeros_like(table))
    )
    spread = [float(found.var(0).sum()) for found in (with_one, without)]
    return {
        "1 - variance with / without": 1 - spread[0] / spread[1],
        "cosine of the means": float(torch.nn.functional.cosine_similarity(with_one.mean(0), without.mean(0), dim=0)),
        "norm of the mean with / without": float(with_one.mean(0).norm() / without.mean(0).norm()),
    }


claims = (
    Claim(
        name="gae-without-critic",
        recipes=("ppo",),
        says="With V = 0 and gamma = lam = 1 the advantage is the outcome on every token.",
        paper="Equal (arXiv 1506.02438).",
        measures="largest |A - R|, 16 rows of 10 tokens",
        trial=outcome,
        rule=Near(0),
    ),
    Claim(
        name="critic-variance",
        recipes=("ppo",),
        says="A trained critic takes variance from the gradient and leaves its mean.",
        paper="A direction, no number for language models (arXiv 1506.02438).",
        measures="1 - variance of the gradient with / without a trained critic; chain of 10 choices, reward at the end, lam 1",
        trial=variance,
        seeds=6,
    ),
)
