"""Metrics that merge exactly over slices and ranks: sums are added, means are formed only when written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["sum", "mean", "max", "min"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A mergeable number: `total` (and `count` for a mean)."""

    kind: Kind
    total: float
    count: float = 1.0

    def __add__(self, other: Metric) -> Metric:
        if self.kind != other.kind:
            raise TypeError(f"cannot merge a {self.kind} with a {other.kind}")
        if self.kind == "max":
            return Metric("max", max(self.total, other.total))
        if self.kind == "min":
            return Metric("min", min(self.total, other.total))
        return Metric(self.kind, self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The number to show: a mean of nothing is NaN."""
        if self.kind == "mean":
            return self.total / self.count if self.count else math.nan
        return self.total


Metrics = Mapping[str, Metric]


def mean(total: float, count: float = 1.0) -> Metric:
    """A mean by its parts: the sum of the values and how many there were."""
    return Metric("mean", float(total), float(count))


def total(value: float) -> Metric:
    """A number that adds up."""
    return Metric("sum", float(value))


def highest(value: float) -> Metric:
    """A number of which the largest counts."""
    return Metric("max", float(value))


def lowest(value: float) -> Metric:
    """A number of which the smallest counts."""
    return Metric("min", float(value))


def merge(parts: Iterable[Metrics]) -> dict[str, Metric]:
    """All metrics of several slices or ranks in one; order of first appearance is kept."""
    out: dict[str, Metric] = {}
    for metrics in parts:
        for name, metric in metrics.items():
            out[name] = out[name] + metric if name in out else metric
    return out


def values(metrics: Metrics) -> dict[str, float]:
    """The numbers to write."""
    return {name: metric.value for name, metric in metrics.items()}
