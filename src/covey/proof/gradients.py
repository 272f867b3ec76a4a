"""The gradient of one optimizer step on a random batch: undivided, in slices, over ranks, in two passes."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor

from covey.batch import Batch, Credited, Live
from covey.engines.slices import Plan
from covey.engines.slices import cut as narrow
from covey.metrics import Metrics, merge
from covey.proof.data import Policy, draw_batch
from covey.recipes.recipe import Recipe
from covey.recipes.rules import RULES, RUN_RULES
from covey.registry import Couples, State
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.objective import couples, objective, outputs

WAIVED = tuple(rule.name for rule in (*RULES, *RUN_RULES))
"""Every refusal: a proof takes recipes apart, and what is left need not be a method that anyone would train with."""


def bare(recipe: Recipe) -> Recipe:
    """The recipe without what teaches beside the rewards: penalties and a critic."""
    return recipe.but(penalties=(), reference="initial", critic=None, waivers=WAIVED)


def case(recipe: Recipe, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Policy, Batch]:
    """A policy and a batch near it, with the columns that the recipe needs; rewards are 0 or 1 for even seeds."""
    policy = Policy(seed, dtype)
    batch = draw_batch(seed, graded=bool(seed % 2), columns=recipe.needs() or ("ref_logp",))
    return policy, policy.on(batch, seed)


def prepare(recipe: Recipe, batch: Batch) -> tuple[Credited, dict[str, State]]:
    """A whole rollout batch as one optimizer step."""
    credited, states, _ = credit(recipe, batch, initial_states(recipe))
    return weigh(recipe, credited), states


def whole(recipe: Recipe, policy: Policy, batch: Batch) -> Tensor:
    """The gradient of the undivided step."""
    step, states = prepare(recipe, batch)
    return slice_gradient(recipe, policy, step, states)[0]


def slice_gradient(
    recipe: Recipe, policy: Policy, part: Credited, states: Mapping[str, State]
) -> tuple[Tensor, Metrics]:
    """The gradient that one slice of rows adds, and its metrics."""
    loss, metrics = objective(recipe, policy.forward(part, outputs(recipe)), part, states)
    return policy.gradient(loss), metrics


def units(batch: Batch, coupling: Couples) -> list[Tensor]:
    """The smallest sets of rows that may be torn from each other."""
    if coupling == "step":
        return [torch.arange(batch.size)]
    if coupling == "row":
        return [torch.tensor([row]) for row in range(batch.size)]
    return [(batch.group == group).nonzero().squeeze(1) for group in sorted(set(batch.group.tolist()))]


def cut(batch: Batch, coupling: Couples, seed: int) -> list[Tensor]:
    """The rows in random slices of whole units, in random order."""
    draw, pieces = random.Random(seed), units(batch, coupling)
    draw.shuffle(pieces)
    slices: list[list[Tensor]] = [[] for _ in range(draw.randint(1, max(len(pieces), 1)))]
    for piece in pieces:
        draw.choice(slices).append(piece)
    return [torch.cat(part) for part in slices if part]


def deal(batch: Batch, ranks: int, seed: int) -> Plan:
    """The rows dealt to ranks at random, groups torn apart; a rank may get none."""
    draw = random.Random(seed)
    shares: Plan = [[] for _ in range(ranks)]
    for row in range(batch.size):
        draw.choice(shares).append(row)
    return shares


def divided(recipe: Recipe, policy: Policy, batch: Batch, seed: int) -> tuple[Tensor, Metrics]:
    """The gradient as a sum over random slices."""
    step, states = prepare(recipe, batch)
    return add_up(recipe, policy, step, states, [index.tolist() for index in cut(step, couples(recipe), seed)])


def add_up(
    recipe: Recipe, policy: Policy, step: Credited, states: Mapping[str, State], plan: Plan
) -> tuple[Tensor, Metrics]:
    """The gradient as a sum over slices, and the merged metrics."""
    parts = [slice_gradient(recipe, policy, step.rows(torch.tensor(index)), states) for index in plan if index]
    return torch.stack([gradient for gradient, _ in parts]).sum(0), merge(metrics for _, metrics in parts)


def two_pass(recipe: Recipe, policy: Policy, batch: Batch, seed: int) -> tuple[Tensor, Metrics]:
    """The gradient of a coupled recipe over slices smaller than its unit: coefficients first, then slice by slice."""
    step, states = prepare(recipe, batch)
    gradient, reports = torch.zeros_like(slice_gradient(recipe, policy, step, states)[0]), []
    for unit in units(step, couples(recipe)):
        part = step.rows(unit)
        added, metrics = in_two_passes(recipe, policy, part, states, [i.tolist() for i in cut(part, "row", seed)])
        gradient += added
        reports.append(metrics)
    return gradient, merge(reports)


def in_two_passes(
    recipe: Recipe, policy: Policy, part: Credited, states: Mapping[str, State], plan: Plan
) -> tuple[Tensor, Metrics]:
    """dJ/dx of every live output x from the whole part without the policy's graph, then the sum of (dJ/dx * x) by slices."""
    with torch.no_grad():
        seen = policy.forward(part, outputs(recipe)).tensors()
    leaves = {name: value.requires_grad_() for name, value in seen.items()}
    loss, metrics = objective(recipe, Live.of(leaves), part, states)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if loss.requires_grad else ()
    coefficients = {name: grad for name, grad in zip(leaves, found, strict=False) if grad is not None}
    gradient = policy.gradient(loss.detach())
    for index in filter(None, plan):
        live = policy.forward(part.rows(torch.tensor(index)), outputs(recipe)).tensors()
        terms = [(coefficient[index] * live[name]).sum() for name, coefficient in coefficients.items()]
        if terms:
            gradient = gradient + policy.gradient(torch.stack(terms).sum())
    return gradient, metrics


def packed(recipe: Recipe, policy: Policy, batch: Batch, seed: int) -> Tensor:
    """The gradient as a sum over random slices, each cut to the width of its longest row as engines cut them."""
    step, states = prepare(recipe, batch)
    plan = [narrow(step, index.tolist(), step.tokens.device) for index in cut(step, couples(recipe), seed)]
    return torch.stack([slice_gradient(recipe, policy, part, states)[0] for part in plan]).sum(0)
