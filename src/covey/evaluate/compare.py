"""Two evaluations of the same problems: what changed, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from covey.errors import DataError
from covey.evaluate.estimators import Estimate, all_at, change_interval, estimate, paired, pass_at
from covey.evaluate.evaluate import Evaluation
from covey.evaluate.table import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One quantity of one set, before and after on the same problems; `interval` is the 95 % interval of the change."""

    set: str
    quantity: str
    before: Estimate
    after: Estimate
    change: Estimate
    interval: tuple[float, float]

    def record(self) -> dict[str, float | int | str]:
        """The numbers by name."""
        low, high = self.interval
        numbers = {"before": self.before.mean, "after": self.after.mean, "change": self.change.mean}
        return {"set": self.set, "quantity": self.quantity, **numbers, "se": self.change.se, "low": low, "high": high}


def compare(before: Evaluation, after: Evaluation, ks: Sequence[int] = ()) -> list[Change]:
    """The change of accuracy in every set, and of pass@k and pass^k for each k of `ks`, over paired problems.

    Raises DataError where the two do not have the same problems: a change over other problems is no change of the model.
    """
    found: list[Change] = []
    for name in before.sets:
        rows, others = _problems(before, name), _problems(after, name)
        if strange := sorted(rows.keys() ^ others.keys()):
            where = "first" if strange[0] in rows else "second"
            raise DataError(f"set {name}", f"only the {where} was asked problem {strange[0]}", "Ask both the same.")
        pairs = [(rows[problem], others[problem]) for problem in rows]
        found.append(_change(name, "accuracy", [(a.correct / a.n, b.correct / b.n) for a, b in pairs]))
        for k in ks:
            values = [(pass_at(a.n, a.correct, k), pass_at(b.n, b.correct, k)) for a, b in pairs]
            found.append(_change(name, f"pass@{k}", values))
            values = [(all_at(a.n, a.correct, k), all_at(b.n, b.correct, k)) for a, b in pairs]
            found.append(_change(name, f"pass^{k}", values))
    if strange_sets := sorted(before.sets.keys() ^ after.sets.keys()):
        raise DataError(f"set {strange_sets[0]}", "only one of the two was asked it", "Ask both the same.")
    return found


def _problems(found: Evaluation, name: str) -> Mapping[str, Tally]:
    return {tally.id: tally for tally in found.tallies if tally.set == name}


def _change(name: str, quantity: str, values: Sequence[tuple[float, float]]) -> Change:
    first, second = [a for a, _ in values], [b for _, b in values]
    change = paired(first, second)
    return Change(
        set=name,
        quantity=quantity,
        before=estimate(first),
        after=estimate(second),
        change=change,
        interval=change_interval(change),
    )
