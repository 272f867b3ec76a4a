"""What couples rows, from the papers in plain Python: one number at a time, no tensors, no library of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = list[list[float]]
Masks = list[list[bool]]


def by_rollout(
    rows: Rows, mask: Masks, rollouts: Sequence[int], groups: Sequence[int]
) -> dict[int, dict[int, list[float]]]:
    """The counted values of each rollout by group; rollouts without any are left out."""
    out: dict[int, dict[int, list[float]]] = {}
    for values, chosen, rollout, group in zip(rows, mask, rollouts, groups, strict=True):
        found = [value for value, yes in zip(values, chosen, strict=True) if yes]
        members = out.setdefault(group, {})
        if found:
            members[rollout] = members.get(rollout, []) + found
    return out


def residual(
    logp: dict[int, dict[int, list[float]]],
    anchor: dict[int, dict[int, list[float]]],
    advantage: dict[int, dict[int, list[float]]],
    coef: float,
) -> tuple[float, dict[int, float]]:
    """The loss of arXiv 2504.19599, mean over groups, and its slope by the log-probability of each whole response."""
    loss, slopes = 0.0, {}
    for group, members in logp.items():
        names = list(members)
        if len(names) < 2:
            slopes |= dict.fromkeys(names, 0.0)
            continue
        q = [coef * sum(x - y for x, y in zip(members[n], anchor[group][n], strict=True)) for n in names]
        a = [sum(advantage[group][n]) / len(advantage[group][n]) for n in names]
        q_mean, a_mean = sum(q) / len(q), sum(a) / len(a)
        errors = [(x - q_mean) - (y - a_mean) for x, y in zip(q, a, strict=True)]
        loss += sum(e * e for e in errors) / (2 * (len(names) - 1)) / len(logp)
        for name, error in zip(names, errors, strict=True):
            slopes[name] = coef * error / (len(names) - 1) / len(logp)
    return loss, slopes


def contrast(good: Sequence[float], bad: Sequence[float], tau: float | None) -> tuple[float, list[float], list[float]]:
    """J of one group (arXiv 2505.12366), written as the mean over good responses, and its slopes by the scores."""
    if not good or not bad:
        return 0.0, [0.0] * len(good), [0.0] * len(bad)
    if tau is None:
        value = sum(good) / len(good) - sum(bad) / len(bad)
        return value, [1 / len(good)] * len(good), [-1 / len(bad)] * len(bad)
    value = 0.0
    for s in good:
        value -= tau * math.log(sum(math.exp((other - s) / tau) for other in bad) / len(bad)) / len(good)
    weights = [math.exp(s / tau) for s in bad]
    return value, [1 / len(good)] * len(good), [-w / sum(weights) for w in weights]


def kappas(advantage: Sequence[float], logp: Sequence[float]) -> list[float]:
    """The covariance of each token (arXiv 2505.22617 eq. 10)."""
    n = len(advantage)
    a_mean, l_mean = sum(advantage) / n, sum(logp) / n
    return [(a - a_mean) * (x - l_mean) for a, x in zip(advantage, logp, strict=True)]


def divergence(logp: Sequence[float], old: Sequence[float], *, low_variance: bool) -> list[float]:
    """An estimate of KL(old, policy) from each token of the old policy."""
    return [math.exp(x - y) - 1 - (x - y) if low_variance else y - x for x, y in zip(logp, old, strict=True)]
