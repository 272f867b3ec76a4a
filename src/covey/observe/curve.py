"""The learning curve of a run: its points, read from the metrics, and a chart for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.observe.records import read_records

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Accuracy at a step with its 95 % interval (NaN where there is none)."""

    step: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """What is drawn: the mean reward of each training step and the accuracy on unseen problems."""

    reward: tuple[Point, ...] = ()
    accuracy: tuple[Evaluated, ...] = ()
    title: str = "learning curve"

    @property
    def empty(self) -> bool:
        """There is nothing to draw."""
        return not self.reward and not self.accuracy

    @property
    def smooth(self) -> tuple[Point, ...]:
        """The reward as a moving mean over about a fifteenth of the run; at the ends over the half that is there."""
        reach = len(self.reward) // 30
        values = [value for _, value in self.reward]
        means = []
        for place, (step, _) in enumerate(self.reward):
            window = values[max(0, place - reach) : place + reach + 1]
            means.append((step, math.fsum(window) / len(window)))
        return tuple(means)


def read_curve(path: Path, *, title: str = "learning curve") -> Curve:
    """The curve in a file of metrics."""
    return trace(read_records(path), title=title)


def trace(rows: Iterable[Mapping[str, Any]], *, title: str = "learning curve") -> Curve:
    """The curve in the rows of `metrics.jsonl`: `reward/mean` and `eval/accuracy` at their `step`; NaN is left out."""
    reward, accuracy = [], []
    for row in rows:
        step = row.get("step", math.nan)
        if not math.isnan(row.get("reward/mean", math.nan)):
            reward.append((float(step), float(row["reward/mean"])))
        if not math.isnan(row.get("eval/accuracy", math.nan)):
            low, high = row.get("eval/low", math.nan), row.get("eval/high", math.nan)
            accuracy.append(Evaluated(float(step), float(row["eval/accuracy"]), float(low), float(high)))
    return Curve(tuple(reward), tuple(accuracy), title)


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round numbers that cover low .. high: multiples of 1, 2 or 5 times a power of ten, at most `most` of them."""
    size = max(1.0, abs(low), abs(high))
    span = high - low if high - low > 1e-6 * size else 0.1 * size
    raw = span / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    for unit in (power, 2 * power, 5 * power, 10 * power, 20 * power):
        first, last = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
        if last - first + 1 <= most:
            break
    return [round(i * unit, 12) + 0.0 for i in range(first, max(last, first + 1) + 1)]


def label(value: float) -> str:
    """A tick's text: as short as it can be."""
    return f"{value:.6g}"


def bounds(curve: Curve) -> tuple[float, float, float, float]:
    """First and last step, lowest and highest value with the intervals."""
    steps = [step for step, _ in curve.reward] + [point.step for point in curve.accuracy]
    values = [value for _, value in curve.reward]
    for point in curve.accuracy:
        values += [value for value in (point.accuracy, point.low, point.high) if not math.isnan(value)]
    return min(steps), max(steps), min(values), max(values)


def axis(curve: Curve, *, most: int = 6) -> list[float]:
    """Round numbers up the side; shares are drawn from 0 to 1, so that pictures of several runs compare."""
    _, _, low, high = bounds(curve)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return ticks(low, high, most=most)


_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def draw(curve: Curve, *, width: int = 72, height: int = 12, ascii_only: bool = False) -> str:
    """The curve as text: smoothed reward as dots, evaluations as marks, axes with round numbers.

    `width` and `height` are characters of the whole and lines of the plot. Nothing to draw: one line that says so.
    """
    if curve.empty:
        return "no steps yet"
    first, last, _, _ = bounds(curve)
    values = axis(curve, most=5)
    gutter = max(len(label(value)) for value in values) + 1
    plot = _Plot(max(8, width - gutter - 1), max(3, height), (first, last), (values[0], values[-1]))
    for here, there in zip(curve.smooth, (*curve.smooth[1:], *curve.smooth[-1:]), strict=True):
        plot.line(here, there)
    marks = {plot.cell(point.step, point.accuracy): "*" if ascii_only else "◆" for point in curve.accuracy}
    rows = {plot.cell(first, value)[1]: label(value) for value in values}
    lines = []
    for y in range(plot.height):
        body = "".join(marks.get((x, y)) or plot.letter(x, y, ascii_only) for x in range(plot.width))
        edge = ("+" if ascii_only else "┤") if y in rows else ("|" if ascii_only else "│")
        lines.append(f"{rows.get(y, ''):>{gutter}}{edge}{body}".rstrip())
    legend = (
        "  . reward   * accuracy on unseen problems" if ascii_only else "  ⠒ reward   ◆ accuracy on unseen problems"
    )
    return "\n".join([*lines, *_foot(plot, gutter, ascii_only), legend])


def _foot(plot: _Plot, gutter: int, ascii_only: bool) -> list[str]:
    dash, corner = ("-", "+") if ascii_only else ("─", "└")
    left, right = label(plot.steps[0]), label(plot.steps[1])
    room = plot.width - len(left) - len(right)
    return [f"{'':>{gutter}}{corner}{dash * plot.width}", f"{'':>{gutter}} {left}{'step':^{max(room, 6)}}{right}"]


class _Plot:
    """A grid of braille dots, two by four per character."""

    def __init__(self, width: int, height: int, steps: Point, values: Point) -> None:
        self.width, self.height, self.steps, self.values = width, height, steps, values
        self._dots: dict[tuple[int, int], int] = {}

    def _dot(self, step: float, value: float) -> tuple[int, int]:
        across = (step - self.steps[0]) / ((self.steps[1] - self.steps[0]) or 1.0)
        up = (value - self.values[0]) / ((self.values[1] - self.values[0]) or 1.0)
        x, y = round(across * (2 * self.width - 1)), round((1 - up) * (4 * self.height - 1))
        return min(max(x, 0), 2 * self.width - 1), min(max(y, 0), 4 * self.height - 1)

    def cell(self, step: float, value: float) -> tuple[int, int]:
        """The character that a point falls into."""
        x, y = self._dot(step, value)
        return x // 2, y // 4

    def line(self, here: Point, there: Point) -> None:
        """Set the dots between two points."""
        (x0, y0), (x1, y1) = self._dot(*here), self._dot(*there)
        count = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(count + 1):
            x, y = x0 + round(i * (x1 - x0) / count), y0 + round(i * (y1 - y0) / count)
            cell = (x // 2, y // 4)
            self._dots[cell] = self._dots.get(cell, 0) | _DOTS[y % 4][x % 2]

    def letter(self, x: int, y: int, ascii_only: bool) -> str:
        """The character at a cell."""
        dots = self._dots.get((x, y), 0)
        if ascii_only:
            return "." if dots else " "
        return chr(0x2800 + dots) if dots else " "
