"""Noise is a pure function of key, token and vocabulary index, exponential, and never lets a token win by rounding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covey.engines.noise import key_tensor, noise, signed
from covey.random import splitmix

ALL = (1 << 64) - 1


def slow_noise(key: int, index: int, token: int) -> float:
    """The same with Python's integers."""
    row = splitmix((key + index * 0xD1342543DE82EF95) & ALL)
    bits = splitmix((row + token * 0x9E3779B97F4A7C15) & ALL) >> 24
    return -math.log1p(-(bits + 0.5) / 2**40)


@given(st.integers(0, ALL), st.integers(0, 100_000), st.integers(1, 40))
def test_noise_is_splitmix(key: int, index: int, vocabulary: int) -> None:
    found = noise(key_tensor([key, key ^ 1]), index, vocabulary)
    for row, one in enumerate((key, key ^ 1)):
        for token in range(vocabulary):
            assert found[row, token].item() == pytest.approx(slow_noise(one, index, token), rel=1e-13)


def test_golden_values() -> None:
    found = noise(key_tensor([0, ALL]), 7, 3)
    expected = torch.tensor(
        [[0.0723840057, 0.236995827, 0.184291268], [0.4734783259, 0.4347636991, 1.1002005097]], dtype=torch.float64
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_moments_and_independence() -> None:
    found = noise(key_tensor(range(400)), torch.arange(400), 1000)
    assert found.mean().item() == pytest.approx(1.0, abs=0.01)
    assert found.var().item() == pytest.approx(1.0, abs=0.03)
    assert found.quantile(0.5, dim=1).mean().item() == pytest.approx(math.log(2), abs=0.01)
    rows = torch.corrcoef(found[:40])
    assert (rows - torch.eye(40)).abs().max() < 0.2
    assert torch.corrcoef(found[:, :40].T).fill_diagonal_(0).abs().max() < 0.25
    late = noise(key_tensor(range(400)), torch.arange(400) + 1, 1000)
    assert torch.corrcoef(torch.stack([found.flatten(), late.flatten()]))[0, 1].abs() < 0.01


def test_extremes_are_finite_and_positive() -> None:
    """The 40 bits at their ends: no 0 (an infinite score) and no infinity (u = 1)."""
    for bits in (0, 2**40 - 1):
        u = torch.tensor((bits + 0.5) * 2.0**-40, dtype=torch.float64)
        value = -torch.log1p(-u)
        assert 0 < value < 30
    found = noise(key_tensor([3]), 0, 2_000_000)
    assert found.min() > 0
    assert found.max() < 30
    assert found.max() > 11, "24 bits would end at 17.3, 2^21 draws reach about 14.5"


def test_rows_do_not_see_each_other() -> None:
    keys = key_tensor(range(10))
    whole = noise(keys, 3, 50)
    assert torch.equal(whole[4:5], noise(keys[4:5], 3, 50))
    assert torch.equal(whole[:, :20], noise(keys, 3, 20))
    assert torch.equal(whole, noise(keys, torch.full((10,), 3), 50))


def test_signed_keeps_the_bits() -> None:
    assert [signed(value) for value in (0, 2**63 - 1, 2**63, ALL)] == [0, 2**63 - 1, -(2**63), -1]
