"""Evaluations as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from covey.observe.plain import clean

if TYPE_CHECKING:
    from covey.evaluate.compare import Change
    from covey.evaluate.estimators import Estimate
    from covey.evaluate.evaluate import Evaluation


def accuracy_table(found: Evaluation, model: str) -> Table:
    """Sets as rows: problems, samples, accuracy with its 95 % interval, truncated and unscored share."""
    heads = ("set", "problems", "samples", "accuracy", "95% interval", "mixed", "truncated", "failed")
    shown = _table(f"{clean(model)}: accuracy on held-out problems", heads)
    for name, result in found.sets.items():
        span = _span(result.accuracy.interval)
        shares = (f"{share:.3f}" for share in (result.mixed, result.truncated, result.failed))
        counts = (str(result.problems), str(result.samples))
        _row(shown, (_mark(name, found.main_set), *counts, f"{result.accuracy.mean:.3f}", span, *shares))
    return shown


def k_table(found: Evaluation) -> list[Table]:
    """Sets and k as rows: pass@k, pass^k and (where answers were recorded) maj@k with standard errors; none for k = 1 alone."""
    sets = found.sets
    ks = {name: [k for k in result.pass_at if k > 1 or found.ks is not None] for name, result in sets.items()}
    if not any(ks.values()):
        return []
    votes = any(result.majority_at is not None for result in sets.values())
    heads = ("set", "k", "pass@k any right", "pass^k all right", *(("maj@k majority right",) if votes else ()))
    shown = _table("\nof k samples of a problem", heads)
    for name, result in sets.items():
        for place, k in enumerate(ks[name]):
            votes_k = [_sure((result.majority_at or {}).get(k))] if votes else []
            first = _mark(name, found.main_set) if place == 0 else ""
            _row(shown, (first, str(k), _sure(result.pass_at[k]), _sure(result.all_at[k]), *votes_k))
    return [shown]


def change_table(changes: Sequence[Change], names: Sequence[str], main_set: str | None) -> Table:
    """Sets and quantities as rows: before, after, and the paired change with its 95 % interval."""
    heads = ("set", "problems", "quantity", "first", "second", "change", "95% interval", "")
    shown = _table(f"{clean(names[0])} (first) and {clean(names[1])} (second) on the same problems", heads)
    for change in changes:
        low, high = change.interval
        verdict = "better" if low > 0 else "worse" if high < 0 else "not sure"
        span = "" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"
        means = (f"{change.before.mean:.3f}", f"{change.after.mean:.3f}", f"{change.change.mean:+.3f}")
        set_ = _mark(change.set, main_set)
        _row(shown, (set_, str(change.change.count), change.quantity, *means, span, verdict if span else ""))
    return shown


def _table(title: str, heads: Sequence[str]) -> Table:
    shown = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2))
    for head in heads:
        shown.add_column(head, justify="left" if head in ("set", "quantity", "") else "right")
    return shown


def _row(table: Table, cells: Sequence[str]) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def _mark(name: str, main_set: str | None) -> str:
    return f"{clean(name)} *" if name == main_set else clean(name)


def _span(interval: tuple[float, float]) -> str:
    low, high = interval
    return "" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def _sure(value: Estimate | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.3f}" if math.isnan(value.se) else f"{value.mean:.3f} ± {value.se:.3f}"
