"""Learning curves as SVG: the mean over seeds in a band from the lowest to the highest, all other methods in grey behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Curves = Mapping[str, Sequence[Sequence[float]]]
"""Name -> the curve of each seed."""

COLOUR, GREY, RULE = "#0072B2", "#A8A8A8", "#E3E3E3"
TITLE = "compose: share of right answers in a step's rollouts; line: mean of the seeds, band: lowest to highest"
STYLE = (
    "<style>svg{background:#fff}text{font-family:Helvetica,Arial,sans-serif;fill:#222}"
    "@media(prefers-color-scheme:dark){svg{background:#1e2129}text{fill:#e6e6e6}}</style>"
)


def draw_one(curves: Curves, name: str) -> str:
    """One method in front of all others."""
    return _svg(660, 330, _panel(curves, name, (44, 56, 596, 240), ticks=True))


def draw_all(curves: Curves, columns: int = 5) -> str:
    """A panel per method, all on the same axes, each with all others behind it."""
    wide, high = 190, 150
    rows = -(-len(curves) // columns)
    panels = []
    for at, name in enumerate(curves):
        left, top = (at % columns) * wide + 34, (at // columns) * high + 44
        panels.append(_panel(curves, name, (left, top, wide - 22, high - 44), ticks=at % columns == 0))
    return _svg(columns * wide + 20, rows * high + 40, "".join(panels))


def _svg(width: int, height: int, body: str) -> str:
    frame = f"viewBox='0 0 {width} {height}' width='{width}' height='{height}' role='img' font-size='11'"
    head = f"<title>{escape(TITLE)}</title>\n<text x='12' y='18'>{escape(TITLE)}</text>"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {frame}>{STYLE}{head}\n{body}</svg>\n"


def _panel(curves: Curves, name: str, box: tuple[float, float, float, float], *, ticks: bool) -> str:
    left, top, width, height = box
    steps = max(len(curve) for seeds in curves.values() for curve in seeds)

    def place(step: int, value: float) -> str:
        return f"{left + width * step / max(steps - 1, 1):.1f},{top + height * (1 - value):.1f}"

    def line(values: Sequence[float]) -> str:
        return " ".join(place(step, value) for step, value in enumerate(values))

    parts = []
    for value in (0.0, 0.5, 1.0):
        y = top + height * (1 - value)
        parts.append(f"<line x1='{left}' y1='{y:.1f}' x2='{left + width}' y2='{y:.1f}' stroke='{RULE}'/>")
        if ticks:
            parts.append(f"<text x='{left - 5}' y='{y + 4:.1f}' text-anchor='end'>{value:g}</text>")
    for other in curves:
        parts.append(f"<polyline points='{line(_mean(curves[other]))}' fill='none' stroke='{GREY}' stroke-width='.6'/>")
    own = curves[name]
    low, high = [min(at) for at in zip(*own, strict=True)], [max(at) for at in zip(*own, strict=True)]
    back = " ".join(place(step, value) for step, value in reversed(list(enumerate(low))))
    parts.append(f"<polygon points='{line(high)} {back}' fill='{COLOUR}' fill-opacity='.25'/>")
    parts.append(f"<polyline points='{line(_mean(own))}' fill='none' stroke='{COLOUR}' stroke-width='2'/>")
    parts.append(f"<text x='{left}' y='{top - 6}' font-weight='bold'>{escape(name)}</text>")
    if ticks:
        parts.append(f"<text x='{left}' y='{top + height + 13}'>step 1</text>")
        parts.append(f"<text x='{left + width}' y='{top + height + 13}' text-anchor='end'>{steps}</text>")
    return "".join(parts) + "\n"


def _mean(seeds: Sequence[Sequence[float]]) -> list[float]:
    return [sum(at) / len(at) for at in zip(*seeds, strict=True)]
