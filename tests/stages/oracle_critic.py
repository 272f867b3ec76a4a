"""Advantages against a critic and its loss in plain Python, from arXiv 1506.02438 eq. 11-16 and 1707.06347: sums only."""

from __future__ import annotations

from collections.abc import Sequence


def gae(
    rewards: Sequence[float],
    values: Sequence[float],
    mask: Sequence[bool],
    *,
    gamma: float,
    lam: float,
    end: float = 0.0,
) -> tuple[list[float], list[float]]:
    """Advantage and return per position: the sum over later actions of (gamma lam)^k delta, forward and quadratic."""
    acts = [t for t, acting in enumerate(mask) if acting]
    after = [*(values[t] for t in acts[1:]), end][: len(acts)]
    delta = [rewards[t] + gamma * later - values[t] for t, later in zip(acts, after, strict=True)]
    advantage, returns = [0.0] * len(mask), [0.0] * len(mask)
    for i, t in enumerate(acts):
        advantage[t] = sum((gamma * lam) ** k * d for k, d in enumerate(delta[i:]))
        returns[t] = advantage[t] + values[t]
    return advantage, returns


def value_cost(value: float, before: float, target: float, clip: float | None) -> float:
    """Half the squared error, of the clipped value where that error is larger."""
    error = (value - target) ** 2
    if clip is not None:
        low, high = before - clip, before + clip
        error = max(error, (min(max(value, low), high) - target) ** 2)
    return error / 2


def explained_variance(values: Sequence[float], returns: Sequence[float]) -> float:
    """1 - Var(returns - values) / Var(returns)."""

    def variance(numbers: Sequence[float]) -> float:
        mean = sum(numbers) / len(numbers)
        return sum((x - mean) ** 2 for x in numbers) / len(numbers)

    return 1 - variance([r - v for v, r in zip(values, returns, strict=True)]) / variance(returns)
