"""The task `countdown`: reach a target from given numbers with + - * /, scored exactly and without running anything.

After the transfer task of arXiv 2509.25123; a level is the count of numbers.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from covey.errors import ConfigError
from covey.random import Draws
from covey.registry import Component, component
from covey.tasks.expressions import MalformedError, combine, evaluate_expression
from covey.tasks.scoring import CORRECT_AND_FORMAT, collect_distinct, grade, grade_truncated, read_closed
from covey.types import Message, Prompt, Rollout, Score

if TYPE_CHECKING:
    from covey.protocols import Reward

Use = Literal["subset", "exact"]
Scale = Literal["binary", "ternary", "reasoning-gym"]
LARGEST = {"tiny": (20, 99), "chat": (100, 999)}
"""Largest number and largest target by variant."""
EVALUATED = {"tiny": (2, 3), "chat": (2, 3, 4, 5)}
"""Levels that are always evaluated, by variant."""
SET_SIZE = 100
ATTEMPTS = 1000
_OPEN, _CLOSE = "<answer>", "</answer>"
_QUESTION = (
    "Combine the numbers {numbers} with +, -, * and / so that the result is {target}. {rule} "
    "Think inside <think> </think>, then write the expression alone inside <answer> </answer>, "
    "for example <answer>(1 + 2) * 3</answer>."
)
_RULES = {"subset": "Use each number at most once.", "exact": "Use every number exactly once."}


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Numbers in the order shown, the target, and one expression that solves it with all numbers."""

    numbers: tuple[int, ...]
    target: int
    solution: str


def is_held_puzzle(numbers: Sequence[int]) -> bool:
    """Whether numbers, in any order, belong to evaluation: one in eight multisets, by a CRC, whatever the target."""
    return zlib.crc32(",".join(map(str, sorted(numbers))).encode("ascii")) % 8 == 0


def draw_puzzle(seed: int, split: str, level: int, index: int, *, variant: str = "chat") -> Puzzle:
    """A solvable puzzle of `level` numbers: a random tree over them, drawn again until it is one.

    Every partial value is a positive integer and the target is within range. `train` and `stage1` draw from numbers
    that evaluation never uses. Raises ConfigError after 1 000 attempts.
    """
    top, top_target = LARGEST[variant]
    held = split not in ("train", "stage1")
    for attempt in range(ATTEMPTS):
        draws = Draws(seed, "countdown", variant, split, level, index, attempt)
        while is_held_puzzle(numbers := tuple(draws.between(1, top) for _ in range(level))) != held:
            pass
        tree = _draw_tree(draws, _shuffle(draws, numbers))
        if tree is not None and tree.value <= top_target:
            return Puzzle(numbers, int(tree.value), tree.text)
    raise ConfigError("task.levels", f"no puzzle of {level} numbers found in {ATTEMPTS} attempts", "Use fewer numbers.")


def _shuffle(draws: Draws, numbers: Sequence[int]) -> list[int]:
    left, order = list(numbers), []
    while left:
        order.append(left.pop(draws.below(len(left))))
    return order


@dataclass(frozen=True, slots=True)
class _Tree:
    value: Fraction
    text: str
    top: str  # the operator at the root, "" for a number


def _draw_tree(draws: Draws, leaves: Sequence[int]) -> _Tree | None:
    """A random binary tree over the leaves; None if some partial value is no positive integer."""
    if len(leaves) == 1:
        return _Tree(Fraction(leaves[0]), str(leaves[0]), "")
    cut, operator = draws.between(1, len(leaves) - 1), draws.choice("+-*/")
    left, right = _draw_tree(draws, leaves[:cut]), _draw_tree(draws, leaves[cut:])
    if left is None or right is None:
        return None
    value = combine(operator, left.value, right.value)
    if value is None or value <= 0 or value.denominator != 1:
        return None
    return _Tree(
        value, _bracket(left, operator, is_right=False) + operator + _bracket(right, operator, is_right=True), operator
    )


def _bracket(tree: _Tree, parent: str, *, is_right: bool) -> str:
    """A sub-expression in brackets only where the reading without them would give another value."""
    strong = parent in "*/"
    needed = (strong and tree.top in ("+", "-")) or (is_right and parent in "-/" and (tree.top in ("*", "/")) == strong)
    return f"({tree.text})" if needed and tree.top else tree.text


@component("reward", "countdown")
class CountdownScorer(Component):
    """1 iff the expression is well-formed, uses the given numbers and equals the target exactly.

    `tags`: the last `<answer>...</answer>` counts; otherwise the whole text, closed by `.` One `= target` may follow.
    Classes, first that fits: truncated, malformed, division, numbers, value, correct.
    """

    form: Literal["bare", "tags"] = Field(
        "tags", description="`tags`: the last <answer>...</answer>; `bare`: text closed by `.`"
    )
    numbers: Use = Field("subset", description="each number at most once (`subset`) or exactly once (`exact`)")
    scale: Scale = Field(
        "binary",
        description="`binary`: correct 0 or 1 beside format -1 or 0; `ternary`: one score in -1, 0, 1; "
        "`reasoning-gym`: one score in 0.01 (no expression), 0.05 (wrong), 1",
    )
    isolated: ClassVar[bool] = False

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights in the mixed reward."""
        return CORRECT_AND_FORMAT if self.scale == "binary" else {"score": 1.0, "correct": 0.0}

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout; numbers and target come from the prompt's meta."""
        return [self._score_one(prompt, rollout) for rollout in rollouts]

    def _score_one(self, prompt: Prompt, rollout: Rollout) -> Score:
        score = grade_truncated(rollout)
        if score is None:
            numbers, target = prompt.meta["numbers"], prompt.meta["target"]
            name, detail = judge(self._read(rollout.text), numbers, target, use=self.numbers)
            score = grade(name, detail)
        if self.scale == "binary":
            return score
        right, badly_formed = score.values["correct"], score.values["format"] < 0
        ternary = -1.0 if badly_formed else right
        gym = 1.0 if right else (0.01 if badly_formed else 0.05)
        values = {"score": ternary if self.scale == "ternary" else gym, "correct": right}
        return Score(values, facts=score.facts, detail=score.detail)

    def _read(self, text: str) -> str | None:
        return read_closed(text) if self.form == "bare" else read_tagged(text)


def read_tagged(text: str) -> str | None:
    """What stands in the last complete `<answer>...</answer>`; None without one."""
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, end) if end >= 0 else -1
    return text[start + len(_OPEN) : end].partition(_CLOSE)[0] if start >= 0 else None


def judge(text: str | None, numbers: Sequence[int], target: int, *, use: Use) -> tuple[str, str]:
    """The class of an answer and a sentence on it: form, division by zero, numbers and value, tested in this order."""
    text = (text or "").strip()
    try:
        found = evaluate_expression(_drop_target(text, target))
    except MalformedError as error:
        return "malformed", f"No expression: {error}."
    except ZeroDivisionError:
        return "division", f"{text} divides by zero."
    used, given = Counter(found.numbers), Counter(numbers)
    if used - given:
        return "numbers", f"{text} uses {_list(used - given)}, which is not there or used too often."
    if use == "exact" and used != given:
        return "numbers", f"{text} leaves out {_list(given - used)}."
    if found.value != target:
        return "value", f"{text} is {_show(found.value)}, not {target}."
    return "correct", "Right."


def _drop_target(text: str, target: int) -> str:
    """The left side of `expression = target`; anything else stays as it is."""
    if len(text) > 200:
        return text
    left, _, right = text.partition("=")
    return left if right.strip() == str(target) else text


def _list(numbers: Counter[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers.elements()))


def _show(value: Fraction) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{float(value):.3g}" if abs(value) < 10**300 else "too large"


@component("task", "countdown")
class Countdown(Component):
    """Numbers and a target: `3 7 25>35=` answered by `3+7+25.`

    `tiny`: numbers 1-20, target 1-99, a bare expression closed by `.`; `chat`: numbers 1-100, target 1-999, a question
    answered inside <answer> tags. No multiset of numbers of an evaluation set occurs in training.
    """

    variant: Literal["tiny", "chat"] = Field(
        "tiny", description="for the embedded model (`tiny`) or a large one (`chat`)"
    )
    levels: tuple[Annotated[int, Field(ge=2, le=6)], ...] = Field(
        (2, 3), min_length=1, description="counts of numbers of training items, in turn; each 2 to 6"
    )
    numbers: Use = Field("subset", description="each number at most once (`subset`) or exactly once (`exact`)")
    scale: Scale = Field("binary", description="form of the reward: `binary`, `ternary` or `reasoning-gym`")

    @property
    def size(self) -> int | None:
        """A new item for every index."""
        return None

    @property
    def reward(self) -> Reward:
        """The exact scorer in the form that the variant asks for."""
        return CountdownScorer(
            form="bare" if self.variant == "tiny" else "tags", numbers=self.numbers, scale=self.scale
        )

    @property
    def main_set(self) -> str:
        """Accuracy at the first training level is `eval/accuracy`."""
        return f"L{self.levels[0]}"

    def train(self, seed: int, index: int) -> Prompt:
        """Training item `index`; it has `levels[index % len(levels)]` numbers."""
        return self._draw(seed, "train", self.levels[index % len(self.levels)], index)

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        """`L2`, `L3` (for `chat` also `L4`, `L5`) and every other training level: up to 100 distinct puzzles each."""
        return evaluation_sets(self, seed)

    def stage1(self, seed: int, index: int) -> tuple[Prompt, str]:
        """Example `index` of the supervised stage: a prompt on training numbers and a right response."""
        prompt = self._draw(seed, "stage1", self.levels[index % len(self.levels)], index)
        return prompt, f"{prompt.answer}." if self.variant == "tiny" else f"{_OPEN}{prompt.answer}{_CLOSE}"

    def _draw(self, seed: int, split: str, level: int, index: int) -> Prompt:
        puzzle = draw_puzzle(seed, split, level, index, variant=self.variant)
        shown, name = " ".join(map(str, puzzle.numbers)), f"countdown/{self.variant}/{split}/{level}/{index}"
        question = f"{shown}>{puzzle.target}="
        if self.variant == "chat":
            question = _QUESTION.format(
                numbers=", ".join(shown.split()), target=puzzle.target, rule=_RULES[self.numbers]
            )
        meta = {"level": level, "numbers": list(puzzle.numbers), "target": puzzle.target}
        return Prompt(name, (Message("user", question),), puzzle.solution, "countdown", meta)


@lru_cache(maxsize=8)
def evaluation_sets(task: Countdown, seed: int) -> Mapping[str, tuple[Prompt, ...]]:
    """The evaluation sets of a task and seed: the first distinct puzzles on held-out numbers."""

    def draw(level: int, index: int) -> Prompt:
        return task._draw(seed, f"L{level}", level, index)

    levels = sorted({*task.levels, *EVALUATED[task.variant]})
    return {f"L{n}": collect_distinct(lambda i, n=n: draw(n, i), SET_SIZE, 5 * SET_SIZE) for n in levels}  # type: ignore[misc]
