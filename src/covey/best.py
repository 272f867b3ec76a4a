"""Which evaluation of a run was the best, and how many came since: a value, so that a checkpoint can hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from covey.errors import DataError, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best value of a metric over the evaluations so far: after which step, and how many evaluations were no better since.

    `low` and `high` are the ends of its 95 % interval where the metric has one. Without any finite value `step` is None.
    """

    metric: str
    mode: Literal["max", "min"] = "max"
    min_change: float = 0.0
    step: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    since: int = 0

    def after(self, record: Mapping[str, float], step: int) -> Best:
        """The best after one more evaluation. It is this one if it is better by more than `min_change`; NaN never is.

        Raises DataError for a metric that the evaluation does not have.
        """
        if self.metric not in record:
            found = f"an evaluation has no metric {self.metric!r}"
            names = sorted(name for name in record if name.startswith("eval/"))
            if not names:
                raise DataError("budget.best", "there is no evaluation: no problems are held out", "Hold some out.")
            hint = did_you_mean(self.metric, names)
            known = hint if hint.startswith("Known") else f"{hint} Known: {', '.join(names)}."
            raise DataError("budget.best.metric", found, known)
        value = float(record[self.metric])
        if not self._improves(value):
            return replace(self, since=self.since + 1)
        if "/accuracy" not in self.metric:
            return replace(self, step=step, value=value, since=0, low=None, high=None)
        low, high = (_finite(record.get(self.metric.replace("/accuracy", f"/{end}", 1))) for end in ("low", "high"))
        return replace(self, step=step, value=value, since=0, low=low, high=high)

    def _improves(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.value is None:
            return True
        gain = value - self.value if self.mode == "max" else self.value - value
        return gain > self.min_change

    def spent(self, patience: int | None) -> bool:
        """Whether `patience` evaluations in a row were no better."""
        return patience is not None and self.since >= patience

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def resumed(self, record: Mapping[str, Any] | None) -> Best:
        """What a checkpoint remembers; a best of another metric, or of the other direction, is forgotten."""
        if record is None or (record["metric"], record["mode"]) != (self.metric, self.mode):
            return self
        return replace(self, **{name: record[name] for name in ("step", "value", "low", "high", "since")})

    def __str__(self) -> str:
        """`best eval/accuracy 0.83 after step 60`."""
        return (
            f"no {self.metric} yet" if self.value is None else f"{self.metric} {self.value:.4g} after step {self.step}"
        )


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
