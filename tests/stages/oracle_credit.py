"""Credit in plain Python: one number at a time, from the papers, without tensors and without code of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
