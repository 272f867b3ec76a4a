"""What a response to a composed program is worth: `correct` in {0, 1} and `format` in {-1, 0}, with its failure class."""

from __future__ import annotations

from collections.abc import Sequence

from covey.registry import Component, component
from covey.tasks.compose.classes import classify
from covey.tasks.compose.tiny import Program
from covey.types import Prompt, Rollout, Score, Stop


@component("reward", "compose_tiny")
class TinyScorer(Component):
    """1 iff the text ends in its only `.` and what follows the last `=` is the answer; the trace before it is free.

    A truncated response is not correct and has `format` -1, as has a malformed one.
    """

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, with facts `class` and `trace_ok` and a sentence on what is wrong."""
        return [score_tiny(prompt, rollout) for rollout in rollouts]


def score_tiny(prompt: Prompt, rollout: Rollout) -> Score:
    """The score of one response to a `tiny` prompt."""
    program = Program("".join(prompt.meta["functions"]), prompt.meta["input"])
    verdict = classify(program, rollout.text, truncated=rollout.stop == Stop.LENGTH)
    values = {
        "correct": float(verdict.name == "correct"),
        "format": -1.0 if verdict.name in ("malformed", "truncated") else 0.0,
    }
    return Score(values, facts={"class": verdict.name, "trace_ok": verdict.trace_ok}, detail=verdict.detail)
