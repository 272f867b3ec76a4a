"""The table of an evaluation: one row per problem, on disk as JSON lines, added up over disjoint samples."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from covey.errors import DataError, MissingInputError
from covey.files import write_atomic
from covey.types import Json

Spans = tuple[tuple[int, int], ...]
Answers = Mapping[str, tuple[int, int]]
_TABLE = "Give a file that `covey eval --table FILE` wrote; problems are asked of a model: covey eval MODEL data=FILE."
"""Samples that gave an answer and how many of those are right, by answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a table is from: the model's name and a digest of its weights, what was asked and how, the main set."""

    model: str
    weights: str
    asked: Mapping[str, Json]
    main_set: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What happened on one problem.

    `samples` lists the sample indices as half-open spans, `correct` counts the right ones, `truncated` those that
    hit the token budget, `failed` those without a score (they count as wrong), `tokens` the policy's tokens,
    `classes` the failure classes. `answers` says of each normalised final answer how many samples gave it and how many
    of those are right; samples without an answer are in none of them. None: nobody recorded answers.
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
    answers: Answers | None = None

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
            answers=_add_answers(self.answers, other.answers),
        )


def _add_answers(first: Answers | None, second: Answers | None) -> Answers | None:
    """Counts added; a part that did not record answers leaves the whole without them."""
    if first is None or second is None:
        return None
    names = dict.fromkeys([*first, *second])
    pairs = {name: (first.get(name, (0, 0)), second.get(name, (0, 0))) for name in names}
    return {name: (one[0] + two[0], one[1] + two[1]) for name, (one, two) in pairs.items()}


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


def write_table(path: Path, table: Iterable[Tally], origin: Origin | None = None) -> None:
    """Write where it is from, then one JSON object per problem: id, set, level, n, correct and the other counts."""
    head = json.dumps({"origin": asdict(origin)}) + "\n" if origin is not None else ""
    write_atomic(path, (head + "".join(_line(tally) for tally in table)).encode())


def read_table(path: Path) -> tuple[Tally, ...]:
    """The problems of what `write_table` wrote; a line that is no such object is an error that names its number."""
    rows = _lines(path)
    return tuple(_tally(line, where) for line, where in rows[_origin(rows) is not None :])


def read_origin(path: Path) -> Origin | None:
    """Where a table says that it is from; None if it does not."""
    return _origin(_lines(path))


def merge_tables(paths: Sequence[Path]) -> tuple[tuple[Tally, ...], Origin | None]:
    """The tables of files as one. Refused where they are from other weights or were asked otherwise, or share samples."""
    known: tuple[Path, Origin] | None = None
    for path in paths:
        origin = read_origin(path)
        if known is not None and origin is not None:
            _same_origin(path, origin, *known)
        known = known if known is not None or origin is None else (path, origin)
    return merge(*map(read_table, paths)), known[1] if known is not None else None


def _same_origin(path: Path, origin: Origin, other: Path, first: Origin) -> None:
    if origin.weights != first.weights:
        found = f"is from the model {origin.model}, {other} from {first.model}: other weights"
        raise DataError(str(path), found, "Compare them without --merge.")
    refuse_other_questions(str(path), origin, str(other), first)


def refuse_other_questions(where: str, origin: Origin, other: str, first: Origin) -> None:
    """Raise a DataError where two tables were not asked the same in the same way."""
    for name in sorted({*origin.asked, *first.asked}):
        mine, theirs = origin.asked.get(name), first.asked.get(name)
        if mine != theirs:
            found = f"was asked with {name} {json.dumps(mine):.80}, {other} with {json.dumps(theirs):.80}"
            raise DataError(where, found, "Ask both alike.")


def _lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a file that hold something, each with its place."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise MissingInputError(str(path), "cannot be read", f"{error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(str(path), "is not UTF-8", f"({error.reason} at byte {error.start})") from None
    return [(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _origin(rows: Sequence[tuple[str, str]]) -> Origin | None:
    try:
        head = json.loads(rows[0][0]) if rows else None
        return Origin(**head["origin"]) if isinstance(head, dict) and "origin" in head else None
    except (ValueError, TypeError):
        raise DataError(rows[0][1], "is no row of an evaluation table", _TABLE) from None


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
    if tally.answers is not None:
        row["answers"] = {name: list(tally.answers[name]) for name in sorted(tally.answers)}
    return json.dumps(row) + "\n"


def _tally(line: str, where: str) -> Tally:
    try:
        row = json.loads(line)
        n = row.pop("n")
        spans: Sequence[Sequence[int]] = row.pop("samples", [[0, n]])
        answers = row.pop("answers", None)
        tally = Tally(
            **row,
            samples=join_spans(tuple((int(start), int(stop)) for start, stop in spans), (), where=where),
            answers=None if answers is None else {name: (int(a), int(b)) for name, (a, b) in answers.items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(where, "is no row of an evaluation table", _TABLE) from None
    if tally.n != n or not 0 <= tally.correct <= n:
        raise DataError(where, f"{tally.correct} correct of n = {n} with {tally.n} sample indices", "These must agree.")
    _check_answers(tally, where)
    return tally


def _check_answers(tally: Tally, where: str) -> None:
    """The answers are those of the samples that are counted."""
    counts = list((tally.answers or {}).values())
    fits = all(0 <= right <= count and count > 0 for count, right in counts)
    if not fits or sum(a for a, _ in counts) > tally.n or sum(b for _, b in counts) > tally.correct:
        found = f"its answers do not fit {tally.correct} correct of n = {tally.n}"
        raise DataError(where, found, "Each answer has [samples, right ones].")
