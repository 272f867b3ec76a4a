"""arXiv 2503.20783: dividing by a response's length makes wrong answers grow; a constant divisor does not. In closed form."""

from __future__ import annotations

import math

import pytest

from covey import recipes
from covey.recipes.claims.lengths import drift


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
