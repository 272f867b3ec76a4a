"""What a reward function returned, as scores: a number, feedback and facts for each response, or the reason why there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from numbers import Real
from typing import Any

from covey.rewards.failures import ScoringError, explain, fail
from covey.rewards.signatures import Log
from covey.types import Score

FEEDBACK = ("feedback", "detail")
"""Entries of a returned mapping that are text for people."""


def read_one(value: Any, name: str) -> Score:
    """The score of one response from what the function says of it: a number, `(number, text)` or `{"score": number, ...}`."""
    try:
        number, detail, facts = _split(value)
        return Score({name: read_number(number)}, facts=facts, detail=detail)
    except Exception as error:  # a value may raise whatever it likes when it is looked at
        return fail((name,), explain(error))


def read_many(values: Any, count: int, name: str, log: Log) -> list[Score]:
    """One score per response; with another number of values nothing is guessed, and all of them fail."""
    if values is None or isinstance(values, (str, bytes, Mapping, Real)) or not _iterable(values):
        given = "None" if values is None else f"{shorten(values)} ({type(values).__name__})"
        return [fail((name,), f"length: returned {given}, not a list with {count} values")] * count
    found = list(islice(values, count + 1))
    if len(found) != count:
        said = f"{len(found)}" if len(found) < count else f"more than {count}"
        return [fail((name,), f"length: {said} values for {count} completions")] * count
    return [add_logged(read_one(value, name), log, place, count) for place, value in enumerate(found)]


def _iterable(values: Any) -> bool:
    return isinstance(values, Iterable) and getattr(values, "ndim", 1) != 0


def add_logged(score: Score, log: Log, place: int, count: int) -> Score:
    """The score with what the function logged as facts: of a column the value at its place, of a number the number."""
    columns = {column: values[place] for column, values in log.columns.items() if len(values) == count}
    logged = {name: plain(value) for name, value in {**columns, **log.numbers}.items()}
    return Score(score.values, score.failures, {**logged, **score.facts}, score.detail) if logged else score


def _split(value: Any) -> tuple[Any, str, dict[str, Any]]:
    if isinstance(value, Mapping):
        if "score" not in value:
            raise ScoringError(f"type: returned {shorten(value)} ({type(value).__name__}), which has no entry 'score'")
        detail = "\n".join(str(value[key]) for key in FEEDBACK if value.get(key))
        facts = {str(key): plain(item) for key, item in value.items() if key not in ("score", *FEEDBACK)}
        return value["score"], detail, facts
    if isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[1], str):
        return value[0], value[1], {}
    return value, "", {}


def read_number(value: Any) -> float:
    """A finite float of a number, a bool, or a numpy or torch scalar; raises with the reason otherwise."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        value = item()
    if value is None:
        raise ScoringError("none: returned None, not scorable")
    if not isinstance(value, Real):
        raise ScoringError(f"type: returned {shorten(value)} ({type(value).__name__}), not a number")
    try:
        number = float(value)
    except OverflowError:
        raise ScoringError("nonfinite: returned a number beyond all floats") from None
    if not math.isfinite(number):
        raise ScoringError(f"nonfinite: returned {'NaN' if math.isnan(number) else number}")
    return number


def shorten(value: Any) -> str:
    """How a value reads, in at most 60 characters."""
    try:
        text = repr(value)
    except Exception:
        text = "a value without repr"
    return text if len(text) <= 60 else text[:57] + "..."


def plain(value: Any) -> Any:
    """A fact as JSON has it: what it cannot hold is kept as its text, at most 200 characters long."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        value = item()
    if isinstance(value, str) or value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return shorten(value) if not isinstance(value, Sequence) else str(value)[:200]
    return value
