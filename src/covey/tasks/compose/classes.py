"""What went wrong in a response to a composed program, by rule: no judge, the first class that fits.

The classes follow arXiv 2509.25123 (correct, composition ignored, trace incomplete, composition misread, atom wrong),
with `malformed` and `truncated` in front. They exhaust all cases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from covey.tasks.compose.tiny import FUNCTIONS, Program, list_sub_values

_SEGMENT = re.compile(r"((?:[A-Z]\()*)([a-f]+)(\)*)")
_LETTERS = re.compile(r"[a-f]+")
CLASSES = ("correct", "truncated", "malformed", "ignored", "incomplete", "misread", "atom")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The class of a response, whether its whole trace is right, and one sentence that says what is wrong."""

    name: str
    trace_ok: bool = False
    detail: str = ""


def read_answer(text: str) -> str | None:
    """The final string of a response: what follows its last `=`, if the text ends in its only `.`; otherwise None."""
    if not text.endswith(".") or text.count(".") != 1:
        return None
    return text[:-1].rpartition("=")[2]


def parse_segment(segment: str) -> tuple[str, str] | None:
    """Calls (outermost first) and string of one segment: `B(E(abcd))` is ("BE", "abcd"); None if it does not parse."""
    match = _SEGMENT.fullmatch(segment)
    if match is None or match[1].count("(") != len(match[3]):
        return None
    return match[1].replace("(", ""), match[2]


def classify(program: Program, text: str, *, truncated: bool = False) -> Verdict:
    """The failure class of a response to a program. `truncated`: the token budget ended it."""
    answer = program.answer
    if truncated:
        return Verdict("truncated", detail="The response was cut off before it ended.")
    final = read_answer(text)
    if final == answer:
        return Verdict("correct", text == program.trace, "Right.")
    if final is None or not _LETTERS.fullmatch(final):
        return Verdict("malformed", detail="The response must end in letters closed by one full stop.")
    if final in list_sub_values(program):
        return Verdict(
            "ignored", detail=f"{final} is what the program gives when calls are left out; it gives {answer}."
        )
    segments = text[:-1].split("=")
    if len(segments) < len(program.functions):
        found, wanted = len(segments), len(program.functions)
        return Verdict("incomplete", detail=f"{found} of {wanted} rewriting steps; the program gives {answer}.")
    return _walk(program, segments)


def _walk(program: Program, segments: list[str]) -> Verdict:
    """The first wrong segment of a complete trace: its calls (`misread`) or its string (`atom`)."""
    n, before = len(program.functions), program.input
    for k, segment in enumerate(segments, start=1):
        calls = program.functions[: max(n - k, 0)]
        parsed = parse_segment(segment)
        if k > n or parsed is None or parsed[0] != calls:
            wanted = f"the calls left are {' '.join(calls)}" if calls else "no call is left"
            return Verdict("misread", detail=f"Segment {k} is {segment!r}; after {min(k, n)} steps {wanted}.")
        name, found = program.functions[n - k], parsed[1]
        wanted = FUNCTIONS[name](before)
        if found != wanted:
            return Verdict("atom", detail=f"Segment {k}: {name}({before}) is {wanted}, not {found}.")
        before = found
    raise AssertionError("a trace without a wrong segment has the right answer")
