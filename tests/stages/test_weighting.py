"""Normalisations: oracles, the worked example, and what they sum to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covey.batch import Batch, Keep
from covey.registry import Component
from covey.stages.weighting import Constant, GroupSum, GroupTokenMean, RolloutMean, RolloutSum, TokenMean
from tests.stages import oracle
from tests.stages.data import draw_batch, draw_keep

SEEDS = st.integers(0, 10_000)


def four_rows() -> tuple[Batch, torch.Tensor]:
    """Four responses of 1, 4, 2, 3 tokens with losses 1, 2, 3, 4 per token, in a padding of 9."""
    lengths = [1, 4, 2, 3]
    mask = torch.tensor([[t < length for t in range(9)] for length in lengths])
    base = draw_batch(0, groups=1, most=1, width=9).rows(torch.zeros(4, dtype=torch.long))
    ids = torch.arange(4)
    batch = base.with_(mask=mask, group=ids // 2, rollout=ids, limit=torch.full((4,), 4), keep=Keep.all(4))
    return batch, mask * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (TokenMean(), 2.7),
        (RolloutMean(), 2.5),
        (RolloutSum(), 6.75),
        (Constant(divisor=4), 1.6875),
        (Constant(), 1.6875),
        (GroupTokenMean(), (9 / 5 + 18 / 5) / 2),
        (GroupSum(), 27 / 2),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_worked_example(part: Component, expected: float) -> None:
    batch, losses = four_rows()
    assert float((part(batch) * losses).sum()) == pytest.approx(expected, abs=1e-12)


def test_the_constant_is_the_budget_and_never_the_padded_width() -> None:
    batch, losses = four_rows()
    wider = batch.with_(limit=torch.full((4,), 9))
    assert float((Constant()(wider) * losses).sum()) == pytest.approx(0.75, abs=1e-12)


@pytest.mark.parametrize(
    "kind", ["token_mean", "group_token_mean", "group_sum", "rollout_mean", "rollout_sum", "constant"]
)
@given(
    seed=SEEDS, filtered=st.booleans(), unit=st.sampled_from(["rollout", "row"]), divisor=st.sampled_from(["limit", 7])
)
def test_weights_are_the_formula(kind: str, seed: int, filtered: bool, unit: str, divisor: int | str) -> None:
    batch = draw_batch(seed)
    batch = batch.with_(keep=draw_keep(batch, seed)) if filtered else batch
    part = {
        "token_mean": TokenMean(),
        "group_token_mean": GroupTokenMean(),
        "group_sum": GroupSum(),
        "rollout_mean": RolloutMean(unit=unit),
        "rollout_sum": RolloutSum(unit=unit),
        "constant": Constant(unit=unit, divisor=divisor),
    }[kind]
    found, expected = part(batch), oracle.weights(batch, kind, unit, divisor)
    assert found.dtype == torch.float64
    assert found.tolist() == [pytest.approx(row, rel=1e-12, abs=0) for row in expected]


@given(seed=SEEDS)
def test_means_sum_to_one(seed: int) -> None:
    """A mean of a constant is that constant, whatever the lengths; empty responses count in the mean over responses."""
    batch = draw_batch(seed)
    tokens = int(batch.mask.sum())
    assert float(TokenMean()(batch).sum()) == pytest.approx(1.0 if tokens else 0.0)
    spoken = {int(r) for r, row in zip(batch.rollout, batch.mask, strict=True) if row.any()}
    rollouts = len(batch.rollout.unique())
    assert float(RolloutMean()(batch).sum()) == pytest.approx(len(spoken) / rollouts)


@given(seed=SEEDS)
def test_a_rewritten_rollout_has_one_vote(seed: int) -> None:
    """A rollout in several rows counts once per rollout, or once per row if asked."""
    batch = draw_batch(seed)
    weight = RolloutMean()(batch).sum(1)
    rollouts = len(batch.rollout.unique())
    for rollout in batch.rollout.unique():
        own = batch.rollout == rollout
        if batch.mask[own].any():
            assert float(weight[own].sum()) == pytest.approx(1 / rollouts)


def test_an_empty_step_weighs_nothing() -> None:
    batch, _ = four_rows()
    nobody = torch.zeros(4, dtype=torch.bool)
    for part in (TokenMean(), GroupTokenMean(), GroupSum(), RolloutMean(), RolloutSum(), Constant()):
        assert (part(batch.with_(mask=torch.zeros_like(batch.mask))) == 0).all()
        assert (part(batch.with_(keep=Keep(nobody, nobody, nobody))) == 0).all()


def test_masking_a_row_does_not_amplify_the_others_unless_asked() -> None:
    """Row 0 out of the loss: all rows in the denominator gives 2.25, kept rows only gives 3 (mean of 2, 3, 4)."""
    batch, losses = four_rows()
    out, yes = torch.tensor([False, True, True, True]), torch.ones(4, dtype=torch.bool)
    faithful = batch.with_(keep=Keep(out, yes, yes))
    amplified = batch.with_(keep=Keep(out, yes, out))
    assert float((RolloutMean()(faithful) * losses).sum()) == pytest.approx(2.25)
    assert float((RolloutMean()(amplified) * losses).sum()) == pytest.approx(3.0)


@given(seed=SEEDS)
def test_what_is_spread_over_a_group_comes_back_as_one_number(seed: int) -> None:
    """A value per group, spread evenly over its tokens: the weighted sum is the mean of the values over all groups."""
    batch = draw_batch(seed)
    values, spread, total = {}, torch.zeros(batch.mask.shape, dtype=torch.float64), 0.0
    for at, group in enumerate(batch.group.unique().tolist()):
        own = batch.mask & (batch.group == group)[:, None]
        values[group] = float(at + 1)
        if own.any():
            spread[own] = values[group] / float(own.sum())
            total += values[group]
    assert float((GroupSum()(batch) * spread).sum()) == pytest.approx(total / len(values))
