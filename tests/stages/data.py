"""Random ragged batches and the one policy that all proofs differentiate, and what only tests add to them."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from covey.batch import Batch, Credited, Keep
from covey.proof.data import GARBAGE, VOCABULARY, Policy, distance, draw_batch, widen

__all__ = [
    "GARBAGE",
    "VOCABULARY",
    "Policy",
    "as_credited",
    "distance",
    "draw_batch",
    "draw_keep",
    "widen",
    "with_score",
]


def with_score(batch: Batch, keep: Keep | None = None) -> Batch:
    """The batch as an advantage sees it: the score is the plain sum of the rewards."""
    columns = {**batch.columns, "score": batch.reward.sum(1)}
    return batch.with_(columns=columns, keep=keep or batch.keep)


def draw_keep(batch: Batch, seed: int) -> Keep:
    """Random answers to the three questions of a filter."""
    draw = random.Random(seed)

    def some() -> Tensor:
        return torch.tensor([draw.random() < 0.7 for _ in range(batch.size)], dtype=torch.bool)

    return Keep(some(), some(), some())


def as_credited(batch: Batch, seed: int = 0) -> Credited:
    """The batch with a random advantage per token and a random weight, as if credit had run."""
    draw = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.where(batch.mask, torch.randn(batch.mask.shape, generator=draw, dtype=torch.float64), 0.0)

    return Credited(**vars(batch), advantage=normal(), weight=normal().abs())
