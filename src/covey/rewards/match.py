"""Rewards that compare a response with the gold answer: the component `correct` is 0 or 1.

A prompt without an answer cannot be scored, which is a typed failure and not a 0.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import ClassVar

from covey.registry import Component, component
from covey.types import Json, Prompt, Rollout, Score

_NUMBER = re.compile(r"(?:(?<![\w.)\]])[-+])?(?:(?:\d+(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\w)\.\d+)", re.ASCII)
_LONGEST = 1000


class Match(Component):
    """A comparison of each response with the prompt's answer."""

    isolated: ClassVar[bool] = False

    weights: ClassVar[Mapping[str, float]] = {"correct": 1.0}

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """`correct` per rollout, or a failure where there is nothing to compare with."""
        if prompt.answer is None:
            failure = Score(failures={"correct": f"prompt {prompt.id} has no answer"})
            return [failure] * len(rollouts)
        return [self._compare(rollout.text, prompt.answer) for rollout in rollouts]

    def _compare(self, text: str, answer: str) -> Score:
        try:
            right = self.agrees(text, answer)
        except ValueError as error:
            return Score(failures={"correct": str(error)})
        detail = "Right." if right else f"The answer is {answer}."
        return Score({"correct": float(right)}, facts=self.read_facts(text), detail=detail)

    @abstractmethod
    def agrees(self, text: str, answer: str) -> bool:
        """Whether the text gives the answer. Raises ValueError if the answer cannot be compared with."""

    def read_facts(self, text: str) -> dict[str, Json]:
        """What else there is to say of a text: under `answer` its final answer in normal form (null: none), if there is one."""
        return {}


@component("reward", "exact_match")
class ExactMatch(Match):
    """1 iff the response equals the answer, blanks at both ends apart."""

    def agrees(self, text: str, answer: str) -> bool:
        """Equality of the stripped texts."""
        return text.strip() == answer.strip()

    def read_facts(self, text: str) -> dict[str, Json]:
        """The stripped text; an empty one is no answer."""
        return {"answer": text.strip() or None}


@component("reward", "number")
class NumberMatch(Match):
    """1 iff the last number in the response equals the answer as a number: `so 1,250.0 it is` gives 1250.

    Decimal notation with an optional sign; commas may group thousands. A minus between two operands, as in `7-3`, is an
    operator and not a sign.
    """

    def agrees(self, text: str, answer: str) -> bool:
        """Equality of exact fractions, so 0.10 equals 0.1 and nothing is rounded."""
        gold = last_number(answer)
        if gold is None:
            raise ValueError(f"the answer {answer!r} holds no number")
        return last_number(text) == gold

    def read_facts(self, text: str) -> dict[str, Json]:
        """The number as a fraction in lowest terms."""
        number = last_number(text)
        return {"answer": None if number is None else str(number)}


def last_number(text: str) -> Fraction | None:
    """The last decimal number in a text; None without one or if it is longer than 1 000 characters."""
    found = None
    for found in _NUMBER.finditer(text):  # noqa: B007 (only the last one is wanted)
        pass
    if found is None or len(found[0]) > _LONGEST:
        return None
    return Fraction(found[0].replace(",", ""))
