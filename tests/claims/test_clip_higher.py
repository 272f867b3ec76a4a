"""arXiv 2503.14476 section 3.1: the upper clip decides how far a rare token may rise within one rollout batch."""

from __future__ import annotations

import math

import pytest
import torch

from covey import recipes
from covey.batch import Keep, Live
from tests.stages.data import as_credited, draw_batch


def rise(recipe_name: str, start: float = 0.01, steps: int = 200, lr: float = 0.05) -> float:
    """Probability of a rare right arm after many steps of ascent on one batch."""
    recipe = recipes.get(recipe_name)
    one = draw_batch(0, groups=1, most=1, width=1).rows(torch.zeros(1, dtype=torch.long))
    old = torch.tensor([[math.log(start)]], dtype=torch.float64)
    row = as_credited(one.with_(mask=torch.ones(1, 1, dtype=torch.bool), old_logp=old, keep=Keep.all(1)))
    row = row.with_(advantage=torch.ones(1, 1, dtype=torch.float64))
    logit = torch.tensor(math.log(start / (1 - start)), dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        live = Live(torch.nn.functional.logsigmoid(logit).reshape(1, 1))
        gain = recipe.surrogate(recipe.ratio(live, row), live, row).sum()
        (gradient,) = torch.autograd.grad(gain, logit)
        with torch.no_grad():
            logit += lr * gradient
    return float(logit.detach().sigmoid())


@pytest.mark.parametrize(("name", "high", "expected"), [("grpo", 0.2, 0.012354), ("dapo", 0.28, 0.013121)])
def test_a_rare_token_rises_to_the_clip_and_no_further(name: str, high: float, expected: float) -> None:
    found = rise(name)
    assert round(found, 6) == expected
    assert 0.01 * (1 + high) < found < 0.01 * (1 + high) * 1.06
