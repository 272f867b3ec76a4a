"""The twenty-five string functions of arXiv 2509.25123, written anew.

Their text is part of the task: prompts of the first stage show these definitions, so each stands on its own. Strings
are ASCII, « and ». Ids 18, 19, 20 and 24 behave like 1, 8, 7 and (palindromes apart) 9.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any


def func_0(s: str) -> str:
    """Read every m-th character, wrapping around; m is the smallest odd number from 3 on without a factor of len(s)."""
    m = 3
    while s and any(m % d == 0 and len(s) % d == 0 for d in range(2, m + 1)):
        m += 2
    return "".join(s[i * m % len(s)] for i in range(len(s)))


def func_1(s: str, n: int) -> str:
    """Repeat the string n times."""
    return s * n


def func_2(s: str) -> str:
    """Drop all vowels."""
    return "".join(c for c in s if c not in "aeiouAEIOU")


def func_3(s: str) -> str:
    """Sort the characters by code point."""
    return "".join(sorted(s))


def func_4(s: str) -> str:
    """Reverse the order of the words and join them with single blanks."""
    return " ".join(s.split()[::-1])


def func_5(s: str, prefix: str) -> str:
    """Put a prefix in front."""
    return prefix + s


def func_6(s: str, suffix: str) -> str:
    """Put a suffix behind."""
    return s + suffix


def func_7(s: str, t: str) -> str:
    """Take characters of s and t in turn; the rest of the longer one follows."""
    out = ""
    for i in range(max(len(s), len(t))):
        out += s[i : i + 1] + t[i : i + 1]
    return out


def func_8(s: str, n: int) -> str:
    """Move the first n characters to the end, n taken modulo the length."""
    n = n % len(s) if s else 0
    return s[n:] + s[:n]


def func_9(s: str) -> str:
    """Append the reversal of the string."""
    return s + s[::-1]


def func_10(s: str) -> str:
    """Lower case at even places, upper case at odd ones, counted from 0."""
    return "".join(c.upper() if i % 2 else c.lower() for i, c in enumerate(s))


def func_11(s: str, k: int) -> str:
    """Move each letter k places on in the alphabet, from z to a again; keep the case and all other characters."""
    out = ""
    for c in s:
        for alphabet in ("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
            if c in alphabet:
                c = alphabet[(alphabet.index(c) + k) % 26]
                break
        out += c
    return out


def func_12(s: str) -> str:
    """Write 1, 2, 3, 4, 5 for the vowels a, e, i, o, u of either case."""
    return "".join(str("aeiou".index(c.lower()) + 1) if c in "aeiouAEIOU" else c for c in s)


def func_13(s: str, separator: str) -> str:
    """Put a separator between neighbours."""
    return separator.join(s)


def func_14(s: str) -> str:
    """Write every character twice."""
    return "".join(c + c for c in s)


def func_15(s: str) -> str:
    """Put every character into « and »."""
    return "".join("«" + c + "»" for c in s)


def func_16(s: str) -> str:
    """Keep one character of each run of equal ones."""
    return "".join(c for i, c in enumerate(s) if i == 0 or c != s[i - 1])


def func_17(s: str) -> str:
    """Reverse the string: first its right half reversed, then its left half."""
    half = len(s) // 2
    return s if len(s) < 2 else func_17(s[half:]) + func_17(s[:half])


def func_18(s: str, n: int) -> str:
    """Append the string n times to nothing."""
    out = ""
    for _ in range(n):
        out += s
    return out


def func_19(s: str, n: int) -> str:
    """Move the first character to the end, n times."""
    while n > 0:
        s, n = s[1:] + s[:1], n - 1
    return s


def func_20(s: str, t: str) -> str:
    """Take characters of s and t in turn; the rest of the longer one follows."""
    half = max(len(s), len(t)) // 2
    return s + t if half == 0 else func_20(s[:half], t[:half]) + func_20(s[half:], t[half:])


def func_21(s: str) -> str:
    """Keep the letters only."""
    out = ""
    for c in s:
        if c.isalpha():
            out += c
    return out


def func_22(s: str) -> str:
    """Drop the last character if the length is odd."""
    return s[:-1] if len(s) % 2 else s


def func_23(s: str, depth: int = 1) -> str:
    """Append 1 if there is no digit."""
    return s if any(c.isdigit() for c in s) or depth == 0 else s + "1"


def func_24(s: str, depth: int = 1) -> str:
    """Append the reversal of the string if it is no palindrome."""
    return s if s == s[::-1] or depth == 0 else s + s[::-1]


FUNCTIONS: tuple[Callable[..., str], ...] = (
    *(func_0, func_1, func_2, func_3, func_4, func_5, func_6, func_7, func_8, func_9, func_10, func_11, func_12),
    *(func_13, func_14, func_15, func_16, func_17, func_18, func_19, func_20, func_21, func_22, func_23, func_24),
)
"""The functions by id."""


@cache
def read_definition(number: int) -> str:
    """The source text of a function, as a prompt shows it."""
    return inspect.getsource(FUNCTIONS[number]).strip()


def call(number: int, value: str, parameter: Any = None) -> str:
    """The value of `func_<number>(value, parameter)`, without the parameter if it is None."""
    function = FUNCTIONS[number]
    return function(value) if parameter is None else function(value, parameter)
