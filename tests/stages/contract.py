"""Every recipe and component that is registered, and the gradient of one optimizer step, divided in any way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Literal, get_args, get_origin

import torch
from torch import Tensor

from covey import recipes
from covey.batch import Batch, Credited, Live
from covey.errors import ConfigError
from covey.metrics import Metrics, merge
from covey.recipes.recipe import MANY, STAGES, Recipe
from covey.recipes.rules import RULES, RUN_RULES
from covey.registry import Component, Couples, State, kinds
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.objective import couples, objective, outputs
from covey.stages.surrogates import Surrogate
from tests.stages import coupled  # registers the test-only components that are meant to be right
from tests.stages.data import Policy, draw_batch

BASE = Recipe(
    name="base",
    mix="weighted_sum",
    advantage="group_norm",
    weighting="rollout_mean",
    ratio="token",
    surrogate="clip",
    waivers=tuple(rule.name for rule in (*RULES, *RUN_RULES)),
)


def all_recipes() -> list[Recipe]:
    """Every recipe that ships or is installed."""
    return [recipes.get(name) for name in recipes.names()]


def values(cls: type[Component]) -> Iterator[Component]:
    """A component with its defaults, and with every other choice of every closed option."""
    yield cls()
    for name, field in cls.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        for choice in choices:
            if choice != field.default:
                yield from _accepted(cls, {name: choice})


def _accepted(cls: type[Component], options: Mapping[str, object]) -> Iterator[Component]:
    try:
        yield cls(**options)
    except ConfigError:
        return


def component_recipes() -> dict[str, Recipe]:
    """A recipe around every registered component, by `stage.kind.options`."""
    out: dict[str, Recipe] = {}
    for field, stage in {**STAGES, "mix.shaping": "shaping"}.items():
        for kind, cls in sorted(kinds(stage).items()):
            for value in values(cls) if proven(cls) else ():
                options = ",".join(f"{k}={v}" for k, v in value if v != cls.model_fields[k].default)
                out[f"{stage}.{kind}({options})"] = around(field, value)
    return out


def proven(cls: type[Component]) -> bool:
    """False for components that only some test made up; the coupled ones are test-only too, but meant to be right."""
    return not cls.__module__.startswith("test") or cls.__module__ == coupled.__name__


def around(field: str, value: Component) -> Recipe:
    """The plainest recipe that holds this component."""
    changes: dict[str, object] = {field: (value,) if field in MANY or field == "mix.shaping" else value}
    if isinstance(value, Surrogate) and not value.reads_ratio:
        changes["ratio"] = None
    if field == "reference":
        changes["penalties"] = ("kl",)  # somebody has to read it
    return BASE.but(**changes)


def everything() -> dict[str, Recipe]:
    """What the contract is proven for."""
    return {**{f"recipe.{recipe.name}": recipe for recipe in all_recipes()}, **component_recipes()}


def case(recipe: Recipe, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Policy, Batch]:
    """A policy and a batch near it, with the columns that the recipe needs."""
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
        return list(torch.arange(batch.size).split(1))
    return [(batch.group == group).nonzero().squeeze(1) for group in batch.group.unique()]


def cut(batch: Batch, coupling: Couples, seed: int) -> list[Tensor]:
    """The rows in random slices of whole units, in random order."""
    draw, pieces = random.Random(seed), units(batch, coupling)
    draw.shuffle(pieces)
    slices = [[] for _ in range(draw.randint(1, max(len(pieces), 1)))]
    for piece in pieces:
        draw.choice(slices).append(piece)
    return [torch.cat(part) for part in slices if part]


def divided(recipe: Recipe, policy: Policy, batch: Batch, seed: int) -> tuple[Tensor, Metrics]:
    """The same gradient as a sum over random slices."""
    step, states = prepare(recipe, batch)
    slices = cut(step, couples(recipe), seed)
    parts = [slice_gradient(recipe, policy, step.rows(index), states) for index in slices]
    return torch.stack([gradient for gradient, _ in parts]).sum(0), merge(metrics for _, metrics in parts)


def two_pass(recipe: Recipe, policy: Policy, batch: Batch, seed: int) -> tuple[Tensor, Metrics]:
    """The gradient of a coupled recipe over slices smaller than its unit: coefficients first, then slice by slice."""
    step, states = prepare(recipe, batch)
    gradient, reports = torch.zeros_like(whole(recipe, policy, batch)), []
    for unit in units(step, couples(recipe)):
        part = step.rows(unit)
        with torch.no_grad():
            seen = policy.forward(part, outputs(recipe)).tensors()
        leaves = {name: value.requires_grad_() for name, value in seen.items()}
        loss, metrics = objective(recipe, Live.of(leaves), part, states)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        coefficients = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
        for index in cut(part, "row", seed):
            live = policy.forward(part.rows(index), outputs(recipe)).tensors()
            gradient += policy.gradient(sum((c[index] * live[name]).sum() for name, c in coefficients.items()))
        reports.append(metrics)
    return gradient, merge(reports)
