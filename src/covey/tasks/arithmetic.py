"""The task `arithmetic`: sums, differences and products of two whole numbers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from covey.errors import ConfigError
from covey.random import Draws
from covey.registry import Component, component
from covey.rewards.match import NumberMatch
from covey.tasks.scoring import ClosedAnswer, collect_distinct
from covey.types import Message, Prompt

if TYPE_CHECKING:
    from covey.protocols import Reward

Operation = Literal["+", "-", "*"]
NAMES = {"+": "sum", "-": "difference", "*": "product"}
APPLY: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}
SET_SIZE = 100
ATTEMPTS = 1000


def is_held_pair(a: int, b: int) -> bool:
    """Whether two operands, in either order and for every operation, belong to evaluation: one pair in eight."""
    return zlib.crc32(f"{min(a, b)},{max(a, b)}".encode("ascii")) % 8 == 0


@component("task", "arithmetic")
class Arithmetic(Component):
    """Two numbers of up to `digits` digits and one operation: `12+7=` answered by `19.`

    Operands are uniform in 0 .. 10^digits - 1; a difference takes the larger first, so answers are never negative. No
    pair of operands of an evaluation set occurs in training, in any order or operation.
    """

    variant: Literal["tiny", "chat"] = Field(
        "tiny", description="`tiny`: `12+7=` answered by `19.`; `chat`: a question whose last number is the answer"
    )
    operations: tuple[Operation, ...] = Field(("+", "-"), min_length=1, description="operations, in turn")
    digits: int = Field(2, ge=1, le=9, description="largest number of decimal digits of an operand; 1 to 9")

    @property
    def size(self) -> int | None:
        """A new item for every index."""
        return None

    @property
    def reward(self) -> Reward:
        """`correct` in {0, 1}; for `tiny` also `format` in {-1, 0}."""
        return ClosedAnswer() if self.variant == "tiny" else NumberMatch()

    @property
    def main_set(self) -> str:
        """Accuracy over all operations is `eval/accuracy`."""
        return "all"

    def train(self, seed: int, index: int) -> Prompt:
        """Training item `index`; its operation is `operations[index % len(operations)]`."""
        return self._draw(seed, "train", self.operations[index % len(self.operations)], index)

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        """`all`, and one set per operation (`sum`, `difference`, `product`), each of up to 100 distinct items."""
        return evaluation_sets(self, seed)

    def stage1(self, seed: int, index: int) -> tuple[Prompt, str]:
        """Example `index` of the supervised stage: a prompt on training operands and the response to imitate."""
        prompt = self._draw(seed, "stage1", self.operations[index % len(self.operations)], index)
        return prompt, f"{prompt.answer}." if self.variant == "tiny" else str(prompt.answer)

    def _draw(self, seed: int, split: str, operation: Operation, index: int) -> Prompt:
        held = split not in ("train", "stage1")
        for attempt in range(ATTEMPTS):
            draws = Draws(seed, "arithmetic", split, operation, self.digits, index, attempt)
            a, b = draws.below(10**self.digits), draws.below(10**self.digits)
            if is_held_pair(a, b) == held:
                return self._prompt(split, operation, index, (a, b))
        raise ConfigError("task.digits", f"no item found in {ATTEMPTS} attempts", "Allow more digits.")

    def _prompt(self, split: str, operation: Operation, index: int, pair: tuple[int, int]) -> Prompt:
        a, b = (max(pair), min(pair)) if operation == "-" else pair
        question = f"{a}{operation}{b}="
        if self.variant == "chat":
            question = f"What is {a} {operation} {b}? End your reply with the result as a number."
        meta = {"level": self.digits, "operation": NAMES[operation], "operands": [a, b]}
        name = f"arithmetic/{self.variant}/{split}/{self.digits}/{index}"
        return Prompt(name, (Message("user", question),), str(APPLY[operation](a, b)), "arithmetic", meta)


@lru_cache(maxsize=8)
def evaluation_sets(task: Arithmetic, seed: int) -> Mapping[str, tuple[Prompt, ...]]:
    """The evaluation sets of a task and seed. `all` takes the operations in turn."""
    operations = tuple(dict.fromkeys(task.operations))

    def draw(name: str, index: int, among: Sequence[Operation]) -> Prompt:
        return task._draw(seed, name, among[index % len(among)], index)

    sets = {"all": collect_distinct(lambda index: draw("all", index, operations), SET_SIZE, 10 * SET_SIZE)}
    for operation in operations:
        name, among = NAMES[operation], (operation,)
        sets[name] = collect_distinct(lambda i, n=name, o=among: draw(n, i, o), SET_SIZE, 10 * SET_SIZE)  # type: ignore[misc]
    return sets
