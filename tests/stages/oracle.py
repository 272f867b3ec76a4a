"""The formulas of the papers in plain Python: one number at a time, no tensors, no library of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from covey.batch import Batch

Matrix = list[list[float]]


def group_norm(
    scores: Sequence[float],
    groups: Sequence[int],
    counts: Sequence[bool],
    *,
    baseline: str = "mean",
    scale: str = "group",
    ddof: int = 1,
    eps: float = 1e-6,
) -> list[float]:
    """A row's score against its group; arXiv 2402.03300 eq. 3, 2503.20783 eq. 4, 2402.14740 eq. 8, 2508.08221 eq. 5-6."""
    everyone = [score for score, counted in zip(scores, counts, strict=True) if counted]
    out = []
    for score, group, counted in zip(scores, groups, counts, strict=True):
        peers = [s for s, g, c in zip(scores, groups, counts, strict=True) if c and g == group]
        if not counted or len(peers) < 2 or max(peers) == min(peers):
            out.append(0.0)
            continue
        others = (sum(peers) - score) / (len(peers) - 1)
        centred = score - (sum(peers) / len(peers) if baseline == "mean" else others)
        out.append(centred / divisor(scale, peers, everyone, ddof, eps))
    return out


def divisor(scale: str, peers: Sequence[float], everyone: Sequence[float], ddof: int, eps: float) -> float:
    """What a centred score is divided by."""
    return 1.0 if scale == "none" else deviation(peers if scale == "group" else everyone, ddof) + eps


def deviation(values: Sequence[float], ddof: int) -> float:
    """The standard deviation; 0 for fewer than two values or equal ones."""
    if len(values) < 2 or max(values) == min(values):
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - ddof))


def weights(batch: Batch, kind: str, unit: str = "rollout", divisor: int | str = "limit") -> Matrix:
    """The normalisation of a loss, token by token, from its sentence: what is 1 divided by."""
    mask, keep = batch.mask.tolist(), batch.keep
    in_loss, in_denominator = keep.loss.tolist(), keep.denominator.tolist()
    groups, limits = batch.group.tolist(), batch.limit.tolist()
    ids = batch.rollout.tolist() if unit == "rollout" else list(range(batch.size))
    length = [sum(row) for row in mask]
    units = len({ids[i] for i in range(batch.size) if in_denominator[i]})

    def share(i: int) -> float:
        if kind == "token_mean":
            whole = sum(length[j] for j in range(batch.size) if in_denominator[j])
        elif kind == "group_token_mean":
            same = sum(length[j] for j in range(batch.size) if in_denominator[j] and groups[j] == groups[i])
            whole = same * len({groups[j] for j in range(batch.size) if in_denominator[j]})
        elif kind == "group_sum":
            whole = len({groups[j] for j in range(batch.size) if in_denominator[j]})
        elif kind == "rollout_mean":
            whole = units * sum(length[j] for j in range(batch.size) if in_loss[j] and ids[j] == ids[i])
        elif kind == "rollout_sum":
            whole = units
        else:
            whole = units * (limits[i] if divisor == "limit" else divisor)
        return 1 / whole if whole else 0.0

    return [[share(i) if chosen and in_loss[i] else 0.0 for chosen in row] for i, row in enumerate(mask)]


def token_ratio(live: Matrix, old: Matrix, mask: list[list[bool]]) -> Matrix:
    """log rho per token, within +-20."""
    return [
        [min(max(x - y, -20.0), 20.0) if m else 0.0 for x, y, m in zip(a, b, c, strict=True)]
        for a, b, c in zip(live, old, mask, strict=True)
    ]


def sequence_ratio(live: Matrix, old: Matrix, mask: list[list[bool]]) -> Matrix:
    """The mean log rho of the row on each of its tokens (arXiv 2507.18071 eq. 7)."""
    token = token_ratio(live, old, mask)
    means = [sum(row) / max(sum(m), 1) for row, m in zip(token, mask, strict=True)]
    return [[mean if m else 0.0 for m in row] for mean, row in zip(means, mask, strict=True)]


def clip_gain(log_ratio: float, advantage: float, low: float, high: float, dual: float | None = None) -> float:
    """min(rho A, clip(rho) A); with `dual`, at least dual * A where A < 0 (arXiv 1707.06347 eq. 7, 1912.09729 eq. 5)."""
    ratio = math.exp(log_ratio)
    gain = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    return max(gain, dual * advantage) if dual is not None and advantage < 0 else gain


def kl(name: str, x: float, log_ratio: float = 0.0) -> float:
    """The estimators of Schulman's note."""
    k3 = math.exp(-x) - 1 + x
    return {
        "k1": x,
        "k2": x * x / 2,
        "k3": k3,
        "k3_straight_through": k3,
        "k3_importance": math.exp(log_ratio) * k3,
    }[name]


def soft_overlong(length: int, limit: int, cache: float) -> float:
    """arXiv 2503.14476 eq. 13, case by case."""
    if length <= limit - cache:
        return 0.0
    if length <= limit:
        return ((limit - cache) - length) / cache
    return -1.0
