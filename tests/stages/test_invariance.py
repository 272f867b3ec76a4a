"""The gradient of an optimizer step does not depend on slices, order or padding: for every registered recipe and component."""

from __future__ import annotations

import os
import random

import pytest
import torch

from covey.batch import Keep
from covey.proof.properties import EXEMPTABLE, PROPERTIES
from covey.recipes.recipe import Recipe
from covey.registry import Component, component
from covey.stages.objective import couples
from tests.stages import coupled
from tests.stages.contract import (
    BASE,
    all_recipes,
    bare,
    case,
    cut,
    divided,
    everything,
    prepare,
    slice_gradient,
    whole,
)
from tests.stages.data import distance

EVERYTHING = everything()
EXAMPLES = 40 if os.environ.get("EXPLORE") else 2


def test_the_contract_covers_what_is_registered() -> None:
    stages = {name.split(".")[0] for name in EVERYTHING}
    assert stages >= {"recipe", "mix", "filter", "advantage", "shaper", "correction", "weighting", "ratio", "surrogate"}
    assert "surrogate.test_step_coupled()" in EVERYTHING
    assert "shaping.soft_overlong()" in EVERYTHING
    assert "penalty.kl(estimator=k3_importance)" in EVERYTHING
    assert {f"recipe.{recipe.name}" for recipe in all_recipes()} <= set(EVERYTHING)
    assert coupled.StepCoupled.kind == "test_step_coupled"


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("prop", PROPERTIES)
def test_it_holds(prop: str, name: str) -> None:
    """Every property of `covey prove`, for every registered recipe and a recipe around every registered component."""
    recipe = EVERYTHING[name]
    exempt = recipe.exemptions()
    assert exempt.keys() <= set(EXEMPTABLE)
    if prop in exempt:
        pytest.skip(exempt[prop])
    if prop == "two_passes" and couples(recipe) == "row":
        pytest.skip("no component couples rows")
    for seed in random.Random(f"{prop} {name}").sample(range(10_000), EXAMPLES):
        for gap in PROPERTIES[prop].cases(recipe, seed):
            assert gap.holds, (seed, gap)


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_group_that_is_cut_off_as_a_whole_teaches_nothing_where_such_rows_are_masked(name: str) -> None:
    recipe = EVERYTHING[name]
    if any(part.kind == "overlong" for part in recipe.filters):
        policy, batch = case(recipe, 5)
        truncated = batch.with_(stop=torch.ones_like(batch.stop))
        assert (whole(bare(recipe), policy, truncated) == 0).all()


def test_coupled_terms_are_not_sums_of_their_slices() -> None:
    """The declaration matters: torn below its unit a coupled recipe has another gradient, so the contract can fail."""
    for part in (coupled.StepCoupled(), coupled.GroupCoupled()):
        recipe = coupled.coupled(part)
        policy, batch = case(recipe, 7)
        step, states = prepare(recipe, batch)
        torn = sum(slice_gradient(recipe, policy, step.rows(index), states)[0] for index in cut(step, "row", 1))
        assert distance(torn, whole(recipe, policy, batch)) > 1e-6


@component("surrogate", "test_forgets_to_couple")
class _Forgetful(coupled.StepCoupled):
    couples = "row"


def test_a_forgotten_declaration_is_found() -> None:
    recipe = coupled.coupled(_Forgetful())
    policy, batch = case(recipe, 8)
    worst = max(distance(divided(recipe, policy, batch, s)[0], whole(recipe, policy, batch)) for s in range(5))
    assert worst > 1e-6


@component("weighting", "test_mean_of_the_slice")
class _SliceMean(Component):
    """What most trainers did: a mean over whatever rows are at hand."""

    def __call__(self, batch: object) -> torch.Tensor:
        return torch.where(batch.mask, 1.0 / batch.mask.sum().clamp(min=1), 0.0).double()


def test_weights_formed_per_slice_would_be_found() -> None:
    """The order matters: weighing slices instead of the step gives another gradient."""
    recipe: Recipe = BASE.but(weighting=_SliceMean())
    policy, batch = case(recipe, 9)
    step, states = prepare(recipe, batch)
    wrong = torch.zeros_like(whole(recipe, policy, batch))
    for index in cut(step, "row", 3):
        part = step.rows(index)
        wrong += slice_gradient(recipe, policy, part.with_(weight=_SliceMean()(part)), states)[0]
    assert distance(wrong, whole(recipe, policy, batch)) > 1e-3


def test_a_filter_answers_three_questions_apart() -> None:
    """Masking one row removes its gradient and, with all rows in the denominator, leaves the others as they were."""
    _, batch = case(BASE, 10)
    keep = Keep.all(batch.size)
    out = torch.ones(batch.size, dtype=torch.bool)
    victim = int(batch.mask.any(1).nonzero()[0])
    out[victim] = False
    step, _ = prepare(BASE, batch)
    fewer, _ = prepare(BASE, batch.with_(keep=Keep(out, keep.statistics, keep.denominator)))
    own = batch.rollout == batch.rollout[victim]
    assert (fewer.weight[victim] == 0).all()
    assert torch.equal(fewer.weight[~own], step.weight[~own])
    smaller, _ = prepare(BASE, batch.with_(keep=Keep(out, keep.statistics, out)))
    assert (smaller.weight[~own] >= step.weight[~own]).all()
