"""Scoring of the string variants: a free text that ends in a JSON object with the key `output`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from covey.registry import Component, component
from covey.tasks.compose.strings import mark
from covey.tasks.scoring import CORRECT_AND_FORMAT, grade, grade_truncated
from covey.types import Prompt, Rollout, Score

TAIL = 16_384


def read_output(text: str) -> str | None:
    """The string under `output` in the last JSON object of a text that has one; None without such an object.

    Objects are decoded from every `{` outside objects decoded before, in the last 16 384 characters, with no repairs. A
    text nested too deeply to decode has no answer.
    """
    text, found, here = text[-TAIL:], None, 0
    decoder = json.JSONDecoder()
    while (here := text.find("{", here)) >= 0:
        try:
            value, here = decoder.raw_decode(text, here)
        except RecursionError:
            return None
        except ValueError:
            here += 1
            continue
        if isinstance(value.get("output"), str):
            found = value["output"]
    return found


@component("reward", "compose_strings")
class StringScorer(Component):
    """1 iff the JSON object that ends the response holds the answer.

    Classes: `correct`, `truncated`, `malformed` (no such object), `ignored` (the value with calls left out), `other`.
    """

    ternary: bool = Field(False, description="one score in -1 (no object), 0, 1 instead of correct and format")
    isolated: ClassVar[bool] = False
    _weights: ClassVar[Mapping[bool, Mapping[str, float]]] = {
        False: CORRECT_AND_FORMAT,
        True: {"score": 1.0, "correct": 0.0},
    }

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights in the mixed reward."""
        return self._weights[self.ternary]

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, with the facts `class` and `answer`."""
        return [self._score_one(prompt, rollout) for rollout in rollouts]

    def _score_one(self, prompt: Prompt, rollout: Rollout) -> Score:
        score = grade_truncated(rollout, answer=None) or _grade(prompt, read_output(rollout.text))
        if not self.ternary:
            return score
        right = score.values["correct"]
        values = {"score": score.values["format"] or right, "correct": right}
        return Score(values, facts=score.facts, detail=score.detail)


def _grade(prompt: Prompt, found: str | None) -> Score:
    if found is None:
        return grade("malformed", 'The response must end in a JSON object {"output": "..."}.', answer=None)
    if found == prompt.answer:
        return grade("correct", "Right.", answer=found)
    if mark(found) in prompt.meta["shortcuts"]:
        detail = f"{found!r} is what comes out when calls are left out; it is {prompt.answer!r}."
        return grade("ignored", detail, answer=found)
    return grade("other", f"The program returns {prompt.answer!r}.", answer=found)
