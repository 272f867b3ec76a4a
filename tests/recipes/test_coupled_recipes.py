"""What gvpo, disco, clip_cov and kl_cov are made of, what their optimum is, and that each of their parts acts in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from covey import recipes
from covey.batch import Batch, Credited, Keep, Live
from covey.collect.rows import rows
from covey.errors import ConfigError
from covey.metrics import Metrics, merge, values
from covey.recipes.recipe import Recipe
from covey.stages.admit import Informative
from covey.stages.advantages import GroupNorm
from covey.stages.coupled import Contrast, Residual, TwoClasses
from covey.stages.covariance import CovarianceClip, CovarianceKl
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.filters import Overlong
from covey.stages.mix import WeightedSum
from covey.stages.objective import advance, couples, objective, outputs
from covey.stages.penalties import Constraint
from covey.stages.ratios import TokenRatio
from covey.stages.weighting import GroupSum, TokenMean
from tests.recipes.toy import Toy
from tests.stages.data import draw_batch

OURS = ("gvpo", "disco", "disco_ratio", "clip_cov", "kl_cov")


def test_gvpo() -> None:
    """arXiv 2504.19599: centred rewards, coef .1, the old policy as anchor, cut-off responses out of their group."""
    expected = Recipe(
        name="gvpo",
        mix=WeightedSum(),
        filters=(Overlong(mode="exclude"),),
        advantage=GroupNorm(baseline="mean", scale="none"),
        weighting=GroupSum(),
        surrogate=Residual(coef=0.1, anchor="old"),
    )
    assert recipes.get("gvpo") == expected
    assert couples(expected) == "group"


def test_disco() -> None:
    """arXiv 2505.12366: mean log-probabilities at tau 10, ratios at tau 1; factor 1000 and limit 1e-4."""
    expected = Recipe(
        name="disco",
        mix=WeightedSum(),
        advantage=TwoClasses(threshold=0.5),
        weighting=GroupSum(),
        surrogate=Contrast(score="likelihood", tau=10.0),
        penalties=(Constraint(coef=1000.0, limit=1e-4, divergence="low_variance", weighting=TokenMean()),),
    )
    assert recipes.get("disco") == expected
    assert couples(expected) == "step"
    ratio = recipes.get("disco_ratio")
    assert ratio == expected.but(name="disco_ratio", surrogate=Contrast(score="ratio", tau=1.0))
    assert ratio.parent == expected


@pytest.mark.parametrize(
    ("name", "surrogate"),
    [
        ("clip_cov", CovarianceClip(low=1.0, high=1.0, share=2e-4, floor=1.0, ceiling=5.0)),
        ("kl_cov", CovarianceKl(share=2e-3, coef=1.0)),
    ],
)
def test_covariance_recipes(name: str, surrogate: CovarianceClip | CovarianceKl) -> None:
    """arXiv 2505.22617 as the authors ran the 7B model: group std, refilled groups, token mean, no KL."""
    expected = Recipe(
        name=name,
        admit=(Informative(),),
        mix=WeightedSum(),
        advantage=recipes.get("grpo").advantage,
        weighting=TokenMean(),
        ratio=TokenRatio(),
        surrogate=surrogate,
    )
    assert recipes.get(name) == expected
    assert couples(expected) == "step"
    assert expected.needs() == (("noise",) if name == "clip_cov" else ())


@pytest.mark.parametrize("name", OURS)
def test_their_words(name: str) -> None:
    """Idea, formula, and when to use it, when not, what to watch."""
    text = recipes.describe(name)
    for word in ("Use: ", "Avoid: ", "Watch: "):
        assert f"\n{word}" in text
    assert recipes.get(name).parent is not None


@pytest.mark.parametrize("name", ["gvpo", "disco"])
def test_other_weights_and_corrections_are_refused(name: str) -> None:
    recipe = recipes.get(name)
    with pytest.raises(ConfigError, match="group_value_weighting"):
        recipe.but(weighting="token_mean")
    with pytest.raises(ConfigError, match="group_value_corrected"):
        recipe.but(corrections="truncated_importance")


@pytest.mark.parametrize(
    "changes",
    [
        {"advantage": "group_norm"},
        {"advantage.baseline": "leave_one_out"},
        {"advantage": "component_norm", "mix": "separate"},
        {"shapers": "whiten"},
        {"shapers": "sign_weight"},
    ],
    ids=str,
)
def test_a_residual_of_scaled_rewards_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="residual_of_scaled"):
        recipes.get("gvpo").but(**changes)


# The optimum


def two_tokens(seed: int) -> tuple[Batch, Tensor]:
    """Groups of four responses of two tokens from any sampler, with rewards of any size; and a log-probability of each token."""
    base = draw_batch(seed, groups=3, most=4, width=2, components=1, graded=True)
    batch = base.rows(torch.arange(3).repeat_interleave(4) % base.size)
    n, draw = batch.size, torch.Generator().manual_seed(seed)
    old = -3 * torch.rand((n, 2), generator=draw, dtype=torch.float64)
    batch = batch.with_(
        prompts=dict.fromkeys(range(3), (1,)),
        mask=torch.ones(n, 2, dtype=torch.bool),
        group=torch.arange(3).repeat_interleave(4),
        rollout=torch.arange(n),
        stop=torch.zeros(n, dtype=torch.long),
        reward=torch.randn((n, 1), generator=draw, dtype=torch.float64),
        old_logp=old,
        sampled_logp=-3 * torch.rand((n, 2), generator=draw, dtype=torch.float64),
        keep=Keep.all(n),
        columns={},
    )
    return batch, old


def step_of(recipe: Recipe, batch: Batch) -> Credited:
    """The batch as one optimizer step."""
    return weigh(recipe, credit(recipe, batch, initial_states(recipe))[0])


@pytest.mark.parametrize("seed", range(5))
def test_residuals_vanish_at_the_optimum_under_any_sampler(seed: int) -> None:
    """log pi = log pi_old + R / coef + c(prompt) has loss and gradient 0; a policy beside it has neither."""
    recipe = recipes.get("gvpo")
    batch, old = two_tokens(seed)
    level = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)[batch.group]
    lift = (batch.reward[:, 0] / 0.1 + level) / 2
    step = step_of(recipe, batch.with_(reward=batch.reward / 10))
    best = (old + lift[:, None] / 10).requires_grad_()
    loss, metrics = objective(recipe, Live(best), step, {})
    loss.backward()
    assert abs(float(loss.detach())) < 1e-15
    assert float(best.grad.abs().max()) < 1e-12
    assert metrics["residual/mse"].value < 1e-15
    beside = (old + 0.5 * lift[:, None] / 10).requires_grad_()
    objective(recipe, Live(beside), step, {})[0].backward()
    assert float(beside.grad.abs().max()) > 1e-4


def test_with_a_std_the_optimum_would_be_another_one() -> None:
    """Why it is refused: at the optimum of the centred rewards the residuals of scaled ones do not vanish."""
    scaled = recipes.get("gvpo").but(advantage=GroupNorm(), waivers=("residual_of_scaled",))
    batch, old = two_tokens(0)
    best = (old + batch.reward / 0.1 / 2 / 10).requires_grad_()
    objective(scaled, Live(best), step_of(scaled, batch.with_(reward=batch.reward / 10)), {})[0].backward()
    assert float(best.grad.abs().max()) > 1e-3


# Training


def train(
    recipe: Recipe, *, steps: int = 8, passes: int = 4, lr: float = 0.05, plain: bool = False
) -> tuple[dict[str, float], Metrics]:
    """Metrics of a few batches of the toy, four optimizer steps each: mean, and those of the very last step."""
    toy, states, told = Toy(0), initial_states(recipe), []
    optimizer = (torch.optim.SGD if plain else torch.optim.Adam)([toy.table], lr=lr)
    for _ in range(steps):
        batch = rows([g for g in toy.groups() if all(part.admits(g) for part in recipe.admit)], {}, torch.float64)
        credited, states, _ = credit(recipe, batch.with_(columns=dict(toy.columns(batch))), states)
        step = weigh(recipe, credited)
        for _ in range(passes):
            live = toy.forward(step, toy.table)
            wanted = {name: live.outputs[name] for name in outputs(recipe)}
            loss, metrics = objective(recipe, Live(live.logp, wanted), step, states)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            states = advance(recipe, states, metrics)
            told.append(metrics)
    return values(merge(told)), told[-1]


def test_the_constraint_is_seen_acting() -> None:
    found, _ = train(recipes.get("disco"))
    assert 0 < found["constraint/active"] < 1  # in a batch's first optimizer step nothing has moved
    assert found["constraint/multiplier"] > 0
    assert found["contrast/margin"] > 0
    assert 0 < found["contrast/both"] <= 1


def test_the_constraint_holds_the_step() -> None:
    """With it the divergence stays far below that of the same recipe without."""
    held, free = (
        train(recipes.get("disco").but(**{"penalties.constraint.coef": coef}), steps=2, passes=30, lr=0.3, plain=True)[
            0
        ]
        for coef in (1000.0, 1e-9)
    )
    assert held["constraint/divergence"] < 0.3 * free["constraint/divergence"]


def test_the_dual_variable_is_seen_moving() -> None:
    recipe = recipes.get("disco").but(**{"penalties.constraint.multiplier": "dual"})
    assert initial_states(recipe) == {"penalty.constraint": {"multiplier": 0.0}}
    found, last = train(recipe)
    assert last["constraint/multiplier"].value > 0
    assert found["constraint/active"] > 0


def test_residuals_shrink_below_the_variance_of_rewards() -> None:
    found, last = train(recipes.get("gvpo"))
    assert 0 < last["residual/mse"].value < last["residual/actual_var"].value
    assert found["residual/cov"] > 0


def test_tokens_are_dropped_and_held() -> None:
    found, _ = train(recipes.get("clip_cov").but(**{"surrogate.floor": 0.1}))
    assert 0 < found["covariance/dropped"] < 0.05
    held, _ = train(recipes.get("kl_cov"))
    assert 0 < held["covariance/held"] < 0.05
    assert held["covariance/moved"] > 0
