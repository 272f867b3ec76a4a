"""Sums and means over what counts: masked tokens, groups of rows. Masked values never enter, not even as 0 * inf."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to +- this before `exp`: numerics only, counted as `ratio/clamped`."""


def masked(values: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The values where the mask is True and exactly 0 (value and gradient) elsewhere; safe for inf and NaN outside."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))


def broadcast(per_row: Float[Tensor, " N"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """One number per row on each of the row's tokens that count, 0 elsewhere."""
    return masked(per_row[:, None].expand(mask.shape), mask)


def log_ratio(new: Float[Tensor, "N T"], old: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """log(new/old) per token, 0 where masked, clamped to +-20: masking comes before any `exp`."""
    return masked(new - old, mask).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def compact(ids: Int[Tensor, " N"]) -> tuple[Int[Tensor, " N"], int]:
    """Ids (of groups or rollouts) as 0 .. M-1, and M: statistics follow ids, never positions."""
    unique, inverse = torch.unique(ids, return_inverse=True)
    return inverse, int(unique.numel())


def sum_by(values: Float[Tensor, " N"], index: Int[Tensor, " N"], count: int) -> Float[Tensor, " M"]:
    """Sum of the values of each id, in float64."""
    out = torch.zeros(count, dtype=torch.float64, device=values.device)
    return out.index_add(0, index, values.double())


def count_by(member: Bool[Tensor, " N"], index: Int[Tensor, " N"], count: int) -> Float[Tensor, " M"]:
    """How many rows of each id are members, in float64."""
    return sum_by(member.double(), index, count)


def spread_by(
    values: Float[Tensor, " N"], member: Bool[Tensor, " N"], index: Int[Tensor, " N"], count: int
) -> Float[Tensor, " M"]:
    """max - min of the member values of each id; 0 for an id without members. Exact: decides "all equal" without rounding."""
    low, high = bounds_by(values, member, index, count)
    return torch.where(high >= low, high - low, torch.zeros_like(low))


def bounds_by(
    values: Float[Tensor, " N"], member: Bool[Tensor, " N"], index: Int[Tensor, " N"], count: int
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Smallest and largest member value of each id; (inf, -inf) for an id without members."""
    low = torch.full((count,), torch.inf, dtype=torch.float64, device=values.device)
    low = low.scatter_reduce(0, index[member], values.double()[member], "amin")
    high = torch.full((count,), -torch.inf, dtype=torch.float64, device=values.device)
    return low, high.scatter_reduce(0, index[member], values.double()[member], "amax")


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where the denominator is 0."""
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return torch.where(denominator == 0, torch.zeros_like(numerator), numerator / safe)


def moments_by(
    values: Float[Tensor, " N"], member: Bool[Tensor, " N"], index: Int[Tensor, " N"], count: int, ddof: int
) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Mean and standard deviation of the member values of each id, by two passes in float64.

    `std = sqrt(sum (x - mean)^2 / (n - ddof))`; 0 where n <= ddof. Where all members are equal the mean is that very value
    and the std exactly 0: `value - mean` must not be rounding noise there.
    """
    x = masked(values.double(), member)
    n = count_by(member, index, count)
    low, high = bounds_by(values, member, index, count)
    mean = torch.where(low == high, low, divide(sum_by(x, index, count), n))
    square = sum_by(masked((x - mean[index]) ** 2, member), index, count)
    free = (n - ddof).clamp(min=0)
    return mean, divide(square, free).sqrt()
