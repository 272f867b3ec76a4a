"""The composition of stages: order, states, rows without a score, and that shapes are checked here at all."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from covey.batch import Keep
from covey.recipes.recipe import Recipe
from covey.registry import Component, component
from covey.stages.advantages import BatchBaseline
from covey.stages.corrections import TruncatedImportance
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.filters import Overlong
from covey.stages.masked import masked
from covey.stages.objective import advance, objective
from covey.stages.penalties import Entropy, Kl
from covey.stages.shapers import SignWeight
from covey.stages.weighting import RolloutMean
from tests.stages.contract import BASE, case
from tests.stages.data import draw_batch


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(TypeCheckError):
        masked(torch.ones(3), torch.ones(4, dtype=torch.bool))


def test_credit_runs_the_stages_in_order() -> None:
    """mix, filters, advantage, shapers, corrections: each sees what the one before made."""
    recipe = BASE.but(
        filters=(Overlong(mode="exclude"),),
        shapers=(SignWeight(negative=0.5),),
        corrections=(TruncatedImportance(),),
    )
    batch = draw_batch(1)
    credited, states, metrics = credit(recipe, batch, {})
    whole = batch.stop == 0
    score = batch.reward[:, 0] + 2 * batch.reward[:, 1]
    assert torch.equal(credited.columns["score"], score)
    assert torch.equal(credited.keep.statistics, whole)
    plain = recipe.advantage(batch.with_(columns={"score": score}, keep=Keep(whole, whole, whole)))
    assert torch.equal(credited.advantage, torch.where(plain > 0, plain, 0.5 * plain))
    assert torch.equal(credited.columns["correction"], TruncatedImportance()(batch))
    assert states == {}
    assert metrics["keep/loss"].value == float(whole.double().mean())
    step = weigh(recipe, credited)
    assert torch.equal(step.weight, RolloutMean()(credited) * credited.columns["correction"])
    assert (credited.weight == 0).all()


def test_penalties_are_weighed_without_filters_and_corrections() -> None:
    recipe = BASE.but(
        filters=(Overlong(),), corrections=(TruncatedImportance(),), penalties=(Kl(), Entropy(weighting="rollout_mean"))
    )
    batch = draw_batch(2)
    step = weigh(recipe, credit(recipe, batch, {})[0])
    tokens = float(batch.mask.sum())
    assert torch.equal(step.penalty_weight["kl"], batch.mask.double() / tokens)
    assert torch.equal(step.penalty_weight["entropy"], RolloutMean()(batch))


def test_rows_without_a_score_have_no_credit_and_stay_in_the_denominators() -> None:
    batch = draw_batch(3)
    reward = batch.reward.clone()
    reward[0, 0] = math.nan
    batch = batch.with_(reward=reward)
    credited, _, metrics = credit(BASE, batch, {})
    assert (credited.advantage[0] == 0).all()
    assert credited.advantage.isfinite().all()
    assert credited.keep.loss.tolist() == [False] + [True] * (batch.size - 1)
    assert credited.keep.statistics.tolist() == credited.keep.loss.tolist()
    assert credited.keep.denominator.all()
    assert metrics["keep/loss"].value == pytest.approx((batch.size - 1) / batch.size)


def test_the_state_of_a_credit_stage_is_returned_and_not_changed() -> None:
    recipe = BASE.but(advantage=BatchBaseline(baseline="moving"))
    batch = draw_batch(4)
    before = initial_states(recipe)
    assert before == {"advantage.batch_baseline": {"baseline": None}}
    _, after, _ = credit(recipe, batch, before)
    assert before == {"advantage.batch_baseline": {"baseline": None}}
    mean = float((batch.reward[:, 0] + 2 * batch.reward[:, 1]).mean())
    assert after["advantage.batch_baseline"]["baseline"] == pytest.approx(mean, rel=1e-12)


def test_the_loss_is_minus_gain_plus_cost() -> None:
    """loss = -(weight * gain).sum() + sum_k coef_k (weight_k * cost_k).sum(), token by token."""
    recipe = BASE.but(penalties=(Kl(coef=0.3, estimator="k2"), Entropy(coef=0.2, weighting="rollout_sum")))
    policy, batch = case(recipe, 5)
    step = weigh(recipe, credit(recipe, batch, {})[0])
    live = policy.forward(step, ("entropy",))
    loss, metrics = objective(recipe, live, step, {})
    expected, tokens, rollouts = 0.0, int(batch.mask.sum()), len(batch.rollout.unique())
    for i, t in batch.mask.nonzero().tolist():
        now, old, ref = (float(x[i, t].detach()) for x in (live.logp, batch.old_logp, batch.columns["ref_logp"]))
        ratio, advantage = math.exp(now - old), float(step.advantage[i, t])
        gain = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        expected -= float(step.weight[i, t]) * gain
        expected += 0.3 / tokens * (now - ref) ** 2 / 2
        expected -= 0.2 / rollouts * float(live.outputs["entropy"][i, t].detach())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    assert metrics["loss/value"].value == pytest.approx(expected, rel=1e-12)


def test_a_recipe_of_one_function() -> None:
    """The escape hatch: a component of stage `objective` replaces everything behind credit."""

    @component("objective", "test_whole")
    class Whole(Component):
        """loss = sum of weight * logp^2."""

        def __call__(self, live: object, batch: object) -> torch.Tensor:
            return (batch.weight * torch.where(batch.mask, live.logp, 0.0) ** 2).sum()

    @component("objective", "test_counting")
    class Counting(Whole):
        """The same, and how many tokens it has seen."""

        def initial(self) -> dict[str, float]:
            return {"tokens": 0.0}

        def __call__(self, live: object, batch: object, *, state: object) -> torch.Tensor:
            return super().__call__(live, batch)

        def sums(self, live: object, batch: object) -> dict[str, float]:
            return {"tokens": float(batch.mask.sum())}

        def advance(self, state: dict[str, float], sums: dict[str, float]) -> dict[str, float]:
            return {"tokens": state["tokens"] + sums["tokens"]}

    recipe: Recipe = BASE.but(objective=Whole(), ratio=None, surrogate=None)
    policy, batch = case(recipe, 6)
    step = weigh(recipe, credit(recipe, batch, {})[0])
    live = policy.forward(step)
    loss, metrics = objective(recipe, live, step, {})
    assert torch.equal(loss, (step.weight * torch.where(batch.mask, live.logp, 0.0) ** 2).sum())
    assert metrics["loss/value"].value == float(loss.detach())
    assert "kl/sampled_vs_policy" in metrics

    counting = recipe.but(objective=Counting())
    states = initial_states(counting)
    _, metrics = objective(counting, live, step, states)
    assert advance(counting, states, metrics) == {"objective.test_counting": {"tokens": float(step.mask.sum())}}
