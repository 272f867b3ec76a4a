"""What replaces the clip of token ratios: whole losses by their formulas, one number at a time; what such recipes refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from covey import recipes
from covey.batch import Batch, Live
from covey.errors import ConfigError
from covey.recipes.recipe import Recipe
from covey.stages.detached import DetachedWeight, DivergenceMask
from covey.stages.objective import objective
from covey.stages.ratios import SequenceRatio, SequenceSumRatio, SequenceTokenRatio, TokenRatio
from covey.stages.surrogates import Clip, GeometricMean, SoftGate
from covey.stages.weighting import RolloutMean, TokenMean
from tests.stages.contract import case, prepare
from tests.stages.data import distance

GRPO, DR_GRPO = recipes.get("grpo"), recipes.get("dr_grpo")
SEEDS = st.integers(0, 10_000)

MADE: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "gspo": (GRPO, {"ratio": SequenceRatio(), "surrogate": Clip(low=3e-4, high=4e-4), "penalties": ()}),
    "gspo_token": (GRPO, {"ratio": SequenceTokenRatio(), "surrogate": Clip(low=3e-4, high=4e-4), "penalties": ()}),
    "gmpo": (GRPO, {"surrogate": GeometricMean(low=0.4, high=0.4), "penalties": ()}),
    "cispo": (GRPO, {"weighting": TokenMean(), "surrogate": DetachedWeight(low=0.0, high=5.0), "penalties": ()}),
    "sapo": (GRPO, {"surrogate": SoftGate(positive=1.0, negative=1.05), "penalties": ()}),
    "dppo": (
        DR_GRPO,
        {
            "ratio": TokenRatio(anchor="sampled"),
            "surrogate": DivergenceMask(divergence="tv", low=0.15, high=0.15, anchor="sampled"),
        },
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_a_recipe_is_its_parent_but_for_what_the_paper_changes(name: str) -> None:
    parent, changes = MADE[name]
    assert recipes.get(name) == parent.but(name=name, **changes)
    assert recipes.get(name).penalties == ()


# Losses by the formula, from rewards on: group norm, ratio, surrogate and mean in one plain loop


def scores(batch: Batch, scaled: bool) -> list[float]:
    """R minus the group's mean, over its std (ddof 1) + 1e-6 where asked; several rows of a rollout count as rows do here."""
    total = (batch.reward * torch.tensor(batch.reward_weights).double()).sum(1).tolist()
    groups = batch.group.tolist()
    out = []
    for score, group in zip(total, groups, strict=True):
        peers = [s for s, g in zip(total, groups, strict=True) if g == group]
        mean = sum(peers) / len(peers)
        spread = math.sqrt(sum((s - mean) ** 2 for s in peers) / (len(peers) - 1)) if len(peers) > 1 else 0.0
        flat = max(peers) == min(peers)
        out.append(0.0 if flat else (score - mean) / (spread + 1e-6 if scaled else 1.0))
    return out


def clip(x: float, low: float, high: float) -> float:
    """x within [low, high]."""
    return min(max(x, low), high)


def gspo(a: float, moved: list[float], now: list[float], then: list[float]) -> float:
    """The gain of a response; the sum over tokens of its token mean."""
    s = math.exp(sum(moved) / len(moved))
    return min(s * a, clip(s, 1 - 3e-4, 1 + 4e-4) * a)


def gmpo(a: float, moved: list[float], now: list[float], then: list[float]) -> float:
    """The gain of a response."""
    cut = [min(d, 0.4) if a > 0 else max(d, -0.4) for d in moved]
    return a * math.exp(sum(cut) / len(cut))


def sapo(a: float, moved: list[float], now: list[float], then: list[float]) -> float:
    """The token mean of the gate."""
    tau = 1.0 if a > 0 else 1.05
    return a * sum(4 / tau / (1 + math.exp(-tau * (math.exp(d) - 1))) for d in moved) / len(moved)


def cispo(a: float, moved: list[float], now: list[float], then: list[float]) -> float:
    """The sum over tokens."""
    return a * sum(min(math.exp(d), 5.0) * x for d, x in zip(moved, now, strict=True))


def dppo(a: float, moved: list[float], now: list[float], then: list[float]) -> float:
    """The sum over tokens."""
    total = 0.0
    for d, x, y in zip(moved, now, then, strict=True):
        rise = math.exp(x) - math.exp(y)
        dropped = (a > 0 and rise > 0.15) or (a < 0 and -rise > 0.15)
        total += 0.0 if dropped else a * math.exp(d) * x
    return total


@pytest.mark.parametrize(
    ("name", "formula", "scaled", "divisor"),
    [
        ("gspo", gspo, True, "rows"),
        ("gspo_token", gspo, True, "rows"),
        ("gmpo", gmpo, True, "rows"),
        ("sapo", sapo, True, "rows"),
        ("cispo", cispo, True, "tokens"),
        ("dppo", dppo, False, "budget"),
    ],
)
@settings(max_examples=20)
@given(seed=SEEDS)
def test_the_loss_is_the_formula(
    name: str, formula: Callable[..., float], scaled: bool, divisor: str, seed: int
) -> None:
    recipe = recipes.get(name)
    policy, batch = case(recipe, seed)
    batch = batch.with_(rollout=torch.arange(batch.size))
    step, states = prepare(recipe, batch)
    live = policy.forward(step)
    found = float(objective(recipe, live, step, states)[0].detach())
    anchor = batch.sampled_logp if name == "dppo" else batch.old_logp
    gains = 0.0
    for i, a in enumerate(scores(batch, scaled)):
        counted = batch.mask[i]
        now, then = live.logp[i][counted].tolist(), anchor[i][counted].tolist()
        moved = [x - y for x, y in zip(now, then, strict=True)]
        gains += formula(a, moved, now, then) if moved else 0.0
    size = {"rows": batch.size, "tokens": int(batch.mask.sum()), "budget": batch.size * int(batch.limit[0])}[divisor]
    assert found == pytest.approx(-gains / max(size, 1), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["gspo", "gspo_token", "gmpo", "sapo"])
def test_at_the_first_step_they_are_all_grpo(name: str) -> None:
    """At ratio 1 every clipped surrogate has the same gradient: methods differ from the second optimizer step on."""
    gradients = []
    for recipe in (recipes.get(name), GRPO.but(penalties=())):
        policy, batch = case(recipe, 5)
        with torch.no_grad():
            batch = batch.with_(old_logp=torch.where(batch.mask, policy.forward(batch).logp, 0.0))
        batch = batch.with_(rollout=torch.arange(batch.size))
        step, states = prepare(recipe, batch)
        gradients.append(policy.gradient(objective(recipe, policy.forward(step), step, states)[0]))
    assert distance(*gradients) <= 1e-12


def test_bands_act_on_whole_responses() -> None:
    """gspo drops a response or keeps it; gmpo drops its tokens one by one."""
    for name, shared in (("gspo", True), ("gmpo", False)):
        recipe = recipes.get(name)
        policy, batch = case(recipe, 7)
        step, states = prepare(recipe, batch)
        logp = policy.forward(step).logp.detach().requires_grad_()
        objective(recipe, Live(logp), step, states)[0].backward()
        rows = [logp.grad[i][step.mask[i]] != 0 for i in range(step.size) if (step.weight[i] != 0).sum() > 1]
        assert all(bool(row.all()) or not bool(row.any()) for row in rows) is shared


# What is refused


@pytest.mark.parametrize("weighting", ["token_mean", "group_token_mean"])
@pytest.mark.parametrize(
    "changes",
    [
        {"ratio": SequenceRatio()},
        {"ratio": SequenceTokenRatio()},
        {"ratio": SequenceSumRatio()},
        {"surrogate": GeometricMean()},
        {"ratio": SequenceRatio(), "surrogate": SoftGate()},
    ],
    ids=str,
)
def test_a_gain_of_a_whole_response_is_not_averaged_over_tokens(changes: dict[str, Any], weighting: str) -> None:
    plain = GRPO.but(penalties=())
    with pytest.raises(ConfigError, match="a token mean multiplies each sequence's ratio by its length"):
        plain.but(weighting=weighting, **changes)
    plain.but(weighting=weighting, waivers=("sequence_ratio_token_mean",), **changes)
    plain.but(weighting="rollout_sum", **changes)
    plain.but(weighting="rollout_mean", **changes)


def test_a_detached_weight_of_the_response_may_be_averaged_over_tokens() -> None:
    """Its gain is that of the token: the weight alone is shared."""
    made = GRPO.but(penalties=(), ratio=SequenceSumRatio(), surrogate="gamma_weight", weighting="token_mean")
    assert made.waivers == ()


def test_a_geometric_mean_takes_one_advantage_per_response() -> None:
    recipe = recipes.get("gmpo")
    with pytest.raises(ConfigError, match="a geometric mean has one advantage for all tokens of a response"):
        recipe.but(advantage="gae", critic="separate")
    assert recipe.weighting == RolloutMean()


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe.surrogate.high: a bound below 1 shrinks the gradient"):
        recipes.get("cispo").but(**{"surrogate.high": 0.2})
