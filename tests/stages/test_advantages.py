"""Baselines and scales: oracles, goldens by hand, invariances."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covey.batch import Batch, Keep
from covey.errors import ConfigError
from covey.stages.advantages import BatchBaseline, GroupNorm
from tests.stages import oracle
from tests.stages.data import draw_batch, draw_keep, with_score

SEEDS = st.integers(0, 10_000)
ONE, TWO = [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]


def batch_of(*groups: list[float]) -> Batch:
    """One row of two tokens per score; group ids far apart and out of order."""
    scores = [score for group in groups for score in group]
    ids = [900 - 7 * at for at, group in enumerate(groups) for _ in group]
    n = len(scores)
    base = draw_batch(0, groups=1, most=1, width=2, components=1).rows(torch.zeros(n, dtype=torch.long))
    return with_score(
        base.with_(
            mask=torch.ones(n, 2, dtype=torch.bool),
            group=torch.tensor(ids),
            rollout=torch.arange(n),
            reward=torch.tensor(scores, dtype=torch.float64)[:, None],
            keep=Keep.all(n),
        )
    )


def rounded(part: GroupNorm | BatchBaseline, *groups: list[float]) -> list[float]:
    """The advantages to six digits, one per row."""
    return [round(value, 6) + 0.0 for value in part(batch_of(*groups))[:, 0].tolist()]


@pytest.mark.parametrize(
    ("baseline", "scale", "ddof"), list(product(["mean", "leave_one_out"], ["none", "group", "batch"], [0, 1]))
)
@given(seed=SEEDS, graded=st.booleans(), eps=st.sampled_from([0.0, 1e-6, 1e-4]))
def test_group_norm_is_the_formula(baseline: str, scale: str, ddof: int, seed: int, graded: bool, eps: float) -> None:
    batch = draw_batch(seed, graded=graded)
    batch = with_score(batch, draw_keep(batch, seed))
    options = {} if scale == "none" else {"ddof": ddof, "eps": eps}
    found = GroupNorm(baseline=baseline, scale=scale, **options)(batch)
    scores, counts = batch.columns["score"].tolist(), batch.keep.statistics.tolist()
    expected = oracle.group_norm(scores, batch.group.tolist(), counts, baseline=baseline, scale=scale, **options)
    for row, value, mask in zip(found.tolist(), expected, batch.mask.tolist(), strict=True):
        assert row == [pytest.approx(value, rel=1e-12, abs=1e-12) if m else 0.0 for m in mask]


def test_goldens_of_group_norm() -> None:
    assert rounded(GroupNorm(), ONE) == [1.499997, -0.499999, -0.499999, -0.499999]
    assert rounded(GroupNorm(eps=1e-4), ONE) == [1.4997, -0.4999, -0.4999, -0.4999]
    assert rounded(GroupNorm(ddof=0), ONE) == [1.732047, -0.577349, -0.577349, -0.577349]
    assert rounded(GroupNorm(scale="none"), ONE) == [0.75, -0.25, -0.25, -0.25]
    assert rounded(GroupNorm(baseline="leave_one_out", scale="none"), ONE) == [1.0, -0.333333, -0.333333, -0.333333]


def test_golden_of_the_raw_batch_std() -> None:
    expected = [1.403119, -0.467706, -0.467706, -0.467706, 0.467706, 0.467706, 0.467706, -1.403119]
    assert rounded(GroupNorm(scale="batch"), ONE, TWO) == expected
    assert rounded(GroupNorm(scale="batch", eps=1e-4), ONE)[0] == 1.4997


def test_goldens_of_batch_baselines() -> None:
    half = [0.5, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, -0.5]
    assert rounded(BatchBaseline(), ONE, TWO) == half
    loo = [round(value * 8 / 7, 6) for value in half]
    assert loo[0] == 0.571429
    assert rounded(BatchBaseline(baseline="leave_one_out"), ONE, TWO) == loo
    assert rounded(BatchBaseline(baseline="none"), ONE, TWO) == ONE + TWO


@given(seed=SEEDS, graded=st.booleans())
def test_batch_baseline_is_the_formula(seed: int, graded: bool) -> None:
    batch = draw_batch(seed, graded=graded)
    batch = with_score(batch, draw_keep(batch, seed))
    scores, counts = batch.columns["score"].tolist(), batch.keep.statistics.tolist()
    members = [s for s, c in zip(scores, counts, strict=True) if c]
    n, total = len(members), sum(members)
    for kind in ("mean", "leave_one_out", "none"):
        found = BatchBaseline(baseline=kind)(batch)
        for i, row in enumerate(found.tolist()):
            base = {"mean": total / max(n, 1), "none": 0.0}.get(kind)
            if base is None:
                base = (total - scores[i]) / (n - 1) if n > 1 else scores[i]
            value = scores[i] - base if counts[i] else 0.0
            assert row == [pytest.approx(value, rel=1e-12, abs=1e-12) if m else 0.0 for m in batch.mask[i].tolist()]


def test_a_moving_baseline_uses_the_value_before_the_update() -> None:
    part = BatchBaseline(baseline="moving", decay=0.9)
    state = part.initial()
    seen = []
    for scores in ([1.0, 0.0], [1.0, 1.0], [0.0, 0.0]):
        advantage, state = part(batch_of(scores), state=state)
        seen.append(([round(value, 6) for value in advantage[:, 0].tolist()], round(state["baseline"], 6)))
    assert seen == [([0.5, -0.5], 0.5), ([0.5, 0.5], 0.55), ([-0.55, -0.55], 0.495)]


def test_a_moving_baseline_reads_its_state_in_full_precision() -> None:
    """0.1 is no float32 number: a state that passed through one would show here."""
    advantage, state = BatchBaseline(baseline="moving", decay=0.5)(batch_of([0.1, 0.1]), state={"baseline": 0.1})
    assert (advantage == 0).all()
    assert state == {"baseline": 0.1}


def test_a_moving_baseline_learns_nothing_from_nobody() -> None:
    batch = batch_of([1.0, 0.0])
    nobody = torch.zeros(2, dtype=torch.bool)
    batch = batch.with_(keep=Keep(nobody, nobody, nobody))
    for before in (None, 0.7):
        advantage, state = BatchBaseline(baseline="moving")(batch, state={"baseline": before})
        assert (advantage == 0).all()
        assert state == {"baseline": before}


@given(seed=SEEDS, shift=st.floats(-100, 100))
def test_adding_a_constant_to_all_rewards_changes_nothing(seed: int, shift: float) -> None:
    batch = with_score(draw_batch(seed, graded=True))
    moved = batch.with_(columns={"score": batch.columns["score"] + shift})
    for part in (GroupNorm(), GroupNorm(scale="none"), GroupNorm(scale="batch"), BatchBaseline()):
        assert torch.allclose(part(moved), part(batch), rtol=1e-6, atol=1e-9)


@given(seed=SEEDS, factor=st.floats(0.01, 100))
def test_a_scale_removes_the_unit_of_the_reward(seed: int, factor: float) -> None:
    batch = with_score(draw_batch(seed, graded=True))
    larger = batch.with_(columns={"score": batch.columns["score"] * factor})
    for scale in ("group", "batch"):
        part = GroupNorm(scale=scale, eps=0.0)
        assert torch.allclose(part(larger), part(batch), rtol=1e-9, atol=1e-9)


@given(value=st.floats(-1e6, 1e6), n=st.integers(1, 9))
def test_equal_scores_are_worth_exactly_nothing(value: float, n: int) -> None:
    """[0.1] * 3 has a population std of 1.39e-17 in floating point: equality must not be asked of a std."""
    for part in (GroupNorm(), GroupNorm(eps=0.0), GroupNorm(ddof=0, eps=0.0), GroupNorm(scale="none"), BatchBaseline()):
        assert (part(batch_of([value] * n)) == 0).all()
    assert (GroupNorm(scale="batch", eps=0.0)(batch_of([value] * n, [0.0, 1.0]))[:n] == 0).all()


def test_a_group_of_one_is_worth_nothing() -> None:
    for part in (GroupNorm(), GroupNorm(scale="none"), GroupNorm(baseline="leave_one_out", scale="none")):
        assert rounded(part, [5.0], [1.0, 0.0])[0] == 0.0


def test_rows_outside_the_statistics_neither_count_nor_move_the_baseline() -> None:
    batch = batch_of([1.0, 0.0, math.nan])
    in_statistics = torch.tensor([True, True, False])
    batch = batch.with_(keep=Keep(in_statistics, in_statistics, torch.ones(3, dtype=torch.bool)))
    assert GroupNorm(scale="none")(batch)[:, 0].tolist() == [0.5, -0.5, 0.0]
    assert BatchBaseline()(batch)[:, 0].tolist() == [0.5, -0.5, 0.0]


def test_options_that_nobody_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe.advantage.eps: nobody reads it with scale=none"):
        GroupNorm(scale="none", eps=1e-4)
    with pytest.raises(ConfigError, match=r"recipe.advantage.ddof"):
        GroupNorm(scale="none", ddof=0)
    with pytest.raises(ConfigError, match=r"recipe.advantage.decay: nobody reads it with baseline=mean"):
        BatchBaseline(decay=0.5)
    assert BatchBaseline(baseline="moving", decay=0.5).decay == 0.5
