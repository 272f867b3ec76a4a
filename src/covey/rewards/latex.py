r"""What can be read of a mathematical answer without a computer algebra: the last box of a response, and plain numbers.

Every function takes time linear in the length of its text (the box finder in that of the text after the last but one box).
"""

from __future__ import annotations

import re
from fractions import Fraction

BOX = r"\boxed"
APART = 70
"""Characters between two boxes from which on the later one is an answer of its own."""
LONGEST_NUMBER = 500
_DECIMAL = re.compile(r"([-+]?)(?:\\?\$\s?)?((?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)", re.ASCII)
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}\\]*)\}")
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\s?(?:\{(\d+)\}\s?\{(\d+)\}|(\d)\s?(\d))", re.ASCII)
_QUOTIENT = re.compile(r"([-+]?\d+)\s?/\s?(\d+)", re.ASCII)
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def match_brace(text: str, start: int) -> int | None:
    r"""The place of the brace that closes the one at `start`; None if it stays open. `\{` and `\}` are no braces."""
    depth, place = 0, start
    while place < len(text):
        letter = text[place]
        if letter == "\\":
            place += 1
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                return place
        place += 1
    return None


def nesting(text: str) -> int:
    """How many brackets of any kind are open at once, at most."""
    deepest = depth = 0
    for letter in text:
        if letter in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in ")]}":
            depth = max(depth - 1, 0)
    return deepest


def find_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}`, if that is complete and the only answer there.

    None without a box, if it is not closed, and if another box ends fewer than `APART` characters before it: such a series of
    boxes is one answer with several values.
    """
    start = text.rfind(BOX)
    if start < 0 or not text.startswith("{", start + len(BOX)):
        return None
    end = match_brace(text, start + len(BOX))
    before = text.rfind(BOX, 0, start)
    if end is None or (before >= 0 and _close(text, before, start)):
        return None
    return text[start + len(BOX) + 1 : end].strip()


def _close(text: str, before: int, start: int) -> bool:
    """Whether the box at `before` ends shortly before `start`; one that does not end there may be anything, so it counts."""
    opening = before + len(BOX)
    end = match_brace(text, opening) if text.startswith("{", opening) else None
    return end is None or start - end - 1 < APART


def unwrap(text: str) -> str:
    """A text without blanks around it and without the dollars or brackets that make it a formula, if they are one pair."""
    text = text.strip()
    for left, right in _WRAPPERS:
        inner = text[len(left) : len(text) - len(right)]
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
            return text if left in inner or right in inner else inner.strip()
    return text


def read_words(text: str) -> str:
    r"""A text as it is meant to be read: `\text{east}` is east."""
    found = _WORDS.fullmatch(unwrap(text))
    return found[1].strip() if found else unwrap(text)


def read_number(text: str) -> Fraction | None:
    r"""The exact value of a plain number: `-3`, `1,250.0`, `.5`, `\$5`, `3/4`, `\frac{3}{4}`, `\dfrac34`, as a formula or not.

    None for everything else, percentages among them (50 % is 1/2 to some and 50 to others), and beyond 500 characters.
    """
    text = unwrap(text) if len(text) <= 2 * LONGEST_NUMBER else ""
    if not text or len(text) > LONGEST_NUMBER:
        return None
    if found := _DECIMAL.fullmatch(text):
        return Fraction((found[1] + found[2]).replace(",", ""))
    sign, top, bottom = "", "", ""
    if found := _FRACTION.fullmatch(text):
        sign, top, bottom = found[1], found[2] or found[4], found[3] or found[5]
    elif found := _QUOTIENT.fullmatch(text):
        top, bottom = found[1], found[2]
    if not bottom or int(bottom) == 0:
        return None
    return Fraction(int(sign + top), int(bottom))
