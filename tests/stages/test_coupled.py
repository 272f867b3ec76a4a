"""Coupled terms over slices smaller than their unit, and the state of live components under random splits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.metrics import merge
from covey.stages.credit import initial_states
from covey.stages.objective import advance, couples, objective, outputs, reported
from tests.stages.contract import case, cut, prepare, slice_gradient, two_pass, whole
from tests.stages.coupled import AdaptiveKl, GroupCoupled, StepCoupled, coupled
from tests.stages.data import distance

SEEDS = st.integers(0, 10_000)


def test_what_the_recipe_declares() -> None:
    assert couples(coupled()) == "step"
    assert couples(coupled(GroupCoupled())) == "group"
    assert outputs(coupled()) == ("entropy",)
    assert outputs(coupled(GroupCoupled())) == ()
    assert initial_states(coupled()) == {"penalty.test_adaptive_kl": {"coef": 0.2}}


@pytest.mark.parametrize("surrogate", [StepCoupled(), GroupCoupled()], ids=["step", "group"])
@settings(max_examples=15)
@given(seed=SEEDS)
def test_two_passes_equal_the_undivided_gradient(surrogate: object, seed: int) -> None:
    """Pass one takes dJ/dx for every live output x of the whole unit; pass two back-propagates (dJ/dx * x).sum() per slice."""
    recipe = coupled(surrogate)
    policy, batch = case(recipe, seed)
    assert distance(two_pass(recipe, policy, batch, seed)[0], whole(recipe, policy, batch)) <= 1e-12


def test_two_passes_in_float32() -> None:
    recipe = coupled()
    for seed in range(4):
        policy, batch = case(recipe, seed, torch.float32)
        assert distance(two_pass(recipe, policy, batch, seed)[0], whole(recipe, policy, batch)) <= 1e-6


def test_the_second_live_output_carries_part_of_the_gradient() -> None:
    """Without dJ/d(entropy) the two-pass gradient would be wrong: the proof above cannot pass by logp alone."""
    recipe = coupled()
    policy, batch = case(recipe, 1)
    step, states = prepare(recipe, batch)
    live = policy.forward(step, outputs(recipe))
    leaves = {name: value.detach().requires_grad_() for name, value in live.tensors().items()}
    loss, _ = objective(recipe, type(live).of(leaves), step, states)
    loss.backward()
    assert float(leaves["entropy"].grad.abs().max()) > 1e-6
    only_logp = policy.gradient((leaves["logp"].grad * live.logp).sum())
    assert distance(only_logp, whole(recipe, policy, batch)) > 1e-3


@pytest.mark.parametrize("surrogate", [GroupCoupled(), StepCoupled()], ids=["group", "step"])
@settings(max_examples=15)
@given(seed=SEEDS, steps=st.integers(1, 4))
def test_states_after_random_splits_are_equal(surrogate: object, seed: int, steps: int) -> None:
    """`advance` sees totals over all slices: however rows are split, the coefficient walks the same way."""
    recipe = coupled(surrogate)
    policy, batch = case(recipe, seed)
    step, undivided = prepare(recipe, batch)
    split = undivided
    for at in range(steps):
        _, metrics = slice_gradient(recipe, policy, step, undivided)
        undivided = advance(recipe, undivided, metrics)
        slices = cut(step, couples(recipe), seed + at)
        parts = [slice_gradient(recipe, policy, step.rows(index), split)[1] for index in slices]
        split = advance(recipe, split, merge(parts))
    assert split.keys() == undivided.keys()
    for name in split:
        assert split[name] == pytest.approx(undivided[name], rel=1e-12)


def test_the_coefficient_follows_the_measured_divergence() -> None:
    part = AdaptiveKl(target=0.05)
    assert part.advance({"coef": 1.0}, {"kl": 10.0, "tokens": 10.0}) == {"coef": pytest.approx(1.2)}
    assert part.advance({"coef": 1.0}, {"kl": 0.0, "tokens": 10.0}) == {"coef": pytest.approx(0.8)}
    assert part.advance({"coef": 1.0}, {"kl": 0.55, "tokens": 10.0}) == {"coef": pytest.approx(1.1)}


def test_state_is_a_value_and_its_sums_are_not_written() -> None:
    recipe = coupled(GroupCoupled())
    policy, batch = case(recipe, 2)
    step, states = prepare(recipe, batch)
    _, metrics = slice_gradient(recipe, policy, step, states)
    after = advance(recipe, states, metrics)
    assert states == initial_states(recipe)
    assert after != states
    assert any(name.startswith("sums/") for name in metrics)
    assert not any(name.startswith("sums/") for name in reported(metrics))


def test_the_state_scales_the_gradient() -> None:
    """What `advance` made is what the next step's objective reads."""
    recipe = coupled(GroupCoupled())
    policy, batch = case(recipe, 3)
    step, states = prepare(recipe, batch)
    gradients = [
        slice_gradient(recipe, policy, step, {"penalty.test_adaptive_kl": {"coef": coef}})[0]
        for coef in (0.0, 0.5, 1.0)
    ]
    assert states.keys() == {"penalty.test_adaptive_kl"}
    assert distance(gradients[2] - gradients[0], 2 * (gradients[1] - gradients[0])) <= 1e-10
    assert distance(gradients[2], gradients[0]) > 1e-3
