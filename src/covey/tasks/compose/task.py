"""The task `compose`: programs of nested string functions, levels, sides and evaluation sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from covey.errors import ConfigError
from covey.registry import Component, component
from covey.tasks.compose import paper, strings, tiny
from covey.tasks.compose.answers import StringScorer
from covey.tasks.compose.functions import read_definition
from covey.tasks.compose.score import TinyScorer
from covey.tasks.scoring import collect_distinct
from covey.types import Message, Prompt

if TYPE_CHECKING:
    from covey.protocols import Reward

Level = Annotated[int, Field(ge=1, le=8)]
SPLITS = {"train": "train", "held_out": "held", "all": "all"}
STRING_LEVELS, STRING_SIZE = (1, 2, 3, 4, 6), 100
_QUESTION = """{code}

What does main_solution({value}) return? Think it through step by step without writing any code. \
Then end with one JSON object, {{"output": "the returned string"}}."""


@component("task", "compose")
class Compose(Component):
    """Strings through nested functions; a level is the number of nested calls.

    `tiny` fits a model of a few hundred thousand parameters; `strings` is for pretrained models and makes every call
    matter; `strings-paper` generates the data of arXiv 2509.25123 as published, where a level is the depth of a tree.
    """

    variant: Literal["tiny", "strings", "strings-paper"] = Field("tiny", description="the language of the programs")
    levels: tuple[Level, ...] = Field((2,), min_length=1, description="levels of training items, in turn; each 1 to 8")
    side: Literal["train", "held_out", "all"] = Field("train", description="whose functions training items are made of")
    definitions: bool = Field(False, description="show the definitions of the called functions (not for `tiny`)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.definitions and self.variant == "tiny":
            raise ConfigError("task.definitions", "the variant 'tiny' has no definitions to show", "Leave it out.")
        return self

    @property
    def size(self) -> int | None:
        """A new item for every index; `strings-paper` has 50 000 per level."""
        return paper.TRAIN_SIZE * len(self.levels) if self.variant == "strings-paper" else None

    @property
    def reward(self) -> Reward:
        """`correct` in {0, 1} and `format` in {-1, 0}; for `strings-paper` one score in {-1, 0, 1}."""
        if self.variant == "tiny":
            return TinyScorer()
        return StringScorer(ternary=self.variant == "strings-paper")

    @property
    def main_set(self) -> str:
        """Accuracy at level 2 is `eval/accuracy`; `strings-paper` evaluates on held-out functions only."""
        return "held_L2" if self.variant == "strings-paper" else "L2"

    def train(self, seed: int, index: int) -> Prompt:
        """Training item `index`; its level is `levels[index % len(levels)]`."""
        level, split = self.levels[index % len(self.levels)], SPLITS[self.side]
        if self.variant == "tiny":
            letters = {"train": tiny.TRAIN_SIDE, "held_out": tiny.HELD_SIDE, "all": tiny.TRAIN_SIDE + tiny.HELD_SIDE}
            program = tiny.draw_item(seed, split, level, index, side=letters[self.side])
            return tiny_prompt(program, split, level, index, side=self.side)
        if self.variant == "strings":
            item = strings.draw_item(seed, split, level, index, side=self.side, test=False)
            return self._string_prompt(item, split, level, index, self.side)
        place = index // len(self.levels) % paper.TRAIN_SIZE
        item = paper.open_file(seed, self.side, (level,), paper.TRAIN_SIZE).item(place)
        return self._string_prompt(item, split, level, place, self.side)

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        """Evaluation sets by name: `L1`, `L2` ... for functions of the train side, `held_L1` ... for the held-out side.

        `tiny` and `strings` ask about inputs that training never shows; `tiny` has pairs that training never composes
        (`L2_newpairs`). `strings-paper` has the paper's test file: held-out functions, levels 1 to 8.
        """
        if self.variant == "tiny":
            return tiny_sets(seed)
        return string_sets(self, seed) if self.variant == "strings" else paper_sets(self, seed)

    def stage1(
        self, seed: int, index: int, *, priming: float = 0.25, bridge: float = 0.20, planted: float = 0.4
    ) -> tuple[Prompt, str]:
        """Example `index` of the supervised stage of `tiny`: a prompt and the response to imitate.

        Shares: `bridge` two composed calls of a bridge pair (of these `planted` with a failing trace), `priming` one
        call among identities, the rest one call alone. Raises ConfigError for the other variants.
        """
        if self.variant != "tiny":
            right = "Train on a model's own correct responses, with side=all, levels=[1] and definitions=true."
            raise ConfigError("task.variant", f"'{self.variant}' has no written responses to imitate", right)
        lesson = tiny.draw_lesson(seed, index, priming=priming, bridge=bridge, planted=planted)
        level = len(lesson.program.functions)
        side = "held_out" if set(lesson.program.functions) & set(tiny.HELD_SIDE) else "train"
        prompt = tiny_prompt(lesson.program, "stage1", level, index, side=side, lesson=lesson.sort)
        return prompt, lesson.response

    def _string_prompt(self, item: strings.Item, split: str, level: int, index: int, side: str) -> Prompt:
        parts = [read_definition(number) for number in sorted(set(item.functions))] if self.definitions else []
        newline = "\n    " if self.variant == "strings-paper" else " "
        code = "\n\n\n".join([*parts, f"def main_solution(x):{newline}return {item.code}"])
        question = _QUESTION.format(code=code, value=json.dumps(item.input, ensure_ascii=False))
        meta = {
            "level": level,
            "side": side,
            "functions": [f"func_{number}" for number in item.functions],
            "input": item.input,
            "depends_on_x": item.depends_on_x,
            "n_calls": len(item.functions),
            "out_len": len(item.answer),
            "shortcuts": list(item.shortcuts),
        }
        name = f"compose/{self.variant}/{split}/{level}/{index}"
        return Prompt(name, (Message("user", question),), item.answer, "compose", meta)


def tiny_prompt(program: tiny.Program, split: str, level: int, index: int, **meta: str) -> Prompt:
    """The prompt of a program of the variant `tiny`: the user message `B(E(abcd))=`, nothing else."""
    return Prompt(
        id=f"compose/tiny/{split}/{level}/{index}",
        messages=(Message("user", f"{program.text}="),),
        answer=program.answer,
        task="compose",
        meta={"level": level, "functions": list(program.functions), "input": program.input, **meta},
    )


@lru_cache(maxsize=8)
def tiny_sets(seed: int) -> Mapping[str, tuple[Prompt, ...]]:
    """The eight evaluation sets of the variant `tiny` that belong to a seed."""
    return {name: _tiny_set(seed, name) for name in tiny.EVALUATIONS}


def _tiny_set(seed: int, name: str) -> tuple[Prompt, ...]:
    programs, level, _ = tiny.EVALUATIONS[name]
    side = "held_out" if programs == "held_out" else "train"
    items = tiny.draw_evaluation(seed, name)
    return tuple(tiny_prompt(program, name, level, place, side=side) for place, program in enumerate(items))


@lru_cache(maxsize=4)
def string_sets(task: Compose, seed: int) -> Mapping[str, tuple[Prompt, ...]]:
    """The evaluation sets of the variant `strings`: level by side, on test inputs."""

    def collect(side: str, level: int, name: str) -> tuple[Prompt, ...]:
        def draw(index: int) -> Prompt:
            item = strings.draw_item(seed, name, level, index, side=side, test=True)
            return task._string_prompt(item, name, level, index, side)

        return collect_distinct(draw, STRING_SIZE, 2 * STRING_SIZE)

    sides = (("train", ""), ("held_out", "held_"))
    return {f"{prefix}L{n}": collect(side, n, f"{prefix}L{n}") for side, prefix in sides for n in STRING_LEVELS}


@lru_cache(maxsize=4)
def paper_sets(task: Compose, seed: int) -> Mapping[str, tuple[Prompt, ...]]:
    """The paper's test file by level: 256 items each on held-out functions."""
    file = paper.open_file(seed, "held_out", paper.TEST_LEVELS, paper.TEST_SIZE)

    def collect(level: int) -> tuple[Prompt, ...]:
        name, start = f"held_L{level}", paper.TEST_LEVELS.index(level) * paper.TEST_SIZE
        items = (file.item(start + place) for place in range(paper.TEST_SIZE))
        return tuple(task._string_prompt(item, name, level, i, "held_out") for i, item in enumerate(items))

    return {f"held_L{level}": collect(level) for level in paper.TEST_LEVELS}
