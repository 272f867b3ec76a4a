"""Ratios and surrogates of the papers for one response, in plain Python: the gain of each token and its exact derivative.

A `Row` holds a response's tokens (those that the policy chose, in order). Each function returns the gains and the matrix of
derivatives `slope[t][u]` of gain t by log pi of token u, written down from the formula, not by differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Numbers = Sequence[float]
Found = tuple[list[float], list[list[float]]]


@dataclass(frozen=True)
class Row:
    """log pi, log pi_anchor and advantage of each token of a response."""

    logp: Numbers
    anchor: Numbers
    advantage: Numbers

    @property
    def moved(self) -> list[float]:
        """log pi - log pi_anchor."""
        return [a - b for a, b in zip(self.logp, self.anchor, strict=True)]


def sign(x: float) -> int:
    """-1, 0 or 1."""
    return (x > 0) - (x < 0)


def own(slopes: Numbers) -> list[list[float]]:
    """Derivatives of gains that depend on their own token alone."""
    return [[slope if u == t else 0.0 for u in range(len(slopes))] for t, slope in enumerate(slopes)]


def clipped(ratio: float, advantage: float, low: float, high: float) -> tuple[float, bool]:
    """min(r A, clip(r) A) and whether the gradient lives."""
    bounded = min(max(ratio, 1 - low), 1 + high)
    dead = (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)
    return min(ratio * advantage, bounded * advantage), not dead


def sequence(row: Row, low: float, high: float) -> Found:
    """arXiv 2507.18071 eq. 5-7: one ratio s for the response, derivative s A / L by every token."""
    length = len(row.logp)
    s = math.exp(sum(row.moved) / length) if length else 1.0
    pairs = [clipped(s, a, low, high) for a in row.advantage]
    return [g for g, _ in pairs], [
        [s * a / length if alive else 0.0] * length for a, (_, alive) in zip(row.advantage, pairs, strict=True)
    ]


def sequence_sum(row: Row, low: float, high: float) -> Found:
    """The same with the product of the token ratios: derivative S A by every token."""
    length, s = len(row.logp), math.exp(sum(row.moved))
    pairs = [clipped(s, a, low, high) for a in row.advantage]
    return [g for g, _ in pairs], [
        [s * a if alive else 0.0] * length for a, (_, alive) in zip(row.advantage, pairs, strict=True)
    ]


def sequence_token(row: Row, low: float, high: float) -> Found:
    """arXiv 2507.18071 eq. 13-17: the value s, derivative s A_t by the token itself."""
    length = len(row.logp)
    s = math.exp(sum(row.moved) / length) if length else 1.0
    pairs = [clipped(s, a, low, high) for a in row.advantage]
    return [g for g, _ in pairs], own(
        [s * a if alive else 0.0 for a, (_, alive) in zip(row.advantage, pairs, strict=True)]
    )


def geometric_mean(row: Row, low: float, high: float) -> Found:
    """arXiv 2507.20673 eq. 4 with the clip of its algorithm: q A, derivative q A / L by every token that was not cut."""
    length = len(row.logp)
    if not length:
        return [], []
    cut, alive = [], []
    for d, a in zip(row.moved, row.advantage, strict=True):
        cut.append(min(d, high) if a > 0 else max(d, -low) if a < 0 else 0.0)
        alive.append((d <= high) if a > 0 else (d >= -low) if a < 0 else False)
    q, worth = math.exp(sum(cut) / length), sum(row.advantage) / length
    return [q * worth] * length, [[q * worth / length if live else 0.0 for live in alive] for _ in range(length)]


def detached(row: Row, weight: Callable[[float, float, float, float], float]) -> Found:
    """sg(w) A log pi: derivative w A; `weight(log_ratio, advantage, p, q)`."""
    weights = [
        weight(d, a, math.exp(x), math.exp(y))
        for d, a, x, y in zip(row.moved, row.advantage, row.logp, row.anchor, strict=True)
    ]
    gains = [w * a * x for w, a, x in zip(weights, row.advantage, row.logp, strict=True)]
    return gains, own([w * a for w, a in zip(weights, row.advantage, strict=True)])


def truncated(
    low: float, high: float, drop_low: float | None = None, drop_high: float | None = None
) -> Callable[[float, float, float, float], float]:
    """arXiv 2506.13585 eq. 4-5, with the mask of eq. 6-7 where asked."""

    def weight(d: float, a: float, p: float, q: float) -> float:
        ratio = math.exp(d)
        if drop_high is not None and a > 0 and ratio > 1 + drop_high:
            return 0.0
        if drop_low is not None and a < 0 and ratio < 1 - drop_low:
            return 0.0
        return min(max(ratio, low), high)

    return weight


def gamma(
    positive: tuple[float, float], negative: tuple[float, float]
) -> Callable[[float, float, float, float], float]:
    """w^k e^(lambda (1 - w)) with (k, lambda) by the sign of A (arXiv 2602.10693)."""

    def weight(d: float, a: float, p: float, q: float) -> float:
        k, rate = positive if a >= 0 else negative
        w = math.exp(d)
        return w**k * math.exp(rate * (1 - w))

    return weight


def masked_by_divergence(
    kind: str, low: float, high: float, cap: float | None
) -> Callable[[float, float, float, float], float]:
    """arXiv 2602.04879 with the two-outcome divergences."""

    def weight(d: float, a: float, p: float, q: float) -> float:
        far = abs(p - q) if kind == "tv" else q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        if (a > 0 and p > q and far > high) or (a < 0 and p < q and far > low):
            return 0.0
        return math.exp(d) if cap is None else min(math.exp(d), cap)

    return weight


def soft_gate(row: Row, positive: float, negative: float) -> Found:
    """arXiv 2511.20347 eq. 5-6, derivative 4 s (1 - s) rho A (its eq. 8-9)."""
    gains, slopes = [], []
    for d, a in zip(row.moved, row.advantage, strict=True):
        tau, ratio = (positive if a > 0 else negative), math.exp(d)
        s = 1 / (1 + math.exp(-tau * (ratio - 1)))
        gains.append(s * 4 / tau * a)
        slopes.append(4 * s * (1 - s) * ratio * a)
    return gains, own(slopes)
