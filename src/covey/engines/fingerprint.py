"""Did the weights arrive? Exact sums over the bits of tensors, and what switches adapters on and off, on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from covey.engines.adapters import settings

Fingerprint = tuple[int, int]
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 22


def fingerprint(tensor: Tensor) -> Fingerprint:
    """Two sums over a tensor's numbers read as integers, modulo 2^64: of all, and of every other one.

    Integers add up to the same in any order, so threads and devices agree; a change of a single bit changes the first sum.
    """
    bits = tensor.detach().contiguous().view(-1).view(_BITS[tensor.element_size()])
    parts = [(part.sum(dtype=torch.int64), part[::2].sum(dtype=torch.int64)) for part in torch.split(bits, _CHUNK)]
    whole, half = (torch.stack(sums).sum() for sums in zip(*parts, strict=True)) if parts else (torch.zeros(()),) * 2
    return int(whole), int(half)


def find_lost(model: nn.Module, weights: Mapping[str, Tensor], sampler: Any) -> list[str]:
    """Names of the learner's tensors that a sampler does not hold, and of adapted layers that are set otherwise there.

    Asks the sampler for its own `fingerprint(names)` and `settings()`; of one that has no such methods nothing is known here.
    """
    if not hasattr(sampler, "fingerprint"):
        return []
    own, other = settings(model), sampler.settings()
    lost = [f"{name} ({_difference(own[name], other.get(name))})" for name in own if own[name] != other.get(name)]
    if getattr(sampler, "model", None) is not model:  # one module cannot differ from itself
        there = sampler.fingerprint(weights)
        lost += [name for name, tensor in weights.items() if fingerprint(tensor) != there.get(name)]
    return lost


def _difference(own: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    """What of an adapted layer is set otherwise."""
    if other is None:
        return "has no adapter"
    return next((f"{name} {other[name]} instead of {value}" for name, value in own.items() if other[name] != value), "")
