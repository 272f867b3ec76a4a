"""Counter-based noise for sampling: the same (key, token index, vocabulary index) gives the same number in any batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ROW = 0xD1342543DE82EF95
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 40


def signed(value: int) -> int:
    """The int64 that has the same 64 bits as an unsigned integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def key_tensor(keys: Sequence[int], device: torch.device | str = "cpu") -> Int[Tensor, " B"]:
    """64-bit noise keys as int64."""
    return torch.tensor([signed(key) for key in keys], dtype=torch.int64, device=device)


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014), in place. int64 shifts keep the sign, so its copies are masked away."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        state ^= (state >> shift) & ((1 << (64 - shift)) - 1)
        state *= signed(factor)
    state ^= (state >> 31) & ((1 << 33) - 1)
    return state


def noise(keys: Int[Tensor, " B"], index: Int[Tensor, " B"] | int, vocabulary: int) -> Float[Tensor, "B V"]:
    """Exponential noise of mean 1 for a race: `argmax(p / noise)` is a sample of p.

    `u = (bits + 1/2) / 2^40` of splitmix(splitmix(key + index * c) + v * golden), then `-log1p(-u)` in float64. With 40 bits
    and the half, u is never 0 or 1, so noise lies in [2^-41, 28.5]; with float32's 24 bits u would round to 1 now and then
    and the race would go to a random token.
    """
    steps = torch.as_tensor(index, dtype=torch.int64, device=keys.device)
    rows = _mix(keys + steps * signed(_ROW) + signed(_GOLDEN))
    columns = torch.arange(1, vocabulary + 1, device=keys.device) * signed(_GOLDEN)
    bits = _mix(rows[:, None] + columns)
    bits >>= 64 - _BITS
    bits &= (1 << _BITS) - 1
    uniform = bits.to(torch.float64).add_(0.5).mul_(-(2.0**-_BITS))
    return uniform.log1p_().neg_()
