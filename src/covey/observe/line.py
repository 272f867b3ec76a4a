"""The one line that a step shows: its fields in order, the least important ones left out where space is short."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_BAR = 10


@dataclass(frozen=True, slots=True)
class Field:
    """A piece of the line; pieces with a high `rank` are the first to go."""

    text: str
    rank: int
    style: str = ""


def fields(
    values: Mapping[str, float], *, first: Mapping[str, float], signal: tuple[int, int] | None, seconds: float
) -> list[Field]:
    """The pieces of a step's line: reward and its change since `first`, solved, signal, length, entropy, clip, speed.

    `signal` is (groups with a signal, groups), `seconds` the time of a step (NaN: unknown). A metric that is absent or
    NaN has no piece.
    """
    found: list[Field | None] = [
        _reward(values.get("reward/mean", math.nan), first.get("reward/mean", math.nan)),
        _percent("solved", values.get("reward/correct", math.nan), 2),
        Field(f"signal {signal[0]}/{signal[1]}", 3) if signal else None,
        _number("length {:.0f}", values.get("length/mean", math.nan), 6),
        _number("entropy {:.2f}", values.get("entropy/sampled", math.nan), 4),
        _percent("clip", values.get("clip/low", 0.0) + values.get("clip/high", math.nan), 7),
        _number("{:.2g} s/step", seconds, 5),
    ]
    return [piece for piece in found if piece is not None]


def bar(done: int, of: int, *, ascii_only: bool = False) -> str:
    """Progress as ten characters."""
    filled = _BAR if of <= 0 else min(_BAR, done * _BAR // of)
    full, rest = ("#", "-") if ascii_only else ("━", "╌")
    return full * filled + rest * (_BAR - filled)


def fit(pieces: list[Field], width: int, *, gap: str = "  ") -> list[Field]:
    """The pieces that fit into `width` characters, in their order; the least important ones go first."""
    kept = list(pieces)
    while len(kept) > 1 and sum(len(piece.text) for piece in kept) + len(gap) * (len(kept) - 1) > width:
        kept.remove(max(kept, key=lambda piece: piece.rank))
    return kept


def duration(seconds: float) -> str:
    """A time in the two units that matter: `45 s`, `3 min 20 s`, `2 h 05 min`; `?` if unknown."""
    if math.isnan(seconds) or math.isinf(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: int) -> str:
    """A count of parameters: `312 k`, `1.7 M`, `8 B`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _reward(value: float, first: float) -> Field | None:
    if math.isnan(value):
        return None
    change = "" if math.isnan(first) else f" ({value - first:+.2f})"
    return Field(f"reward {value:.2f}{change}", 0, "bold")


def _percent(name: str, value: float, rank: int) -> Field | None:
    return None if math.isnan(value) else Field(f"{name} {value:.0%}", rank)


def _number(form: str, value: float, rank: int) -> Field | None:
    return None if math.isnan(value) else Field(form.format(value), rank)
