"""Penalties with a memory or a view of the whole step: the constraint, the steered entropy bonus; and what penalties report."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from covey.batch import Credited, Live
from covey.errors import ConfigError
from covey.metrics import merge
from covey.registry import State
from covey.stages.objective import advance, objective
from covey.stages.penalties import Constraint, Entropy, Kl, Penalty
from tests.stages import oracle_coupled as oracle
from tests.stages.contract import BASE, case, cut, prepare, slice_gradient
from tests.stages.data import as_credited, draw_batch
from tests.stages.test_coupled_gains import differences

SEEDS = st.integers(0, 10_000)


def near(seed: int, part: Penalty, by: float = 0.3) -> tuple[Tensor, Credited]:
    """A policy beside the old one, and the batch with the weights of the penalty."""
    batch = as_credited(draw_batch(seed), seed)
    draw = torch.Generator().manual_seed(seed)
    moved = batch.old_logp + by * torch.randn(batch.mask.shape, generator=draw, dtype=torch.float64)
    return moved, batch.with_(penalty_weight={part.kind: part.weighting(batch)})


def loss(part: Penalty, logp: Tensor, batch: Credited, state: State | None = None) -> Tensor:
    """The term of the loss."""
    cost = part(Live(logp), batch) if state is None else part(Live(logp), batch, state=state)
    return part.coef * (batch.penalty_weight[part.kind] * cost).sum()


def mean_divergence(logp: Tensor, batch: Credited, *, low_variance: bool) -> float:
    """D by the oracle."""
    pairs = [
        (float(x), float(y))
        for row, old, chosen in zip(logp, batch.old_logp, batch.mask, strict=True)
        for x, y, yes in zip(row, old, chosen, strict=True)
        if yes
    ]
    found = oracle.divergence([x for x, _ in pairs], [y for _, y in pairs], low_variance=low_variance)
    return sum(found) / len(found) if found else 0.0


# The constraint


def test_golden_of_the_hinge() -> None:
    """D = 3e-4, limit 1e-4, factor 1000: the coefficient of D is .2, and below the limit it is 0."""
    part = Constraint(divergence="direct")
    _, batch = near(0, part)
    for divergence, coefficient in ((3e-4, 0.2), (5e-5, 0.0), (-3e-4, 0.0)):
        now = (batch.old_logp - divergence).requires_grad_()
        found = loss(part, now, batch)
        found.backward()
        assert float(found.detach()) == pytest.approx(coefficient * divergence, abs=1e-12)
        assert float(-now.grad.sum()) == pytest.approx(coefficient, abs=1e-9)


@settings(max_examples=30)
@given(seed=SEEDS, low_variance=st.booleans(), limit=st.sampled_from([0.0, 0.02, 0.2]))
def test_the_hinge_is_the_formula(seed: int, low_variance: bool, limit: float) -> None:
    part = Constraint(coef=3.0, limit=limit, divergence="low_variance" if low_variance else "direct")
    now, batch = near(seed, part)
    d = mean_divergence(now, batch, low_variance=low_variance)
    assert float(loss(part, now, batch)) == pytest.approx(3.0 * max(d - limit, 0.0) * d, rel=1e-9, abs=1e-12)
    told = part.observe(Live(now), batch)
    assert told["constraint/divergence"].value == pytest.approx(d, rel=1e-9, abs=1e-12)
    assert told["constraint/active"].value == float(d > limit)
    assert told["constraint/multiplier"].value == pytest.approx(max(d - limit, 0.0), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("divergence", ["direct", "low_variance"])
def test_its_gradient_is_that_of_half_the_square(divergence: str) -> None:
    """sg(coef (D - limit)) D against coef (D - limit)^2 / 2 by finite differences."""
    part, acted = Constraint(coef=2.0, limit=0.01, divergence=divergence), 0
    for seed in range(4):
        x, batch = near(seed, part)
        now = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(part, now, batch), now)

        def square(x: Tensor, batch: Credited = batch) -> Tensor:
            d = mean_divergence(x, batch, low_variance=divergence == "low_variance")
            return torch.tensor(2.0 / 2 * max(d - 0.01, 0.0) ** 2, dtype=torch.float64)

        assert torch.allclose(found, differences(square, x), rtol=1e-5, atol=1e-9)
        acted += bool(found.any())
    assert acted > 0


def test_tokens_of_every_row_are_in_it() -> None:
    """Groups of one class and rows that a filter took out feel the constraint: its weights know no filters."""
    recipe = BASE.but(filters=("varied",), penalties=(Constraint(limit=0.0),))
    policy, batch = case(recipe, 2)
    step, states = prepare(recipe, batch.with_(reward=torch.zeros_like(batch.reward)))
    assert (step.weight == 0).all()
    gradient, metrics = slice_gradient(recipe, policy, step, states)
    assert gradient.abs().max() > 0
    assert metrics["constraint/active"].value == 1


def test_the_dual_variable_adds_up_what_is_beyond_the_limit() -> None:
    part = Constraint(multiplier="dual", rate=0.5, limit=0.1)
    state = part.initial()
    assert state == {"multiplier": 0.0}
    walk = []
    for divergence in (0.3, 0.5, 0.0, 0.0, 0.0, 0.0, 0.2):
        state = part.advance(state, {"divergence": divergence})
        walk.append(state["multiplier"])
    assert walk == pytest.approx([0.1, 0.3, 0.25, 0.2, 0.15, 0.1, 0.15])
    assert part.advance({"multiplier": 0.01}, {"divergence": 0.0}) == {"multiplier": 0.0}
    assert part.advance({"multiplier": 0.01}, {}) == {"multiplier": 0.01}


def test_the_dual_variable_is_the_factor_of_the_next_step() -> None:
    part = Constraint(multiplier="dual", coef=10.0)
    now, batch = near(1, part)
    d = mean_divergence(now, batch, low_variance=True)
    assert float(loss(part, now, batch, {"multiplier": 0.0})) == 0
    assert float(loss(part, now, batch, {"multiplier": 0.03})) == pytest.approx(10 * 0.03 * d)
    assert part.observe(Live(now), batch, state={"multiplier": 0.03})["constraint/multiplier"].value == 0.03


@settings(max_examples=10)
@given(seed=SEEDS)
def test_the_dual_variable_after_whole_steps(seed: int) -> None:
    """Through the objective: the totals of an optimizer step move the state by exactly its excess."""
    recipe = BASE.but(penalties=(Constraint(multiplier="dual", limit=0.01),))
    policy, batch = case(recipe, seed)
    step, states = prepare(recipe, batch)
    _, metrics = slice_gradient(recipe, policy, step, states)
    d = mean_divergence(policy.forward(step).logp.detach(), step, low_variance=True)
    moved = advance(recipe, states, metrics)["penalty.constraint"]["multiplier"]
    assert moved == pytest.approx(max(d - 0.01, 0.0), rel=1e-9, abs=1e-12)


def test_what_a_hinge_never_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe.penalties.constraint.rate: nobody reads it with multiplier=hinge"):
        Constraint(rate=0.5)
    assert Constraint().initial() == {}


@pytest.mark.parametrize("value", [200.0, -200.0, math.inf, -math.inf])
@pytest.mark.parametrize("divergence", ["direct", "low_variance"])
def test_a_constraint_on_extremes_stays_finite(value: float, divergence: str) -> None:
    part = Constraint(divergence=divergence)
    x, batch = near(0, part)
    x[batch.mask] = value
    now = x.requires_grad_()
    found = loss(part, now, batch)
    found.backward()
    assert found.isfinite()
    assert now.grad.isfinite().all()
    assert part.observe(Live(now.detach()), batch)["constraint/clamped"].value == 1.0
    assert part.observe(Live(batch.old_logp), batch)["constraint/clamped"].value == 0.0


# The steered entropy bonus


def with_entropy(entropy: float) -> tuple[Live, Credited]:
    """A batch whose policy has this entropy at every token."""
    batch = as_credited(draw_batch(0))
    filled = torch.where(batch.mask, entropy, math.nan)
    return Live(batch.old_logp, {"entropy": filled}), batch.with_(
        penalty_weight={"entropy": Entropy().weighting(batch)}
    )


def test_a_steered_coefficient_follows_the_entropy() -> None:
    """It rises while the entropy is at most the target, falls elsewhere, and is applied only after a step at most there."""
    part = Entropy(coef=0.01, target=0.2)
    state: Mapping[str, float] = part.initial()
    assert state == {"coef": 0.01, "applied": 0.0}
    walk = []
    for entropy in (0.5, 0.19, 0.1, 0.3, 0.3, 0.3, 0.3, 0.1):
        live, batch = with_entropy(entropy)
        state = part.advance(state, part.sums(live, batch))
        walk.append((round(state["coef"], 6), round(state["applied"], 6)))
    assert walk == [
        (0.005, 0.0), (0.01, 0.01), (0.015, 0.015), (0.01, 0.0), (0.005, 0.0), (0.0, 0.0), (0.0, 0.0), (0.005, 0.005),
    ]  # fmt: skip
    assert part.advance({"coef": 0.998, "applied": 0.0}, {"entropy": 0.1, "tokens": 1.0})["coef"] == 1.0
    assert part.advance({"coef": 0.5, "applied": 0.5}, {"entropy": 0.0, "tokens": 0.0}) == {"coef": 0.5, "applied": 0.5}


def test_the_applied_coefficient_is_the_one_in_the_loss() -> None:
    live, batch = with_entropy(0.7)
    part = Entropy(coef=0.01, target=0.2)
    for applied in (0.0, 0.01, 0.25):
        cost = part(live, batch, state={"coef": 0.3, "applied": applied})
        assert float(part.coef * (batch.penalty_weight["entropy"] * cost).sum()) == pytest.approx(-applied * 0.7)
        assert part.observe(live, batch, state={"coef": 0.3, "applied": applied})["entropy/coef"].value == applied


def test_a_fixed_bonus_has_no_state() -> None:
    live, batch = with_entropy(0.7)
    assert Entropy().initial() == {}
    assert Entropy().sums(live, batch) == {}
    assert Entropy(coef=0.02).observe(live, batch)["entropy/coef"].value == 0.02
    with pytest.raises(ConfigError, match=r"recipe.penalties.entropy.delta: nobody reads it with target=null"):
        Entropy(delta=0.01)


@settings(max_examples=10)
@given(seed=SEEDS)
def test_the_coefficient_does_not_depend_on_slices(seed: int) -> None:
    recipe = BASE.but(penalties=(Entropy(target=1.5),))
    policy, batch = case(recipe, seed)
    step, states = prepare(recipe, batch)
    whole = advance(recipe, states, slice_gradient(recipe, policy, step, states)[1])
    parts = [slice_gradient(recipe, policy, step.rows(index), states)[1] for index in cut(step, "row", seed)]
    assert advance(recipe, states, merge(parts)) == whole


# What a KL penalty is unless it is told


def test_the_gradient_of_a_kl_is_the_reverse_one_unless_another_is_asked_for() -> None:
    batch = as_credited(draw_batch(0))
    x = torch.where(batch.mask, 0.7, 0.0).double()
    for part, slope in ((Kl(to="old"), x), (Kl(to="old", estimator="k3"), 1 - (-x).exp())):
        logp = (batch.old_logp.double() + x).requires_grad_()
        cost = part(Live(logp), batch)
        cost.sum().backward()
        torch.testing.assert_close(logp.grad, torch.where(batch.mask, slope, 0.0))
        torch.testing.assert_close(cost.detach(), torch.where(batch.mask, (-x).exp() - 1 + x, 0.0))


# What penalties report


def test_cut_log_ratios_are_counted() -> None:
    batch = as_credited(draw_batch(0))
    batch = batch.with_(penalty_weight={"kl": Kl().weighting(batch)})
    first = batch.mask.nonzero()[0]
    logp = batch.old_logp.clone()
    logp[first[0], first[1]] += 21.0
    found = Kl(to="old").observe(Live(logp), batch)
    assert found["penalty/kl_clamped"].value == pytest.approx(1 / float(batch.mask.sum()))


def test_what_a_penalty_saw_is_among_the_metrics() -> None:
    recipe = BASE.but(penalties=(Kl(to="old"), Entropy(), Constraint()))
    policy, batch = case(recipe, 1)
    step, states = prepare(recipe, batch)
    _, metrics = objective(recipe, policy.forward(step, ("entropy",)), step, states)
    assert {"penalty/kl", "penalty/kl_clamped", "entropy/coef", "constraint/active", "penalty/constraint"} <= set(
        metrics
    )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_straight_through", "k3_importance"])
def test_formulas_of_penalties(estimator: str) -> None:
    text = Kl(estimator=estimator).latex()
    assert r"\ell^{ref}" in text
    assert r"\ell^{old}" in Kl(estimator=estimator, to="old").latex()
    assert text.count("{") == text.count("}")
    for part in (Entropy(), Entropy(target=0.2), Constraint(), Constraint(multiplier="dual", divergence="direct")):
        assert part.latex().count("{") == part.latex().count("}") > 0
