"""The table of an evaluation: one row per problem, on disk as JSON lines, added up over disjoint samples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from covey.errors import DataError, MissingInputError
from covey.files import write_atomic

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What happened on one problem.

    `samples` lists the sample indices as half-open spans, `correct` counts the right ones, `truncated` those that
    hit the token budget, `failed` those without a score (they count as wrong), `tokens` the policy's tokens,
    `classes` the failure classes.
    """

    id: str
    set: str
    level: int | None
    samples: Spans
    correct: int
    truncated: int = 0
    failed: int = 0
    tokens: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of samples."""
        return sum(stop - start for start, stop in self.samples)

    @property
    def mixed(self) -> bool:
        """Some samples are right and some are wrong: a group that a group-relative method can learn from."""
        return 0 < self.correct < self.n

    def __add__(self, other: Tally) -> Tally:
        if (self.id, self.set) != (other.id, other.set):
            raise DataError(f"{self.set}/{self.id}", f"cannot be added to {other.set}/{other.id}", "")
        names = sorted({*self.classes, *other.classes})
        return replace(
            self,
            samples=join_spans(self.samples, other.samples, where=f"{self.set}/{self.id}"),
            correct=self.correct + other.correct,
            truncated=self.truncated + other.truncated,
            failed=self.failed + other.failed,
            tokens=self.tokens + other.tokens,
            classes={name: self.classes.get(name, 0) + other.classes.get(name, 0) for name in names},
        )


def join_spans(first: Spans, second: Spans, *, where: str = "samples") -> Spans:
    """The union of disjoint spans, neighbours fused; an index that occurs twice is an error."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted((*first, *second)):
        if joined and start < joined[-1][1]:
            raise DataError(where, f"sample {start} is counted twice", "Merge tables of disjoint sample indices.")
        if joined and start == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


def merge(*tables: Iterable[Tally]) -> tuple[Tally, ...]:
    """One table of several: problems in order of first appearance, counts of the same problem added."""
    merged: dict[tuple[str, str], Tally] = {}
    for table in tables:
        for tally in table:
            place = (tally.set, tally.id)
            merged[place] = merged[place] + tally if place in merged else tally
    return tuple(merged.values())


def write_table(path: Path, table: Iterable[Tally]) -> None:
    """Write one JSON object per problem: id, set, level, n, correct and the other counts."""
    write_atomic(path, "".join(_line(tally) for tally in table).encode())


def read_table(path: Path) -> tuple[Tally, ...]:
    """Read what `write_table` wrote; a line that is no such object is an error that names its number."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise MissingInputError(str(path), "cannot be read", f"{error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(str(path), "is not UTF-8", f"({error.reason} at byte {error.start})") from None
    return tuple(_tally(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip())


def _line(tally: Tally) -> str:
    row: dict[str, Any] = {
        "id": tally.id,
        "set": tally.set,
        "level": tally.level,
        "n": tally.n,
        "correct": tally.correct,
        "samples": [list(span) for span in tally.samples],
        "truncated": tally.truncated,
        "failed": tally.failed,
        "tokens": tally.tokens,
        "classes": dict(sorted(tally.classes.items())),
    }
    return json.dumps(row) + "\n"


def _tally(line: str, where: str) -> Tally:
    try:
        row = json.loads(line)
        n = row.pop("n")
        spans: Sequence[Sequence[int]] = row.pop("samples", [[0, n]])
        tally = Tally(
            **row, samples=join_spans(tuple((int(start), int(stop)) for start, stop in spans), (), where=where)
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(where, "is no row of an evaluation table", f"({error})") from None
    if tally.n != n or not 0 <= tally.correct <= n:
        raise DataError(where, f"{tally.correct} correct of n = {n} with {tally.n} sample indices", "These must agree.")
    return tally
