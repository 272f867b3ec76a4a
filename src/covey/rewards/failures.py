"""Why a response has no score: a reason starts with the word of its type, so that failures are counted and never pass as a 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from covey.types import Score

TYPES: Mapping[str, str] = {
    "timeout": "no score within the time limit; the process was killed",
    "crash": "the process ended, by a signal or by leaving",
    "memory": "the memory limit was reached",
    "exception": "the function raised",
    "length": "not one value per response",
    "nonfinite": "NaN or infinite",
    "type": "what was returned is not a number",
    "size": "the result is too large to be handed over",
    "none": "the function returned None: it cannot score this response",
}
"""The types of failures, by the word before the colon of a reason."""
OTHER = "other"
"""The type of a reason that a reward words itself."""


class ScoringError(Exception):
    """A result that cannot be a score; the text is the reason, its type first."""


def type_of(reason: str) -> str:
    """The type of a reason: one of `TYPES`, or `other`."""
    word, colon, _ = reason.partition(":")
    return word if colon and word in TYPES else OTHER


def explain(error: BaseException) -> str:
    """The reason that an exception gives: one line, its type first."""
    if isinstance(error, ScoringError):
        return one_line(str(error))
    if isinstance(error, MemoryError):
        return "memory: the function ran out of it"
    try:
        text = str(error)
    except Exception:
        text = "(without a text)"
    return one_line(f"exception: {type(error).__name__}" + (f": {text}" if text else ""))


def one_line(text: str, most: int = 500) -> str:
    """A text without line breaks and runs of blanks, cut to `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


def fail(names: Iterable[str], reason: str) -> Score:
    """The score of a response that could not be scored, for the components `names`."""
    return Score(failures=dict.fromkeys(names, reason))
