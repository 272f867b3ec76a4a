"""arXiv 2503.14476 section 3.1: the upper clip decides how far a rare token may rise within one rollout batch."""

from __future__ import annotations

import math

import pytest

from covey.recipes.claims.clips import rise


@pytest.mark.parametrize(("name", "high", "expected"), [("grpo", 0.2, 0.012354), ("dapo", 0.28, 0.013121)])
def test_a_rare_token_rises_to_the_clip_and_no_further(name: str, high: float, expected: float) -> None:
    found = rise(name)
    assert round(found, 6) == expected
    assert 0.01 * (1 + high) < found < 0.01 * (1 + high) * 1.06


def test_a_detached_weight_knows_no_such_end() -> None:
    """The same ascent as a slow sum: the logit moves by lr * min(rho, 5) * (1 - p)."""
    logit = math.log(0.01 / 0.99)
    for _ in range(200):
        p = 1 / (1 + math.exp(-logit))
        logit += 0.05 * min(p / 0.01, 5) * (1 - p)
    assert rise("cispo") == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-9)
    assert round(rise("cispo"), 6) == 0.975325
