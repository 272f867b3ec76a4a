"""The divergence that an advantage pays for from its token on: oracle, golden by hand, what stays as it was."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from covey.batch import Batch
from covey.stages.masked import masked
from covey.stages.shapers import KlToGo
from tests.stages.data import draw_batch, draw_keep
from tests.stages.test_advantages import batch_of


def slow(batch: Batch, advantage: list[list[float]], coef: float) -> list[list[float]]:
    """One token at a time, from the last to the first."""
    old, ref, mask = batch.old_logp.tolist(), batch.columns["ref_logp"].tolist(), batch.mask.tolist()
    out = [list(row) for row in advantage]
    for i, row in enumerate(mask):
        later = 0.0
        for t in reversed(range(len(row))):
            if row[t] and bool(batch.keep.statistics[i]):
                later += old[i][t] - ref[i][t]
                out[i][t] -= coef * later
    return out


@given(seed=st.integers(0, 10_000), coef=st.sampled_from([0.01, 0.5]))
def test_it_is_the_sum_of_what_is_to_come(seed: int, coef: float) -> None:
    batch = draw_batch(seed)
    batch = batch.with_(keep=draw_keep(batch, seed))
    draw = torch.Generator().manual_seed(seed)
    advantage = masked(torch.randn(batch.mask.shape, generator=draw, dtype=torch.float64), batch.mask)
    found = KlToGo(coef=coef)(advantage, batch)
    expected = torch.tensor(slow(batch, advantage.tolist(), coef), dtype=torch.float64).reshape(found.shape)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_by_hand() -> None:
    """old - ref = 0.1, (a tool's token), -0.3: to go -0.2 and -0.3; times 0.5."""
    batch = batch_of([1.0])
    mask = torch.tensor([[True, False, True]])
    old = torch.tensor([[-1.0, 0.0, -2.0]], dtype=torch.float64)
    ref = torch.tensor([[-1.1, 9.0, -1.7]], dtype=torch.float64)
    batch = batch.with_(mask=mask, tokens=mask.long(), old_logp=old, columns={"ref_logp": ref})
    found = KlToGo(coef=0.5)(torch.zeros(1, 3, dtype=torch.float64), batch)
    assert [round(value, 6) for value in found[0].tolist()] == [0.1, 0.0, 0.15]


def test_garbage_outside_the_mask_is_not_read() -> None:
    batch = draw_batch(3)
    columns = {"ref_logp": torch.where(batch.mask, batch.columns["ref_logp"], torch.nan)}
    zeros = torch.zeros(batch.mask.shape, dtype=torch.float64)
    assert torch.equal(KlToGo()(zeros, batch.with_(columns=columns)), KlToGo()(zeros, batch))
