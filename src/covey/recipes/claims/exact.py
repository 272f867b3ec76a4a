"""Expected gradients by enumeration of every batch that could be drawn: which baselines are unbiased, what a std does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from covey.recipes.claims.data import ascend, bandit
from covey.recipes.recipe import Recipe

LOGITS = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
REWARD = torch.tensor([0.2, 1.0, 0.5], dtype=torch.float64)


def true_gradient(logits: Tensor, reward: Tensor) -> Tensor:
    """The gradient of the expected reward."""
    logits = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((logits.softmax(0) * reward).sum(), logits)
    return gradient


def chances(draws: Sequence[tuple[int, ...]], logits: Tensor) -> list[float]:
    """How likely each draw is."""
    p = logits.softmax(0).tolist()
    return [math.prod(p[arm] for arm in draw) for draw in draws]


def every_batch(recipe: Recipe, n: int, *, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Each possible batch of n draws as a step of its own: its chance and its direction; `shift` is added to all rewards."""
    draws = list(product(range(len(LOGITS)), repeat=n))
    found = torch.stack([ascend(recipe, bandit([draw], REWARD + shift), LOGITS) for draw in draws])
    return torch.tensor(chances(draws, LOGITS), dtype=torch.float64), found


def expect_batch(recipe: Recipe, n: int) -> Tensor:
    """Expectation for a recipe whose baseline is the batch's."""
    chance, found = every_batch(recipe, n)
    return (chance[:, None] * found).sum(0)


def scatter(recipe: Recipe, n: int, *, shift: float = 0.0) -> float:
    """The variance of a batch's direction, summed over logits."""
    chance, found = every_batch(recipe, n, shift=shift)
    mean = (chance[:, None] * found).sum(0)
    return float((chance * (found - mean).square().sum(1)).sum())


def expect_group(recipe: Recipe, size: int, logits: Tensor, reward: Tensor) -> Tensor:
    """Expectation for a recipe whose baseline is the group's: all possible groups at once, weighted by their chance."""
    draws = list(product(range(len(logits)), repeat=size))
    chance = torch.tensor(chances(draws, logits), dtype=torch.float64) * len(draws)
    return ascend(recipe, bandit(draws, reward), logits, chance.repeat_interleave(size))


def two_arms(p: float) -> tuple[Tensor, Tensor]:
    """Logits and rewards of a prompt that is solved with probability p."""
    return torch.tensor([math.log(p), math.log(1 - p)], dtype=torch.float64), torch.tensor([1.0, 0.0]).double()


def factor(recipe: Recipe, size: int, p: float) -> float:
    """Expected gradient over true gradient for a prompt that is solved with probability p."""
    logits, reward = two_arms(p)
    return float((expect_group(recipe, size, logits, reward) / true_gradient(logits, reward))[0])
