"""Scores that several tasks share: a bare answer closed by a full stop, and what a truncated response is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from covey.registry import Component, component
from covey.types import Json, Prompt, Rollout, Score, Stop

CORRECT_AND_FORMAT: Mapping[str, float] = {"correct": 1.0, "format": 0.0}
"""Weights in the mixed reward: being right counts, the form alone does not."""


def grade(name: str, detail: str, **facts: Json) -> Score:
    """`correct` 1 for the class `correct`, `format` -1 for `malformed` and `truncated`; the class is a fact among others.

    The fact `answer` is the normalised final answer, null where there is none: majorities are counted over it.
    """
    values = {"correct": float(name == "correct"), "format": -1.0 if name in ("malformed", "truncated") else 0.0}
    return Score(values, facts={"class": name, **facts}, detail=detail)


def grade_truncated(rollout: Rollout, **facts: Json) -> Score | None:
    """The score of a response that its token budget ended; None for any other."""
    if rollout.stop != Stop.LENGTH:
        return None
    return grade("truncated", "The response was cut off before it ended.", **facts)


def read_closed(text: str) -> str | None:
    """The text before the full stop that closes a response, if it is the only one; otherwise None."""
    return text[:-1] if text.endswith(".") and text.count(".") == 1 else None


@component("reward", "closed_answer")
class ClosedAnswer(Component):
    """1 iff the response is the answer closed by `.` and nothing else: `19.`"""

    weights: ClassVar[Mapping[str, float]] = CORRECT_AND_FORMAT
    isolated: ClassVar[bool] = False

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout; a prompt without an answer cannot be scored."""
        if prompt.answer is None:
            failures = dict.fromkeys(CORRECT_AND_FORMAT, f"prompt {prompt.id} has no answer")
            return [Score(failures=failures)] * len(rollouts)
        return [self._score_one(prompt.answer, rollout) for rollout in rollouts]

    def _score_one(self, answer: str, rollout: Rollout) -> Score:
        truncated, found = grade_truncated(rollout, answer=None), read_closed(rollout.text)
        if truncated is not None:
            return truncated
        if not found:
            return grade("malformed", "The response must be the answer closed by one full stop.", answer=None)
        if found == answer:
            return grade("correct", "Right.", answer=found)
        return grade("wrong", f"The answer is {answer}, not {found}.", answer=found)


def collect_distinct(draw: Callable[[int], Prompt], size: int, tries: int) -> tuple[Prompt, ...]:
    """The first `size` prompts of `draw(0), draw(1), ...` with different texts; fewer if `tries` draws hold no more."""
    chosen: dict[tuple[object, ...], Prompt] = {}
    for index in range(tries):
        prompt = draw(index)
        chosen.setdefault(prompt.messages, prompt)
        if len(chosen) == size:
            break
    return tuple(chosen.values())
