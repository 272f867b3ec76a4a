"""The task `compose`: programs of nested string functions, levels, sides and evaluation sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from covey.registry import Component, component
from covey.tasks.compose import tiny
from covey.tasks.compose.score import TinyScorer
from covey.types import Message, Prompt

if TYPE_CHECKING:
    from covey.protocols import Reward

Level = Annotated[int, Field(ge=1, le=8)]


@component("task", "compose")
class Compose(Component):
    """Strings through nested functions; a level is the number of nested calls.

    `tiny` fits a model of a few hundred thousand parameters.
    """

    variant: Literal["tiny"] = Field("tiny", description="which language the programs are written in")
    levels: tuple[Level, ...] = Field((2,), min_length=1, description="levels of training items, in turn; each 1 to 8")
    side: Literal["train", "held_out"] = Field("train", description="which side's functions training items are made of")

    @property
    def size(self) -> int | None:
        """A new item for every index."""
        return None

    @property
    def reward(self) -> Reward:
        """`correct` in {0, 1} and `format` in {-1, 0}."""
        return TinyScorer()

    @property
    def main_set(self) -> str:
        """Accuracy at level 2 is `eval/accuracy`."""
        return "L2"

    def train(self, seed: int, index: int) -> Prompt:
        """Training item `index`; its level is `levels[index % len(levels)]`."""
        level = self.levels[index % len(self.levels)]
        split = "train" if self.side == "train" else "held"
        letters = tiny.TRAIN_SIDE if self.side == "train" else tiny.HELD_SIDE
        program = tiny.draw_item(seed, split, level, index, side=letters)
        return tiny_prompt(program, split, level, index, side=self.side)

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        """Evaluation sets by name, on inputs that training never shows."""
        return tiny_sets(seed)

    def stage1(
        self, seed: int, index: int, *, priming: float = 0.25, bridge: float = 0.20, planted: float = 0.4
    ) -> tuple[Prompt, str]:
        """Example `index` of the supervised stage: a prompt and the response to imitate.

        Shares: `bridge` two composed calls of a bridge pair (of these `planted` with a failing trace), `priming` one
        call among identities, the rest one call alone.
        """
        lesson = tiny.draw_lesson(seed, index, priming=priming, bridge=bridge, planted=planted)
        level = len(lesson.program.functions)
        held = set(lesson.program.functions) & set(tiny.HELD_SIDE)
        prompt = tiny_prompt(
            lesson.program, "stage1", level, index, side="held_out" if held else "train", lesson=lesson.sort
        )
        return prompt, lesson.response


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
