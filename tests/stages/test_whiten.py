"""Whitening over the batch: oracle, goldens by hand, what has no variance, and what is left out."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covey.batch import Batch, Keep
from covey.stages.masked import broadcast, masked
from covey.stages.shapers import Whiten
from tests.stages import oracle_credit as oracle
from tests.stages.data import draw_batch, draw_keep
from tests.stages.test_advantages import ONE, TWO, batch_of

SEEDS = st.integers(0, 10_000)
OPTIONS = list(product(["rollout", "token"], [True, False], [0, 1], [True, False], ["all", "active_groups"]))


def ragged(*groups: list[float], lengths: tuple[int, ...] = (2, 4, 6, 8)) -> Batch:
    """Rows with these scores and, in each group, these lengths."""
    batch = batch_of(*groups)
    own = torch.tensor([lengths[at] for group in groups for at in range(len(group))])
    mask = torch.arange(int(own.max()))[None] < own[:, None]
    blank = torch.zeros(mask.shape, dtype=torch.float64)
    return batch.with_(mask=mask, tokens=mask.long(), old_logp=blank, sampled_logp=blank, length=own)


def whitened(part: Whiten, batch: Batch, values: list[float]) -> list[float]:
    """The first token's advantage of each row to six digits."""
    advantage = broadcast(torch.tensor(values, dtype=torch.float64), batch.mask)
    return [round(value, 6) + 0.0 for value in part(advantage, batch)[:, 0].tolist()]


@pytest.mark.parametrize(("unit", "center", "ddof", "inside", "over"), OPTIONS)
@given(seed=SEEDS, per_row=st.booleans(), eps=st.sampled_from([0.0, 1e-8, 1e-4]))
def test_whitening_is_the_formula(
    unit: str, center: bool, ddof: int, inside: bool, over: str, seed: int, per_row: bool, eps: float
) -> None:
    batch = draw_batch(seed)
    batch = batch.with_(keep=draw_keep(batch, seed))
    draw = torch.Generator().manual_seed(seed)
    shape = (batch.size, 1 if per_row else batch.mask.shape[1])
    values = torch.randint(-2, 3, shape, generator=draw).double() / 3
    advantage = masked(values.expand(batch.mask.shape), batch.mask & batch.keep.statistics[:, None])
    options = {"unit": unit, "center": center, "ddof": ddof, "inside": inside, "over": over, "eps": eps}
    found = Whiten(**options)(advantage, batch)
    expected = torch.tensor(oracle.whiten(batch, advantage.tolist(), **options), dtype=torch.float64)
    assert torch.allclose(found, expected.reshape(found.shape), rtol=1e-9, atol=1e-9)


def test_goldens() -> None:
    """[1,0,0,0], [1,1,1,0] with responses of 2, 4, 6, 8 tokens in both groups."""
    batch, raw = ragged(ONE, TWO), ONE + TWO
    per_rollout = whitened(Whiten(), batch, raw)
    assert per_rollout == [0.935414 if score else -0.935414 for score in raw]
    per_token = whitened(Whiten(unit="token"), batch, raw)
    assert per_token == [1.345628 if score else -0.724569 for score in raw]
    centered = [0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75]
    assert whitened(Whiten(), batch, centered) == [1.620185, *[-0.540062] * 3, *[0.540062] * 3, -1.620185]
    by_token = [2.187776, *[-0.243086] * 3, *[0.972345] * 3, -1.458517]
    assert whitened(Whiten(unit="token"), batch, centered) == by_token
    population = [2.215647, *[-0.246183] * 3, *[0.984732] * 3, -1.477098]
    assert whitened(Whiten(unit="token", ddof=0), batch, centered) == population


def test_what_has_no_variance_is_worth_exactly_nothing() -> None:
    """A divisor of eps alone would make whole numbers out of rounding."""
    equal = batch_of([0.1] * 3, [0.1] * 3)
    noise = [0.1, 0.1 + 1e-17, 0.1, 0.1 - 2e-17, 0.1, 0.1 + 3e-15]
    for part in (Whiten(), Whiten(eps=0.0), Whiten(unit="token", inside=False, eps=0.0), Whiten(center=False)):
        assert whitened(part, equal, [0.1] * 6) == [0.0] * 6
        assert whitened(part, equal, noise) == [0.0] * 6
        assert whitened(part, equal, [0.0] * 6) == [0.0] * 6
        assert whitened(part, batch_of([1.0]), [5.0]) == [0.0]


@given(seed=SEEDS)
def test_a_whitened_batch_has_mean_0_and_variance_1(seed: int) -> None:
    batch = draw_batch(seed)
    values = torch.randn(batch.mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = Whiten(unit="token", eps=0.0)(masked(values, batch.mask), batch)[batch.mask]
    if found.numel() > 1:
        assert float(found.mean()) == pytest.approx(0, abs=1e-9)
        assert float(found.std()) == pytest.approx(1, rel=1e-9)


def test_rows_outside_the_statistics_keep_0_and_move_nobody() -> None:
    batch = batch_of([1.0, 0.0, 1.0, 0.0], [math.nan])
    member = torch.tensor([True, True, True, True, False])
    batch = batch.with_(keep=Keep(torch.ones(5, dtype=torch.bool), member, torch.ones(5, dtype=torch.bool)))
    assert whitened(Whiten(), batch, [0.5, -0.5, 0.5, -0.5, 0.0]) == [0.866025, -0.866025, 0.866025, -0.866025, 0.0]


def test_groups_without_a_signal_can_be_left_out_of_the_variance() -> None:
    """Half of the groups all equal: with them the std shrinks by about sqrt(2) and the others grow."""
    batch = batch_of([1.0, 0.0], [1.0, 1.0])
    values = [0.5, -0.5, 0.0, 0.0]
    assert whitened(Whiten(eps=0.0), batch, values) == [1.224745, -1.224745, 0.0, 0.0]
    assert whitened(Whiten(eps=0.0, over="active_groups"), batch, values) == [0.707107, -0.707107, 0.0, 0.0]


def test_the_formula_names_its_options() -> None:
    text = Whiten(unit="token", ddof=0, eps=1e-6, inside=False).latex()
    assert all(part in text for part in ("n,t", "ddof}=0", "}+10^{-6}"))
    assert "+10^{-8}}" in Whiten().latex()
    assert "mean" not in Whiten(center=False).latex()
