"""arXiv 2503.20783: dividing by a response's length makes wrong answers grow; a constant divisor does not. In closed form."""

from __future__ import annotations

import math

import pytest
import torch

from covey import recipes
from covey.batch import Credited, Keep, Live
from covey.recipes.recipe import Recipe
from covey.stages.credit import weigh
from covey.stages.objective import objective
from tests.stages.data import as_credited, draw_batch


def drift(recipe: Recipe, p: float, longest: int) -> float:
    """Expected push on the stop logit per unit of negative advantage, lengths geometric with stop probability p."""
    n = longest
    base = draw_batch(0, groups=1, most=1, width=n).rows(torch.zeros(n, dtype=torch.long))
    at, length = torch.arange(n)[None], torch.arange(1, n + 1)
    mask = at < length[:, None]
    logit = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64, requires_grad=True)
    stop, go = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
    logp = torch.where(mask, torch.where(at == length[:, None] - 1, stop, go), torch.zeros((), dtype=torch.float64))
    batch: Credited = as_credited(
        base.with_(
            mask=mask,
            rollout=torch.arange(n),
            limit=torch.full((n,), n),
            stop=torch.zeros(n, dtype=torch.long),
            keep=Keep.all(n),
            old_logp=logp.detach(),
            sampled_logp=logp.detach(),
        )
    )
    columns = {"correction": mask.double(), "ref_logp": logp.detach()}
    step = weigh(recipe, batch.with_(advantage=-mask.double(), columns=columns))
    chance = p * (1 - p) ** (length.double() - 1)
    loss, _ = objective(recipe, Live(logp), step.with_(weight=step.weight * n * chance[:, None]), {})
    (gradient,) = torch.autograd.grad(-loss, logit)
    return -float(gradient)


@pytest.mark.parametrize(("p", "longest", "expected"), [(0.5, 60, 0.193147), (0.1, 330, 0.155843)])
def test_length_division_makes_wrong_answers_longer(p: float, longest: int, expected: float) -> None:
    """E[(1 - pL) / L] = -p ln(p) / (1 - p) - p > 0: the stop probability of wrong answers is pushed down."""
    grpo = recipes.get("grpo").but(penalties=())
    found = drift(grpo, p, longest)
    assert round(found, 6) == expected
    assert found == pytest.approx(-p * math.log(p) / (1 - p) - p, abs=1e-9)


@pytest.mark.parametrize(("p", "longest"), [(0.5, 60), (0.1, 330)])
def test_a_constant_divisor_does_not(p: float, longest: int) -> None:
    """E[1 - pL] = 0."""
    for name in ("dr_grpo", "reinforce"):
        assert abs(drift(recipes.get(name), p, longest)) < 1e-9
