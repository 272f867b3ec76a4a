"""The variant `strings`: chains of calls on one input, every call of which matters.

Twenty-one behaviours of the twenty-five functions, without the synonyms. A level is exactly the number of nested calls.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from string import ascii_lowercase
from typing import Any

from covey.errors import ConfigError
from covey.random import Draws
from covey.tasks.compose.chains import list_shortcuts, spares_one
from covey.tasks.compose.functions import call

TRAIN_SIDE = (1, 3, 4, 5, 7, 8, 9, 11, 13, 15, 17, 22, 23)
HELD_SIDE = (0, 2, 6, 10, 12, 14, 16, 21)
SIDES = {"train": TRAIN_SIDE, "held_out": HELD_SIDE, "all": tuple(sorted(TRAIN_SIDE + HELD_SIDE))}
LONGEST = 64
ATTEMPTS = 1000


@dataclass(frozen=True, slots=True)
class Item:
    """A program on an input, with everything that a prompt and its score need."""

    code: str
    input: str
    answer: str
    functions: tuple[int, ...]
    depends_on_x: bool
    shortcuts: tuple[int, ...]
    """CRCs of the values that come out when calls are left out"""


def mark(value: str) -> int:
    """A short stand-in for a value: its CRC."""
    return zlib.crc32(value.encode())


def is_test_input(value: str) -> bool:
    """Whether an input belongs to evaluation: one in eight, by its CRC."""
    return mark(value) % 8 == 0


def draw_parameter(number: int, draws: Draws) -> Any:
    """The second argument of a function, or None if it has none."""
    if number in (5, 6):
        return "".join(draws.choice(ascii_lowercase) for _ in range(draws.between(2, 4)))
    if number == 7:
        return "".join(draws.choice(ascii_lowercase) for _ in range(draws.between(3, 6)))
    if number == 13:
        return draws.choice("-_|")
    ranges = {1: (2, 4), 8: (1, 3), 11: (1, 5)}
    return draws.between(*ranges[number]) if number in ranges else None


def draw_input(draws: Draws, *, test: bool) -> str:
    """An input of 5-10 letters (0.8), digits (0.1) and blanks (0.1), no blank at an end or doubled."""
    while True:
        text = "".join(_draw_character(draws) for _ in range(draws.between(5, 10)))
        if text == " ".join(text.split()) and is_test_input(text) == test:
            return text


def _draw_character(draws: Draws) -> str:
    u = draws.uniform()
    return draws.choice(ascii_lowercase) if u < 0.8 else draws.choice("0123456789") if u < 0.9 else " "


def draw_item(seed: int, split: str, level: int, index: int, *, side: str, test: bool) -> Item:
    """An item of `level` calls: functions outermost first, parameters, input; drawn again until every rule holds.

    No value on the way is longer than 64 characters, and no proper sub-chain gives the answer. Raises ConfigError after
    1 000 attempts.
    """
    for attempt in range(ATTEMPTS):
        draws = Draws(seed, "compose-strings", split, level, index, attempt)
        functions = tuple(draws.choice(SIDES[side]) for _ in range(level))
        parameters = [draw_parameter(number, draws) for number in functions]
        item = make_item(functions, parameters, draw_input(draws, test=test))
        if item is not None:
            return item
    raise ConfigError("task.levels", f"no item of level {level} found in {ATTEMPTS} attempts", "Choose lower levels.")


def make_item(functions: Sequence[int], parameters: Sequence[Any], value: str) -> Item | None:
    """The item of a chain (outermost first) on an input; None if it breaks a rule."""
    chain = list(zip(functions, parameters, strict=True))[::-1]
    code, answer = "x", value
    for number, parameter in chain:
        code = f"func_{number}({code})" if parameter is None else f"func_{number}({code}, {parameter!r})"
        answer = call(number, answer, parameter)
        if len(answer) > LONGEST:
            return None
    calls = [partial(call, number, parameter=parameter) for number, parameter in chain]
    if spares_one(calls, value, answer):
        return None
    shortcuts = list_shortcuts(calls, value)
    if answer in shortcuts:
        return None
    return Item(code, value, answer, tuple(functions), True, tuple(sorted(map(mark, shortcuts))))
