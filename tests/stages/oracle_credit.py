"""Credit in plain Python: one number at a time, from the papers, without tensors and without code of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from covey.batch import Batch

Matrix = list[list[float]]


def deviation(values: Sequence[float], ddof: int) -> float:
    """The standard deviation; 0 for no more values than `ddof`."""
    if len(values) <= ddof:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - ddof))


def whiten(batch: Batch, advantage: Matrix, **options: object) -> Matrix:
    """arXiv 2501.03262 eq. 5: what counts once is a response or a token."""
    unit, center = options.get("unit", "rollout"), options.get("center", True)
    ddof, eps, inside = int(options.get("ddof", 1)), float(options.get("eps", 1e-8)), options.get("inside", True)
    mask, group, rollout = batch.mask.tolist(), batch.group.tolist(), batch.rollout.tolist()
    counts = batch.keep.statistics.tolist()
    cells = [(i, t) for i, row in enumerate(mask) for t, chosen in enumerate(row) if chosen and counts[i]]
    if options.get("over") == "active_groups":
        seen = {g: [advantage[i][t] for i, t in cells if group[i] == g] for g in set(group)}
        cells = [(i, t) for i, t in cells if max(seen[group[i]]) > min(seen[group[i]])]
    if unit == "token":
        values = [advantage[i][t] for i, t in cells]
    else:
        own = {rollout[i]: [advantage[j][t] for j, t in cells if rollout[j] == rollout[i]] for i, _ in cells}
        values = [math.fsum(v) / len(v) for v in own.values()]
    out = [[0.0] * len(row) for row in mask]
    if len(values) < 2 or max(values) - min(values) <= 1e-12 * max(abs(v) for v in values):
        return out
    mean, std = math.fsum(values) / len(values), deviation(values, ddof)
    divisor = math.sqrt(std**2 + eps) if inside else std + eps
    for i, t in cells:
        out[i][t] = (advantage[i][t] - (mean if center else 0.0)) / divisor
    return out


def group_scale(scores: Sequence[float], groups: Sequence[int], scale: str, ddof: int, eps: float) -> list[float]:
    """A score less its group's mean over the std of all such differences (2508.08221), or over the mean (2602.02710)."""
    means = {g: math.fsum(s for s, h in zip(scores, groups, strict=True) if h == g) / groups.count(g) for g in groups}
    centred = [s - means[g] for s, g in zip(scores, groups, strict=True)]
    if scale == "mean":
        return [c / (means[g] + eps) if means[g] > 0 else 0.0 for c, g in zip(centred, groups, strict=True)]
    return [c / (deviation(centred, ddof) + eps) for c in centred]


def token_scores(batch: Batch, rows: Sequence[float], coef: float, estimator: str) -> Matrix:
    """The row's score on its last policy token, less the divergence from the reference at every policy token."""
    mask, old, ref = batch.mask.tolist(), batch.old_logp.tolist(), batch.columns["ref_logp"].tolist()
    out = [[0.0] * len(row) for row in mask]
    for i, row in enumerate(mask):
        own = [t for t, chosen in enumerate(row) if chosen]
        for t in own:
            x = old[i][t] - ref[i][t]
            kl = {"k1": x, "k2": x * x / 2, "k3": math.exp(-x) - 1 + x}[estimator]
            out[i][t] = (rows[i] if t == own[-1] else 0.0) - coef * kl
    return out


def returns(rewards: Matrix, mask: list[list[bool]], gamma: float) -> Matrix:
    """The discounted sum over this and all later policy tokens; 2501.03262 with the discount counted in policy tokens."""
    out = [[0.0] * len(row) for row in mask]
    for i, row in enumerate(mask):
        own = [t for t, chosen in enumerate(row) if chosen]
        for at, t in enumerate(own):
            out[i][t] = math.fsum(gamma**later * rewards[i][u] for later, u in enumerate(own[at:]))
    return out


def component_norm(
    values: Matrix, groups: Sequence[int], weights: Sequence[float], ddof: int, eps: float
) -> list[float]:
    """Each component against its group, weighed, added; 2601.05242 eq. 4 and 7. NaN is left out."""
    out = [0.0] * len(values)
    for k, weight in enumerate(weights):
        for i, row in enumerate(values):
            peers = [v[k] for v, g in zip(values, groups, strict=True) if g == groups[i] and not math.isnan(v[k])]
            if math.isnan(row[k]) or len(peers) < 2 or max(peers) == min(peers):
                continue
            out[i] += weight * (row[k] - math.fsum(peers) / len(peers)) / (deviation(peers, ddof) + eps)
    return out


def pass_at_k(right: Sequence[bool], k: int, eps: float, scaled: bool) -> list[float]:
    """Every set of k, one by one: its outcome against the mean over sets, averaged over the sets that a rollout is in."""
    sets = list(combinations(range(len(right)), k))
    worth = [float(any(right[i] for i in chosen)) for chosen in sets]
    mean = math.fsum(worth) / len(worth)
    spread = deviation(worth, 0)
    out = []
    for i in range(len(right)):
        own = [(w - mean) / ((spread + eps) if scaled else 1.0) for w, s in zip(worth, sets, strict=True) if i in s]
        out.append(math.fsum(own) / len(own))
    return out


def k_best(values: Sequence[float], k: int) -> set[int]:
    """The places of the k largest values, the earlier one of two equal ones; 2508.09726 section 3."""
    left, chosen = list(range(len(values))), set[int]()
    while left and len(chosen) < k:
        best = max(values[i] for i in left)
        first = next(i for i in left if values[i] == best)
        chosen.add(first)
        left.remove(first)
    return chosen
