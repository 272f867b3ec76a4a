"""Text of a model cannot act on a terminal."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.observe.plain import clean, shorten

ATTACKS = [
    "\x1b[31mred\x1b[0m",
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;aGVsbG8=\x07",
    "\x1bP+q544e\x1b\\",
    "\x1b_Gf=100;AAAA\x1b\\",
    "\x9b31mred",
    "\x9d0;title\x9c",
    "\x1b(0lqqk",
    "\x1b[",
    "\x1b",
    "\x1b]0;never ends",
    "a\rb",
    "a\x08\x08b",
    "\x07\x00\x7f",
    "safe\u202etxt.exe",
    "\u2066\u2069\u200b\u200f\u061c\ufeff",
    "\x1b\x1b[31m[31m",
    "\x1b[38;2;\x1b[31m1;2;3m",
]


@pytest.mark.parametrize("text", ATTACKS)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_nothing_that_acts_is_left(text, ascii_only):
    assert not acting(clean(text, ascii_only=ascii_only))


def acting(text):
    return re.findall(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\u061c\ud800-\udfff]", text)


@given(st.text(alphabet=st.characters(codec=None)))
def test_no_text_leaves_a_control_character(text):
    shown = clean(text)
    assert not acting(shown)
    assert all(unicodedata.category(letter) not in ("Cc", "Cf", "Cs") for letter in shown)
    shown.encode()
    assert clean(text, ascii_only=True).isascii()


def test_what_an_escape_sequence_showed_is_gone_and_the_rest_stays():
    assert clean("\x1b[1;31mB(abdc)\x1b[0m=fecd.\x1b]0;owned\x07 ok") == "B(abdc)=fecd. ok"
    assert clean("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\") == "link"


def test_ordinary_text_stays_as_it_is():
    assert clean("« naïve » 漢字 🙂 [bold]x[/bold]") == "« naïve » 漢字 🙂 [bold]x[/bold]"
    assert clean("one\ntwo\tthree") == "one⏎two three"
    assert clean("one\né", ascii_only=True) == r"one\n\xe9"


@given(st.text(max_size=30), st.integers(0, 20))
def test_shortened_text_fits_and_keeps_both_ends(text, width):
    short = shorten(text, width)
    assert len(short) <= width
    if len(text) <= width:
        assert short == text
    elif width >= 3:
        assert short[-1] == text[-1]
        assert short[0] == text[0]
