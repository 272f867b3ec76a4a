"""Noise for components that pick tokens at random: a pure function of seed, rollout and token, whatever the order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from covey.batch import Batch
from covey.columns.reference import Score
from covey.random import key
from covey.types import Group

_STEP, _GOLDEN = 0xD1342543DE82EF95, 0x9E3779B97F4A7C15
_FACTORS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def keys(groups: Sequence[Group], seed: int) -> Int[Tensor, " N"]:
    """A key per rollout, in order: of the seed, the prompt, its visit, the sample and its place in a tree."""
    rollouts = [rollout.key for group in groups for rollout in group.rollouts]
    parts = [(r.prompt, r.visit, r.index, str(r.parent), str(r.at)) for r in rollouts]
    return torch.tensor([_signed(key(seed, "noise", *part)) for part in parts], dtype=torch.int64)


class Noise:
    """`noise` [N T]: uniform in [0, 1), 53 bits, from the column `key` and the position of the token."""

    def __init__(self, score: Score, temperature: float) -> None: ...

    def provide(self, batch: Batch) -> Mapping[str, Tensor]:
        """The column for these rows."""
        return {"noise": uniform(batch.columns["key"], batch.tokens.shape[1])}


def uniform(keys: Int[Tensor, " N"], width: int) -> Float[Tensor, "N T"]:
    """Number t of each key is the top 53 bits of splitmix(key + (t + 1) * step), over 2^53: that of `covey.random.Draws`."""
    z = keys[:, None] + torch.arange(1, width + 1) * _signed(_STEP) + _signed(_GOLDEN)
    for shift, factor in _FACTORS:
        z = (z ^ _right(z, shift)) * _signed(factor)
    return _right(z, 11).double() * 2.0**-53


def _right(value: Tensor, bits: int) -> Tensor:
    """A shift that brings in zeros: that of int64 copies the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 that has the same 64 bits as an unsigned integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
