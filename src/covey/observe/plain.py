"""Text that a model or a file wrote, made harmless for a terminal or a picture."""

from __future__ import annotations

import re
import unicodedata

_SEQUENCE = re.compile(
    r"(?:\x1b[P\]X^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # strings: OSC, DCS, SOS, PM, APC
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor, erase
    r"|\x1b[ -/]*[0-~]?"  # two-character and designating escapes
)
_VISIBLE = {"\n": "⏎", "\r": "", "\t": " "}
_HIDDEN = frozenset(("Cc", "Cf", "Co", "Cn", "Zl", "Zp"))


def clean(text: str, *, ascii_only: bool = False) -> str:
    """Text on one line without anything that acts: no escape sequences, control, bidi or zero-width characters.

    A line break shows as `⏎`, a lone surrogate as `U+FFFD`. With `ascii_only` every other character is written as
    `\\xe9`.
    """
    shown = []
    for letter in _SEQUENCE.sub("", text):
        kind = unicodedata.category(letter)
        if letter in _VISIBLE:
            shown.append(_VISIBLE[letter])
        elif kind == "Cs":
            shown.append("\ufffd")
        elif kind not in _HIDDEN:
            shown.append(letter)
    line = "".join(shown)
    return line.replace("⏎", "\\n").encode("ascii", "backslashreplace").decode() if ascii_only else line


def shorten(text: str, width: int) -> str:
    """At most `width` characters: the middle gives way to `…`, since a response's end says most about its answer."""
    if len(text) <= width:
        return text
    if width < 3:
        return text[:width]
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
