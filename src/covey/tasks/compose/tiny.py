"""The string language of a model with a few hundred thousand parameters: twelve functions on strings of 3 or 4 letters.

A program is a chain of one-letter calls, `B(E(abcd))=`, answered by rewriting the innermost call step by step,
`B(abdc)=fecd.` Everything here is a pure function of its arguments; random items are keyed by (seed, split, level,
index, attempt), so any item is reached without the ones before it. After the string task of arXiv 2509.25123.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from covey.errors import ConfigError
from covey.random import Draws, key, splitmix
from covey.tasks.compose.chains import list_shortcuts

LETTERS = "abcdef"
TRAIN_SIDE = "ABCDEGHK"
HELD_SIDE = "LMNO"
IDENTITY = "I"
ATTEMPTS = 1000


def shift(letter: str, by: int) -> str:
    """The letter `by` places further in the cyclic alphabet."""
    return LETTERS[(LETTERS.index(letter) + by) % len(LETTERS)]


FUNCTIONS: dict[str, Callable[[str], str]] = {
    "A": lambda s: s[::-1],
    "B": lambda s: "".join(LETTERS[5 - LETTERS.index(c)] for c in s),
    "C": lambda s: s[1:] + s[:1],
    "D": lambda s: "".join(shift(c, 1) for c in s),
    "E": lambda s: s[:-2] + s[-1] + s[-2],
    "G": lambda s: shift(s[0], 1) + s[1:],
    "H": lambda s: "".join(shift(c, 3) for c in s),
    "K": lambda s: s[1] + s[0] + s[2:],
    "L": lambda s: s[-1:] + s[:-1],
    "M": lambda s: "".join(shift(c, -1) for c in s),
    "N": lambda s: s[:-1] + shift(s[-1], 1),
    "O": lambda s: "".join(shift(c, 2) for c in s),
    IDENTITY: lambda s: s,
}


@dataclass(frozen=True, slots=True)
class Program:
    """Calls on an input: `functions` outermost first, so `Program("BE", "abcd")` is B(E(abcd))."""

    functions: str
    input: str

    @property
    def text(self) -> str:
        """The program as it is written: `B(E(abcd))`."""
        return write(self.functions, self.input)

    @property
    def values(self) -> tuple[str, ...]:
        """The value after 0, 1, ... n calls, the input first and the answer last."""
        values = [self.input]
        for name in reversed(self.functions):
            values.append(FUNCTIONS[name](values[-1]))
        return tuple(values)

    @property
    def answer(self) -> str:
        """What the whole program gives."""
        return self.values[-1]

    @property
    def trace(self) -> str:
        """The full response: one rewrite of the innermost call per step, joined by `=`, closed by `.`"""
        return join_trace(self.functions, self.values)


def write(functions: str, value: str) -> str:
    """Calls around a string: `write("BE", "abcd")` is `B(E(abcd))`."""
    return "".join(f"{name}(" for name in functions) + value + ")" * len(functions)


def join_trace(functions: str, values: Sequence[str]) -> str:
    """The response that names `values[1:]` as the strings after 1, 2, ... calls, right or not."""
    n = len(functions)
    return "=".join(write(functions[: n - k], values[k]) for k in range(1, n + 1)) + "."


def list_sub_values(program: Program) -> set[str]:
    """The values of all proper sub-chains: any non-empty set of calls removed, all of them included."""
    return list_shortcuts([FUNCTIONS[name] for name in reversed(program.functions)], program.input)


def needs_every_call(program: Program) -> bool:
    """Whether no proper sub-chain gives the program's value, so that no shortcut can be right by luck."""
    return program.answer not in list_sub_values(program)


def is_test_string(string: str) -> bool:
    """Whether an input belongs to evaluation (one in eight, by the CRC of its bytes); the others are for training."""
    return zlib.crc32(string.encode("ascii")) % 8 == 0


@cache
def strings(test: bool) -> tuple[str, ...]:
    """The inputs of one side of the split, shorter first, then by alphabet: 189 test strings, 1 323 train strings."""
    every = ("".join(letters) for length in (3, 4) for letters in product(LETTERS, repeat=length))
    return tuple(string for string in every if is_test_string(string) == test)


def _place(pair: str) -> tuple[int, int]:
    return TRAIN_SIDE.index(pair[0]), TRAIN_SIDE.index(pair[1])


def is_bridge(pair: str) -> bool:
    """Whether a pair (outer, inner) of the train side is one of the eight that stage 1 shows composed."""
    outer, inner = _place(pair)
    return inner == (outer + 1) % 8


def is_held_pair(pair: str) -> bool:
    """Whether a pair (outer, inner) of the train side is one of the sixteen that training never shows composed."""
    outer, inner = _place(pair)
    return (outer + 3 * inner) % 4 == 1


@cache
def pairs(sort: str) -> tuple[str, ...]:
    """Ordered pairs of the train side by sort: `bridge` (8), `held` (16), `rl` (35: living, neither of these)."""
    every = ["".join(pair) for pair in product(TRAIN_SIDE, repeat=2)]
    if sort == "bridge":
        return tuple(filter(is_bridge, every))
    if sort == "held":
        return tuple(filter(is_held_pair, every))
    probes = strings(test=False)[:400:13]
    living = (pair for pair in every if any(needs_every_call(Program(pair, probe)) for probe in probes))
    return tuple(pair for pair in living if not is_bridge(pair) and not is_held_pair(pair))


def is_trainable(functions: str) -> bool:
    """Whether training may show this chain: an RL pair at level 2; above, no held-out pair among neighbours."""
    neighbours = {outer + inner for outer, inner in pairwise(functions)}
    if len(functions) == 2 and set(functions) <= set(TRAIN_SIDE):
        return functions in pairs("rl")
    return neighbours.isdisjoint(pairs("held"))


def draw_item(seed: int, split: str, level: int, index: int, *, side: str = TRAIN_SIDE) -> Program:
    """A training item: function letters, then string, uniform, drawn again until every rule holds.

    Raises ConfigError after 1 000 attempts.
    """
    for attempt in range(ATTEMPTS):
        draws = Draws(seed, "compose-tiny", split, level, index, attempt)
        functions = "".join(draws.choice(side) for _ in range(level))
        program = Program(functions, draws.choice(strings(test=False)))
        if is_trainable(functions) and needs_every_call(program):
            return program
    raise ConfigError("task.levels", f"no item of level {level} found in {ATTEMPTS} attempts", "Choose lower levels.")


EVALUATIONS: dict[str, tuple[str, int, int]] = {
    "L1": ("train", 1, 100),
    "L2": ("train", 2, 200),
    "L2_newpairs": ("new", 2, 200),
    "L3": ("train", 3, 200),
    "L4": ("train", 4, 200),
    "held_L1": ("held_out", 1, 100),
    "held_L2": ("held_out", 2, 200),
    "held_L3": ("held_out", 3, 200),
}
"""Evaluation sets: (which programs, level, number of items)."""


def accepts(programs: str, program: Program) -> bool:
    """Whether a program is of the pool `train` (RL items), `new` (held-out pairs) or `held_out` (functions LMNO)."""
    if programs == "new":
        return is_held_pair(program.functions) and needs_every_call(program)
    return is_trainable(program.functions) and needs_every_call(program)


def list_pool(name: str) -> list[Program]:
    """Every item that the evaluation set `name` may hold, in the order of enumeration. Slow above level 2."""
    programs, level, _ = EVALUATIONS[name]
    side = HELD_SIDE if programs == "held_out" else TRAIN_SIDE
    chains = ("".join(chain) for chain in product(side, repeat=level))
    every = (Program(chain, string) for chain in chains for string in strings(test=True))
    return [program for program in every if accepts(programs, program)]


def draw_evaluation(seed: int, name: str) -> tuple[Program, ...]:
    """An evaluation set: all programs on test strings ordered by a hash of (seed, set, place), the first that belong.

    The place of a program counts chains (outermost letter most significant), then test strings. The same set is reached
    by sorting `list_pool`; testing the rules in hash order only saves time.
    """
    programs, level, size = EVALUATIONS[name]
    side, inputs = HELD_SIDE if programs == "held_out" else TRAIN_SIDE, strings(test=True)
    salt = key(seed, "compose-tiny", name)
    places = np.arange(len(side) ** level * len(inputs), dtype=np.uint64)
    chosen: list[Program] = []
    for place in np.argsort(_mix(places ^ np.uint64(salt)), kind="stable").tolist():
        program = _program_at(place, side, level, inputs)
        if accepts(programs, program):
            chosen.append(program)
        if len(chosen) == size:
            break
    return tuple(chosen)


def _program_at(place: int, side: str, level: int, inputs: Sequence[str]) -> Program:
    chain, string = divmod(place, len(inputs))
    digits = [chain // len(side) ** (level - 1 - k) % len(side) for k in range(level)]
    return Program("".join(side[digit] for digit in digits), inputs[string])


def _mix(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`covey.random.splitmix` over a numpy array of unsigned 64-bit states."""

    with np.errstate(over="ignore"):
        z = states + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def rank(seed: int, name: str, place: int) -> int:
    """The hash by which an evaluation set orders its candidates (one place at a time)."""
    return splitmix(place ^ key(seed, "compose-tiny", name))


@dataclass(frozen=True, slots=True)
class Lesson:
    """One example of stage 1: a program, the response to imitate and the sort of lesson."""

    program: Program
    response: str
    sort: str


def draw_lesson(seed: int, index: int, *, priming: float, bridge: float, planted: float) -> Lesson:
    """A stage-1 example, drawn by its own counter key.

    With probability `bridge` a bridge pair, whose trace fails on purpose with probability `planted` (one of the two
    calls treated as the identity); with probability `priming` one function among identities at depth 2-4; else one call
    alone. The rules hold for the functions other than the identity.
    """
    draws = Draws(seed, "compose-tiny", "stage1", index)
    u = draws.uniform()
    if u < bridge:
        program = _draw_stage1(seed, 2, index, pairs("bridge"))
        if draws.uniform() >= planted:
            return Lesson(program, program.trace, "bridge")
        return Lesson(program, _fail(program, outer=draws.below(2) == 0), "planted")
    if u < bridge + priming:
        depth = draws.between(2, 4)
        place = draws.below(depth)
        atom = _draw_stage1(seed, depth, index, TRAIN_SIDE + HELD_SIDE)
        functions = IDENTITY * place + atom.functions + IDENTITY * (depth - 1 - place)
        program = Program(functions, atom.input)
        return Lesson(program, program.trace, "priming")
    program = _draw_stage1(seed, 1, index, TRAIN_SIDE + HELD_SIDE)
    return Lesson(program, program.trace, "atom")


def _draw_stage1(seed: int, level: int, index: int, chains: Sequence[str]) -> Program:
    for attempt in range(ATTEMPTS):
        draws = Draws(seed, "compose-tiny", "stage1", level, index, attempt)
        program = Program(draws.choice(chains), draws.choice(strings(test=False)))
        if needs_every_call(program):
            return program
    raise ConfigError("task", f"no stage-1 item found in {ATTEMPTS} attempts")


def _fail(program: Program, *, outer: bool) -> str:
    """A trace of two calls of which the outer or the inner one changes nothing."""
    start, first, _ = program.values
    values = (start, first, first) if outer else (start, start, FUNCTIONS[program.functions[0]](start))
    return join_trace(program.functions, values)
