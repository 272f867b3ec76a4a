"""The gradient of an optimizer step does not depend on slices, order or padding: for every registered recipe and component."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.batch import Keep
from covey.recipes.recipe import Recipe
from covey.registry import Component, component
from covey.stages.objective import couples, objective, outputs
from tests.stages import coupled
from tests.stages.contract import (
    BASE,
    all_recipes,
    case,
    cut,
    divided,
    everything,
    prepare,
    slice_gradient,
    whole,
)
from tests.stages.data import GARBAGE, distance, widen

EVERYTHING = everything()
SEEDS = st.integers(0, 10_000)


def skip_exempted(recipe: Recipe, prop: str) -> None:
    """A component may break a property on purpose: it says so, with the reason."""
    if reason := recipe.exemptions().get(prop):
        pytest.skip(reason)


def test_the_contract_covers_what_is_registered() -> None:
    stages = {name.split(".")[0] for name in EVERYTHING}
    assert stages >= {"recipe", "mix", "filter", "advantage", "shaper", "correction", "weighting", "ratio", "surrogate"}
    assert "surrogate.test_step_coupled()" in EVERYTHING
    assert "shaping.soft_overlong()" in EVERYTHING
    assert "penalty.kl(estimator=k3_importance)" in EVERYTHING
    assert {f"recipe.{recipe.name}" for recipe in all_recipes()} <= set(EVERYTHING)
    assert coupled.StepCoupled.kind == "test_step_coupled"


@pytest.mark.parametrize("name", EVERYTHING)
@settings(max_examples=6)
@given(seed=SEEDS)
def test_slices_add_up(name: str, seed: int) -> None:
    recipe = EVERYTHING[name]
    policy, batch = case(recipe, seed)
    found, metrics = divided(recipe, policy, batch, seed)
    step, states = prepare(recipe, batch)
    expected, reported = slice_gradient(recipe, policy, step, states)
    assert distance(found, expected) <= 1e-12
    assert metrics.keys() == reported.keys()
    for key in reported:
        assert metrics[key].value == pytest.approx(reported[key].value, rel=1e-9, abs=1e-9, nan_ok=True), key


@pytest.mark.parametrize("name", EVERYTHING)
def test_slices_add_up_in_float32(name: str) -> None:
    recipe = EVERYTHING[name]
    for seed in (1, 2):
        policy, batch = case(recipe, seed, torch.float32)
        assert distance(divided(recipe, policy, batch, seed)[0], whole(recipe, policy, batch)) <= 1e-6


@pytest.mark.parametrize("name", EVERYTHING)
@settings(max_examples=4)
@given(seed=SEEDS)
def test_order_of_rows_has_no_say(name: str, seed: int) -> None:
    recipe = EVERYTHING[name]
    policy, batch = case(recipe, seed)
    order = torch.randperm(batch.size, generator=torch.Generator().manual_seed(seed))
    assert distance(whole(recipe, policy, batch.rows(order)), whole(recipe, policy, batch)) <= 1e-12


@pytest.mark.parametrize("name", EVERYTHING)
@settings(max_examples=5)
@given(seed=SEEDS, extra=st.integers(0, 4), filler=st.sampled_from(GARBAGE))
def test_padding_has_no_say(name: str, seed: int, extra: int, filler: float) -> None:
    """Width and content of the padding: NaN, inf and overflow there leave value and gradient as they were."""
    recipe = EVERYTHING[name]
    policy, batch = case(recipe, seed)
    assert distance(whole(recipe, policy, widen(batch, extra, filler)), whole(recipe, policy, batch)) <= 1e-12


@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("filler", GARBAGE)
def test_live_garbage_at_padding(name: str, filler: float) -> None:
    """Whatever the forward returns at padding, the loss keeps its value and sends exactly 0 back there."""
    recipe = EVERYTHING[name]
    policy, batch = case(recipe, 3)
    step, states = prepare(recipe, batch)
    live = policy.forward(step, outputs(recipe))
    expected = float(objective(recipe, live, step, states)[0].detach())
    leaves = {
        name: torch.where(step.mask, value.detach(), filler).requires_grad_() for name, value in live.tensors().items()
    }
    loss, metrics = objective(recipe, type(live).of(leaves), step, states)
    assert float(loss.detach()) == expected
    assert all(not math.isnan(metric.total) for metric in metrics.values())
    loss.backward()
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            assert leaf.grad.isfinite().all(), name
            assert (leaf.grad[~step.mask] == 0).all(), name


@pytest.mark.parametrize("name", EVERYTHING)
def test_nothing_to_learn_from_is_zero_not_nan(name: str) -> None:
    """An empty mask, no rows at all, no scored reward: loss and gradient are 0."""
    recipe = EVERYTHING[name]
    policy, batch = case(recipe, 4)
    empty = batch.with_(mask=torch.zeros_like(batch.mask))
    nobody = batch.rows(torch.zeros(0, dtype=torch.long))
    for nothing in (empty, nobody):
        step, states = prepare(recipe, nothing)
        loss, _ = objective(recipe, policy.forward(step, outputs(recipe)), step, states)
        assert float(loss.detach()) == 0
        assert (policy.gradient(loss) == 0).all()
    unscored = batch.with_(reward=torch.full_like(batch.reward, math.nan))
    assert (whole(recipe.but(penalties=(), reference="initial"), policy, unscored) == 0).all()


@pytest.mark.parametrize("name", EVERYTHING)
@settings(max_examples=5)
@given(seed=SEEDS, value=st.sampled_from([0.0, 1.0, 0.1, -0.3, 1 / 3, 1e9]))
def test_equal_rewards_teach_exactly_nothing(name: str, seed: int, value: float) -> None:
    recipe = EVERYTHING[name]
    skip_exempted(recipe, "equal_rewards")
    policy, batch = case(recipe, seed)
    roomy = batch.limit * 100  # shaping by length must not act: it would make rewards differ
    equal = batch.with_(reward=torch.full_like(batch.reward, value), limit=roomy)
    assert (whole(recipe.but(penalties=(), reference="initial"), policy, equal) == 0).all()


@pytest.mark.parametrize("name", EVERYTHING)
@settings(max_examples=4)
@given(seed=SEEDS)
def test_first_step_is_the_policy_gradient(name: str, seed: int) -> None:
    """Where policy, learner and sampler agree the gradient is that of -sum weight * A * logp."""
    recipe = EVERYTHING[name].but(penalties=(), reference="initial")
    skip_exempted(recipe, "first_step")
    policy, batch = case(recipe, seed)
    with torch.no_grad():
        batch = batch.with_(old_logp=torch.where(batch.mask, policy.forward(batch).logp, 0.0))
    step, states = prepare(recipe, batch)
    live = policy.forward(step)
    expected = policy.gradient(-(step.weight * step.advantage * torch.where(step.mask, live.logp, 0.0)).sum())
    found, _ = slice_gradient(recipe, policy, step, states)
    assert distance(found, expected) <= 1e-12


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_group_that_is_cut_off_as_a_whole(name: str) -> None:
    """Every response truncated: finite, and nothing at all where the recipe masks truncated responses."""
    recipe = EVERYTHING[name]
    policy, batch = case(recipe, 5)
    truncated = batch.with_(stop=torch.ones_like(batch.stop))
    gradient = whole(recipe.but(penalties=(), reference="initial"), policy, truncated)
    assert gradient.isfinite().all()
    if any(part.kind == "overlong" for part in recipe.filters):
        assert (gradient == 0).all()


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_token_that_the_learner_rules_out(name: str) -> None:
    """logp = -inf under the learner: a ratio sends no NaN back, and other tokens keep their gradient."""
    recipe = EVERYTHING[name]
    policy, batch = case(recipe, 6)
    step, states = prepare(recipe, batch)
    live = {name: value.detach() for name, value in policy.forward(step, outputs(recipe)).tensors().items()}
    row, token = (int(i) for i in step.mask.nonzero()[0])
    gradients = []
    for value in (-1.0, -math.inf):
        leaves = {name: tensor.clone() for name, tensor in live.items()}
        leaves["logp"][row, token] = value
        leaf = leaves["logp"].requires_grad_()
        loss, _ = objective(recipe, type(policy.forward(step)).of(leaves), step, states)
        loss.backward()
        gradients.append(leaf.grad)
    assert gradients[1].isfinite().all()
    if couples(recipe) == "row" and getattr(recipe.ratio, "kind", "token") == "token":
        elsewhere = torch.ones_like(step.mask)
        elsewhere[row, token] = False
        assert distance(gradients[1][elsewhere], gradients[0][elsewhere]) <= 1e-12


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
