"""Expected gradients by enumeration of every batch that could be drawn: which baselines are unbiased, and what a std does."""

from __future__ import annotations

import math

import pytest
import torch

from covey import recipes
from covey.recipes.claims.exact import LOGITS, REWARD, expect_batch, expect_group, factor, scatter, true_gradient
from covey.stages.advantages import BatchBaseline, GroupNorm


def test_the_true_gradient_is_that_of_the_softmax() -> None:
    """d sum p R / d z_i = p_i (R_i - sum p R), by hand."""
    p = [math.exp(z) for z in LOGITS.tolist()]
    p = [value / sum(p) for value in p]
    mean = sum(a * b for a, b in zip(p, REWARD.tolist(), strict=True))
    by_hand = [a * (b - mean) for a, b in zip(p, REWARD.tolist(), strict=True)]
    assert true_gradient(LOGITS, REWARD).tolist() == pytest.approx(by_hand, abs=1e-15)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_reinforce_is_unbiased_but_for_its_own_share_of_the_mean(n: int) -> None:
    """Without a baseline and with the others' mean: exact. With the mean that includes itself: (1 - 1/N) of it."""
    base, truth = recipes.get("reinforce"), true_gradient(LOGITS, REWARD)
    for kind, share in (("none", 1.0), ("leave_one_out", 1.0), ("mean", 1 - 1 / n)):
        found = expect_batch(base.but(advantage=BatchBaseline(baseline=kind)), n)
        assert torch.allclose(found, share * truth, rtol=0, atol=1e-12), kind


def test_a_baseline_takes_variance_away() -> None:
    """Where the mean reward is far from 0 the baseline's batches scatter less around the same direction."""
    base = recipes.get("reinforce")
    found = {
        kind: scatter(base.but(advantage=BatchBaseline(baseline=kind)), 3, shift=5)
        for kind in ("leave_one_out", "none")
    }
    assert found["leave_one_out"] < found["none"] / 20


@pytest.mark.parametrize("size", [2, 4])
def test_group_means_scale_the_gradient_and_leave_one_out_does_not(size: int) -> None:
    truth = true_gradient(LOGITS, REWARD)
    plain = recipes.get("dr_grpo").but(**{"weighting.divisor": 1})
    alone = plain.but(advantage=GroupNorm(baseline="leave_one_out", scale="none"))
    assert torch.allclose(expect_group(alone, size, LOGITS, REWARD), truth, atol=1e-12)
    assert torch.allclose(expect_group(plain, size, LOGITS, REWARD), (1 - 1 / size) * truth, atol=1e-12)


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
