"""What a response to a composed program is worth, and its failure class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from covey.registry import Component, component
from covey.tasks.compose.classes import classify, read_answer
from covey.tasks.compose.tiny import Program
from covey.tasks.scoring import CORRECT_AND_FORMAT, grade
from covey.types import Prompt, Rollout, Score, Stop


@component("reward", "compose_tiny")
class TinyScorer(Component):
    """1 iff the text ends in its only `.` and what follows the last `=` is the answer; the trace before it is free.

    A truncated response is not correct and has `format` -1, as has a malformed one.
    """

    weights: ClassVar[Mapping[str, float]] = CORRECT_AND_FORMAT
    isolated: ClassVar[bool] = False

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, with facts `class`, `trace_ok` and `answer` and a sentence on what is wrong."""
        return [score_tiny(prompt, rollout) for rollout in rollouts]


def score_tiny(prompt: Prompt, rollout: Rollout) -> Score:
    """The score of one response to a `tiny` prompt."""
    program = Program("".join(prompt.meta["functions"]), prompt.meta["input"])
    verdict = classify(program, rollout.text, truncated=rollout.stop == Stop.LENGTH)
    answer = None if verdict.name in ("truncated", "malformed") else read_answer(rollout.text)
    return grade(verdict.name, verdict.detail, trace_ok=verdict.trace_ok, answer=answer)
