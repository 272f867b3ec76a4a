"""The variant `strings-paper`: the generator of arXiv 2509.25123 with all its quirks, for comparisons with that paper.

A level is the depth of an expression tree, not its number of calls; many trees ignore `x`; train and held-out functions
share behaviours. De-duplication by text makes a file sequential: it comes from one private `random.Random(seed)`, and
item i needs the items before it, which are kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_lowercase
from threading import Lock

from covey.tasks.compose.functions import call
from covey.tasks.compose.strings import Item, mark

TRAIN_SIDE = (1, 3, 4, 5, 9, 11, 13, 15, 17, 19, 20, 22, 23)
HELD_SIDE = (0, 2, 6, 7, 8, 10, 12, 14, 16, 18, 21, 24)
SIDES = {"train": TRAIN_SIDE, "held_out": HELD_SIDE, "all": tuple(range(25))}
PLAIN = (0, 2, 3, 4, 9, 10, 12, 14, 15, 16, 17, 21, 22)
WITH_PARAMETER = (1, 5, 6, 8, 11, 13, 19, 18, 23, 24)  # the order decides what a draw means
RANGES = {1: (2, 4), 8: (1, 3), 11: (1, 5), 18: (2, 4), 19: (1, 3), 23: (1, 3), 24: (1, 3)}
TRAIN_SIZE, TEST_SIZE, TEST_LEVELS = 50_000, 256, tuple(range(1, 9))


@dataclass(frozen=True, slots=True)
class Tree:
    """An expression: its text, how to evaluate it and its sub-expressions, and the functions it names in pre-order."""

    text: str
    run: Callable[[str], str]
    functions: tuple[int, ...] = ()
    parts: tuple[Tree, ...] = ()
    uses_x: bool = False


def leaf(text: str) -> Tree:
    """`x`, or a literal."""
    if text == "x":
        return Tree("x", lambda x: x, uses_x=True)
    return Tree(f"'{text}'", lambda x: text)


def node(text: str, run: Callable[[str], str], parts: tuple[Tree, ...], number: int | None = None) -> Tree:
    """An operation on sub-expressions; `number` is its function, None for `+` and methods of strings."""
    own = () if number is None else (number,)
    functions = own + sum((part.functions for part in parts), ())
    return Tree(text, run, functions, parts, any(part.uses_x for part in parts))


class File:
    """The items of one file of the paper: `per_level` items of each level in turn, made as far as asked for."""

    def __init__(self, seed: int, side: str, levels: tuple[int, ...], per_level: int) -> None:
        self._draws, self._active = random.Random(seed), SIDES[side]
        self._levels, self._per_level = levels, per_level
        self._items: list[Item] = []
        self._seen: set[str] = set()
        self._lock = Lock()

    def item(self, index: int) -> Item:
        """Item `index` of the file, 0 to len(levels) * per_level - 1."""
        with self._lock:
            while len(self._items) <= index:
                self._items.append(self._draw_item(self._levels[len(self._items) // self._per_level]))
        return self._items[index]

    def _draw_item(self, level: int) -> Item:
        while True:
            tree = self._draw_tree(level)
            # an input is drawn for a repeated expression too: it moves the generator on
            value = "".join(self._draws.choices(ascii_lowercase, k=self._draws.randint(3, 10)))
            if tree.text not in self._seen:
                self._seen.add(tree.text)
                return _item(tree, value)

    def _draw_literal(self, low: int, high: int) -> str:
        return "".join(self._draws.choices(ascii_lowercase, k=self._draws.randint(low, high)))

    def _draw_tree(self, depth: int) -> Tree:
        draws = self._draws
        if depth == 0:
            return leaf("x") if draws.random() < 0.5 else leaf(self._draw_literal(3, 6))
        if draws.random() < 0.2:
            return self._draw_binary(depth)
        if draws.random() < 0.02:
            name, part = draws.choice(["upper", "lower", "capitalize", "swapcase"]), self._draw_tree(depth - 1)
            return node(f"({part.text}).{name}()", lambda x: str(getattr(part.run(x), name)()), (part,))
        return self._draw_call(depth)

    def _draw_binary(self, depth: int) -> Tree:
        left, right = self._draw_tree(depth - 1), self._draw_tree(depth - 1)
        if self._draws.random() < 0.5:
            return node(f"({left.text} + {right.text})", lambda x: left.run(x) + right.run(x), (left, right))
        number = 7 if 7 in self._active else 20
        text = f"func_{number}({left.text}, {right.text})"
        return node(text, lambda x: call(number, left.run(x), right.run(x)), (left, right), number)

    def _draw_call(self, depth: int) -> Tree:
        draws = self._draws
        pool = PLAIN if draws.random() < 0.5 else WITH_PARAMETER
        number = draws.choice([known for known in pool if known in self._active])
        part = self._draw_tree(depth - 1)
        if pool is PLAIN:
            return node(f"func_{number}({part.text})", lambda x: call(number, part.run(x)), (part,), number)
        parameter = self._draw_parameter(number)
        text = f"func_{number}({part.text}, {parameter!r})"
        return node(text, lambda x: call(number, part.run(x), parameter), (part,), number)

    def _draw_parameter(self, number: int) -> str | int:
        if number in (5, 6):
            return self._draw_literal(2, 4)
        if number == 13:
            return self._draws.choice(["-", "_", "|"])
        return self._draws.randint(*RANGES[number])


def _item(tree: Tree, value: str) -> Item:
    shortcuts = sorted({mark(value), *(mark(part) for part in _values(tree.parts, value))})
    return Item(tree.text, value, tree.run(value), tree.functions, tree.uses_x, tuple(shortcuts))


def _values(parts: tuple[Tree, ...], value: str) -> set[str]:
    found = {part.run(value) for part in parts}
    return found.union(*(_values(part.parts, value) for part in parts))


@lru_cache(maxsize=8)
def open_file(seed: int, side: str, levels: tuple[int, ...], per_level: int) -> File:
    """The file of a seed, side and levels; it is made once per process."""
    return File(seed, side, levels, per_level)
