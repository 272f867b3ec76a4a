"""Tokens are drawn from exactly the distribution that the settings describe."""

from __future__ import annotations

import math

import pytest
import torch

from covey.engines import choice
from covey.engines.choice import choose, truncate
from covey.engines.noise import key_tensor
from covey.types import Sampling

DRAWS = 20_000


def slow_truncate(p: list[float], top_k: int, top_p: float) -> list[float]:
    """Top-k, then top-p of what is left, by sorting by hand."""
    order = sorted(range(len(p)), key=lambda token: (-p[token], token))
    kept = order[:top_k] if top_k else order
    total, chosen, held = sum(p[token] for token in kept), [], 0.0
    for token in kept:
        if chosen and held >= top_p:
            break
        chosen.append(token)
        held += p[token] / total
    mass = sum(p[token] for token in chosen)
    return [p[token] / mass if token in chosen else 0.0 for token in range(len(p))]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (5, 0.7), (1, 1.0), (0, 1e-9), (50, 0.95)])
def test_truncation_matches_the_slow_one(top_k: int, top_p: float) -> None:
    logits = torch.randn(20, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2
    found = truncate(logits.log_softmax(-1), top_k=top_k, top_p=top_p).exp()
    for row, p in zip(found, logits.softmax(-1).tolist(), strict=True):
        torch.testing.assert_close(row, torch.tensor(slow_truncate(p, top_k, top_p), dtype=torch.float64))


def test_ties_keep_the_lower_id() -> None:
    logp = torch.zeros(1, 4).log_softmax(-1)
    assert truncate(logp, top_k=2, top_p=1.0).exp().tolist() == [[0.5, 0.5, 0.0, 0.0]]


def chi_square(counts: torch.Tensor, p: torch.Tensor) -> float:
    """Pearson's statistic over the tokens that can occur."""
    expected = p * counts.sum()
    return float(((counts - expected)[p > 0] ** 2 / expected[p > 0]).sum())


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=2.0),
        Sampling(top_p=0.8),
        Sampling(top_k=4, temperature=0.7),
    ],
)
def test_frequencies(sampling: Sampling) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, 1.5, -3.0, 0.7]])
    p = (logits[0] / sampling.temperature).softmax(-1).tolist()
    p = torch.tensor(slow_truncate(p, sampling.top_k, sampling.top_p), dtype=torch.float64)
    drawn = choose(logits.expand(DRAWS, -1), key_tensor(range(DRAWS)), 0, sampling)
    counts = torch.bincount(drawn.token, minlength=8).double()
    assert counts[p == 0].sum() == 0
    degrees = int((p > 0).sum()) - 1
    assert chi_square(counts, p) < degrees + 4 * math.sqrt(2 * degrees) + 4
    torch.testing.assert_close(drawn.sampled_logp.double(), p[drawn.token].log(), rtol=1e-5, atol=1e-6)


def test_policy_logp_is_the_untruncated_one() -> None:
    logits = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
    cut = choose(logits, key_tensor(range(64)), 3, Sampling(temperature=0.7, top_p=0.5))
    assert cut.policy_logp is not None
    whole = (logits / 0.7).log_softmax(-1).gather(-1, cut.token[:, None])[:, 0]
    assert torch.equal(cut.policy_logp, whole)
    assert (cut.sampled_logp >= cut.policy_logp).all()
    assert choose(logits, key_tensor(range(64)), 3, Sampling()).policy_logp is None


def test_greedy_takes_the_likeliest_at_temperature_one() -> None:
    logits = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    found = choose(logits, key_tensor(range(9)), 0, Sampling(temperature=0, top_p=0.1))
    assert torch.equal(found.token, logits.argmax(-1))
    assert torch.equal(found.sampled_logp, logits.log_softmax(-1).max(-1).values)
    assert found.policy_logp is None


def test_masked_vocabulary_is_never_drawn() -> None:
    logits = torch.zeros(500, 6)
    logits[:, 2:] = -torch.inf
    found = choose(logits, key_tensor(range(500)), 0, Sampling(top_p=0.9))
    assert set(found.token.tolist()) == {0, 1}


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    whole = choose(logits, key_tensor(range(50)), 1, Sampling(top_k=7))
    monkeypatch.setattr(choice, "_NUMBERS_PER_CHUNK", 16 * 30)
    parts = choose(logits, key_tensor(range(50)), 1, Sampling(top_k=7))
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)
