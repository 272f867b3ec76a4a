"""Expected gradients by enumeration of every batch that could be drawn: which baselines are unbiased, and what a std does."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from covey import recipes
from covey.batch import Batch, Credited, Keep, Live
from covey.recipes.recipe import Recipe
from covey.stages.advantages import BatchBaseline, GroupNorm
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.objective import objective
from tests.stages.data import draw_batch

LOGITS = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
REWARD = torch.tensor([0.2, 1.0, 0.5], dtype=torch.float64)
ARMS = len(LOGITS)


def bandit(draws: list[tuple[int, ...]], reward: Tensor) -> Batch:
    """One group per draw, one token per response: the arm."""
    arms = torch.tensor(draws).flatten()
    n = len(arms)
    base = draw_batch(0, groups=1, most=1, width=1, components=1).rows(torch.zeros(n, dtype=torch.long))
    group = torch.arange(len(draws)).repeat_interleave(len(draws[0]))
    return base.with_(
        tokens=arms[:, None],
        mask=torch.ones(n, 1, dtype=torch.bool),
        group=group,
        prompts=dict.fromkeys(range(len(draws)), (0,)),
        rollout=torch.arange(n),
        limit=torch.ones(n, dtype=torch.long),
        stop=torch.zeros(n, dtype=torch.long),
        reward=reward[arms][:, None],
        keep=Keep.all(n),
    )


def ascent(recipe: Recipe, batch: Batch, logits: Tensor, chance: Tensor | None = None) -> Tensor:
    """The direction that a recipe moves the logits in, rows weighted by `chance` where batches share one tensor."""
    logits = logits.clone().requires_grad_()
    logp = logits.log_softmax(0)[batch.tokens]
    held = logp.detach()
    batch = batch.with_(old_logp=held, sampled_logp=held, columns={"ref_logp": held})
    step: Credited = weigh(recipe, credit(recipe, batch, initial_states(recipe))[0])
    if chance is not None:
        step = step.with_(weight=step.weight * chance[:, None])
    loss, _ = objective(recipe, Live(logp), step, {})
    (gradient,) = torch.autograd.grad(-loss, logits)
    return gradient


def true_gradient(logits: Tensor, reward: Tensor) -> Tensor:
    """The gradient of the expected reward."""
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((logits.softmax(0) * reward).sum(), logits)
    return gradient


def chances(draws: list[tuple[int, ...]], logits: Tensor) -> list[float]:
    """How likely each draw is."""
    p = logits.softmax(0).tolist()
    return [math.prod(p[arm] for arm in draw) for draw in draws]


def expected_batch(recipe: Recipe, n: int) -> Tensor:
    """Expectation for a recipe whose baseline is the batch's: each possible batch is a step of its own."""
    draws = list(product(range(ARMS), repeat=n))
    weights = chances(draws, LOGITS)
    return sum(w * ascent(recipe, bandit([draw], REWARD), LOGITS) for w, draw in zip(weights, draws, strict=True))


def expected_group(recipe: Recipe, size: int, logits: Tensor, reward: Tensor) -> Tensor:
    """Expectation for a recipe whose baseline is the group's: all possible groups at once, weighted by their chance."""
    draws = list(product(range(len(logits)), repeat=size))
    chance = torch.tensor(chances(draws, logits), dtype=torch.float64) * len(draws)
    return ascent(recipe, bandit(draws, reward), logits, chance.repeat_interleave(size))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_reinforce_is_unbiased_but_for_its_own_share_of_the_mean(n: int) -> None:
    """Without a baseline and with the others' mean: exact. With the mean that includes itself: (1 - 1/N) of it."""
    base, truth = recipes.get("reinforce"), true_gradient(LOGITS, REWARD)
    for kind, factor in (("none", 1.0), ("leave_one_out", 1.0), ("mean", 1 - 1 / n)):
        found = expected_batch(base.but(advantage=BatchBaseline(baseline=kind)), n)
        assert torch.allclose(found, factor * truth, rtol=0, atol=1e-12), kind


def test_a_baseline_takes_variance_away() -> None:
    """Where the mean reward is far from 0 the baseline's batches scatter less around the same direction."""
    far, base = REWARD + 5, recipes.get("reinforce")
    draws = list(product(range(ARMS), repeat=3))
    weights = torch.tensor(chances(draws, LOGITS), dtype=torch.float64)

    def scatter(kind: str) -> float:
        recipe = base.but(advantage=BatchBaseline(baseline=kind))
        found = torch.stack([ascent(recipe, bandit([draw], far), LOGITS) for draw in draws])
        mean = (weights[:, None] * found).sum(0)
        return float((weights * (found - mean).square().sum(1)).sum())

    assert scatter("leave_one_out") < scatter("none") / 20


@pytest.mark.parametrize("size", [2, 4])
def test_group_means_scale_the_gradient_and_leave_one_out_does_not(size: int) -> None:
    truth = true_gradient(LOGITS, REWARD)
    plain = recipes.get("dr_grpo").but(**{"weighting.divisor": 1})
    alone = plain.but(advantage=GroupNorm(baseline="leave_one_out", scale="none"))
    assert torch.allclose(expected_group(alone, size, LOGITS, REWARD), truth, atol=1e-12)
    assert torch.allclose(expected_group(plain, size, LOGITS, REWARD), (1 - 1 / size) * truth, atol=1e-12)


def factor(recipe: Recipe, size: int, p: float) -> float:
    """Expected gradient over true gradient for a prompt that is solved with probability p."""
    logits = torch.tensor([math.log(p), math.log(1 - p)], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found, truth = expected_group(recipe, size, logits, reward), true_gradient(logits, reward)
    assert torch.allclose(found / truth, (found / truth)[:1], rtol=1e-9)
    return float((found / truth)[0])


def test_grpo_weighs_prompts_by_how_hard_they_are() -> None:
    """The std makes the expected gradient another multiple of the true one for each success rate; G = 2: 1/sqrt(2) always."""
    grpo = recipes.get("grpo").but(penalties=(), **{"advantage.eps": 0.0})
    for p in (0.05, 0.5, 0.9):
        assert factor(grpo, 2, p) == pytest.approx(math.sqrt(0.5), abs=1e-9)
    found = {p: round(factor(grpo, 4, p), 2) for p in (0.024, 1 / 3, 0.909)}
    assert found == {0.024: 1.49, 1 / 3: 1.41, 0.909: 1.47}


def test_dr_grpo_weighs_all_prompts_alike() -> None:
    plain = recipes.get("dr_grpo").but(**{"weighting.divisor": 1})
    for p in (0.024, 1 / 3, 0.909):
        assert factor(plain, 4, p) == pytest.approx(0.75, abs=1e-9)
