"""The learning curve as a picture: one SVG without script, font or link, in colours that everyone can tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from covey.files import write_atomic
from covey.observe.curve import Curve, Evaluated, Point, axis, bounds, label, ticks
from covey.observe.plain import clean

REWARD, ACCURACY, INK, GRID = "#0072B2", "#D55E00", "#222222", "#E3E3E3"
_FONT = "font-family='Helvetica, Arial, sans-serif'"


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where a panel lies (pixels) and what its axes span."""

    left: float
    top: float
    width: float
    height: float
    steps: Sequence[float]
    values: Sequence[float]

    def x(self, step: float) -> float:
        """Pixel of a step."""
        return self.left + self.width * (step - self.steps[0]) / ((self.steps[-1] - self.steps[0]) or 1.0)

    def y(self, value: float) -> float:
        """Pixel of a value."""
        span = (self.values[-1] - self.values[0]) or 1.0
        return self.top + self.height * (1 - (value - self.values[0]) / span)

    def at(self, point: Point) -> str:
        """Pixels of a point, as SVG writes them."""
        return f"{self.x(point[0]):.1f},{self.y(point[1]):.1f}"


def write_svg(path: Path, curve: Curve) -> Path:
    """Write the picture of a curve to a file."""
    write_atomic(path, svg(curve).encode())
    return path


def svg(curve: Curve, *, width: int = 760, height: int = 440) -> str:
    """The picture: reward of each step (thin), its moving mean (line), evaluations (diamonds with 95 % intervals).

    Rewards that leave [-1, 1] get a panel of their own above the accuracy's. Values stand in the marks' titles.
    """
    title = escape(clean(curve.title))
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"role='img' {_FONT} font-size='13' fill='{INK}'>",
        f"<title>{title}</title>",
        f"<rect width='{width}' height='{height}' fill='#FFFFFF'/>",
        f"<text x='64' y='28' font-size='16' font-weight='bold'>{title}</text>",
    ]
    if curve.empty:
        parts.append(f"<text x='{width / 2}' y='{height / 2}' text-anchor='middle'>no steps yet</text>")
    else:
        parts += _legend(curve) + _panels(curve, width, height)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panels(curve: Curve, width: int, height: int) -> list[str]:
    left, top, wide, high = 64.0, 66.0, width - 92.0, height - 120.0
    first, last, _, _ = bounds(curve)
    steps = [tick for tick in ticks(first, last, most=9) if first <= tick <= last]
    span = [first, *steps, last]
    together = all(-1 <= value <= 1 for _, value in curve.reward)
    parts: list[str] = []
    if together or not curve.accuracy:
        name = " / ".join((["reward"] if curve.reward else []) + (["accuracy"] if curve.accuracy else []))
        frame = _Frame(left, top, wide, high, span, axis(curve))
        parts += _grid(frame, steps, name) + _reward(frame, curve) + _accuracy(frame, curve.accuracy)
    else:
        half = (high - 34) / 2
        rewards, marks = Curve(reward=curve.reward), Curve(accuracy=curve.accuracy)
        upper = _Frame(left, top, wide, half, span, axis(rewards))
        lower = _Frame(left, top + half + 34, wide, half, span, axis(marks))
        parts += _grid(upper, steps, "reward") + _reward(upper, rewards)
        parts += _grid(lower, steps, "accuracy") + _accuracy(lower, marks.accuracy)
    parts.append(f"<text x='{left + wide / 2:.1f}' y='{height - 14}' text-anchor='middle'>step</text>")
    return parts


def _grid(frame: _Frame, steps: Sequence[float], name: str) -> list[str]:
    left, right, bottom = frame.left, frame.left + frame.width, frame.top + frame.height
    parts = []
    for value in frame.values:
        y = frame.y(value)
        parts.append(f"<line x1='{left}' y1='{y:.1f}' x2='{right}' y2='{y:.1f}' stroke='{GRID}'/>")
        parts.append(f"<text x='{left - 8}' y='{y + 4:.1f}' text-anchor='end'>{label(value)}</text>")
    for step in steps:
        x = frame.x(step)
        parts.append(f"<line x1='{x:.1f}' y1='{bottom}' x2='{x:.1f}' y2='{bottom + 5}' stroke='{INK}'/>")
        parts.append(f"<text x='{x:.1f}' y='{bottom + 20}' text-anchor='middle'>{label(step)}</text>")
    parts.append(f"<path d='M{left},{frame.top}V{bottom}H{right}' fill='none' stroke='{INK}'/>")
    middle = frame.top + frame.height / 2
    parts.append(
        f"<text x='18' y='{middle:.1f}' text-anchor='middle' transform='rotate(-90 18 {middle:.1f})'>{name}</text>"
    )
    return parts


def _reward(frame: _Frame, curve: Curve) -> list[str]:
    if not curve.reward:
        return []
    raw = " ".join(frame.at(point) for point in curve.reward)
    smooth = " ".join(frame.at(point) for point in curve.smooth)
    first, last = curve.reward[0], curve.reward[-1]
    told = f"reward {first[1]:.4g} at step {label(first[0])}, {last[1]:.4g} at step {label(last[0])}"
    parts = [
        f"<polyline points='{raw}' fill='none' stroke='{REWARD}' stroke-opacity='0.28'/>",
        f"<polyline points='{smooth}' fill='none' stroke='{REWARD}' stroke-width='2.4' stroke-linejoin='round'>"
        f"<title>{told}</title></polyline>",
    ]
    if len(curve.reward) == 1:
        parts.append(f"<circle cx='{frame.x(first[0]):.1f}' cy='{frame.y(first[1]):.1f}' r='3' fill='{REWARD}'/>")
    return parts


def _accuracy(frame: _Frame, points: Sequence[Evaluated]) -> list[str]:
    parts = []
    if len(points) > 1:
        path = " ".join(frame.at((point.step, point.accuracy)) for point in points)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{ACCURACY}' stroke-dasharray='5 4'/>")
    for point in points:
        x, y = frame.x(point.step), frame.y(point.accuracy)
        told = f"step {label(point.step)}: accuracy {point.accuracy:.3f}"
        if not math.isnan(point.low + point.high):
            low, high = frame.y(point.low), frame.y(point.high)
            parts.append(
                f"<path d='M{x:.1f},{low:.1f}V{high:.1f}M{x - 4:.1f},{low:.1f}h8M{x - 4:.1f},{high:.1f}h8' "
                f"stroke='{ACCURACY}' stroke-width='1.4'/>"
            )
            told += f", 95 % interval {point.low:.3f} to {point.high:.3f}"
        parts.append(
            f"<path d='M{x:.1f},{y - 6:.1f}l6,6l-6,6l-6,-6z' fill='{ACCURACY}' stroke='#FFFFFF'>"
            f"<title>{told}</title></path>"
        )
    return parts


def _legend(curve: Curve) -> list[str]:
    parts, x = [], 64
    if curve.reward:
        parts.append(f"<line x1='{x}' y1='47' x2='{x + 24}' y2='47' stroke='{REWARD}' stroke-width='2.4'/>")
        parts.append(f"<text x='{x + 31}' y='51'>mean reward of a step (training)</text>")
        x += 250
    if curve.accuracy:
        parts.append(f"<path d='M{x + 6},41l6,6l-6,6l-6,-6z' fill='{ACCURACY}'/>")
        parts.append(f"<text x='{x + 19}' y='51'>accuracy on unseen problems, 95 % interval</text>")
    return parts
