"""The reward `regex`: whether a response has a form that a regular expression says. A search that does not end is killed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from covey.errors import ConfigError, DataError
from covey.registry import Component, component
from covey.types import Prompt, Rollout, Score


@component("reward", "regex")
class RegexMatch(Component):
    r"""1 iff the pattern matches; with `group`, iff that group of the match is the answer, blanks at both ends apart.

    The component is `matched`, and `correct` with a group: `pattern: 'Answer: (\d+)'`, `group: 1`. Python's `re` decides, which
    some patterns keep busy for ever (`(a+)+$` on many a's); its process is killed then, and the response has no score.
    """

    pattern: str = Field(min_length=1, description="regular expression in Python's syntax, with flags as in (?is)")
    match: Literal["full", "first", "last"] = Field(
        default="first", description="what has to match: the whole response, or its first or last place that does"
    )
    group: int | str | None = Field(
        default=None, description="number or name of the group that is compared with the answer; null: none is"
    )

    isolated: ClassVar[bool] = True
    together: ClassVar[bool] = False
    _compiled: re.Pattern[str] = PrivateAttr()

    def model_post_init(self, _: Any) -> None:
        """Compile the pattern now, so that a mistake in it shows before anything is trained."""
        try:
            self._compiled = re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError("reward.pattern", f"{error}, in {self.pattern[:80]!r}", "Mend the pattern.") from None
        if self.group is None:
            return
        names, count = self._compiled.groupindex, self._compiled.groups
        if self.group not in names and not (isinstance(self.group, int) and 0 <= self.group <= count):
            right = f"Groups: {', '.join(map(str, [*range(count + 1), *names]))}."
            raise ConfigError("reward.group", f"the pattern has no group {self.group!r}", right)

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of the only component: 1."""
        return {"matched" if self.group is None else "correct": 1.0}

    def check(self, prompt: Prompt) -> None:
        """Raises DataError if a group is to be compared with an answer that is not there."""
        if self.group is not None and prompt.answer is None:
            raise DataError(f"prompt {prompt.id}", "the row has no answer", "Give one, or leave out reward.group.")

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per response, in order."""
        (name,) = self.weights
        if self.group is not None and prompt.answer is None:
            return [Score(failures={name: f"prompt {prompt.id} has no answer"})] * len(rollouts)
        return [self._score_one(name, rollout.text, prompt.answer) for rollout in rollouts]

    def _score_one(self, name: str, text: str, answer: str | None) -> Score:
        found = self._find(text)
        if found is None:
            return Score({name: 0.0}, detail="The response does not have the wanted form.")
        if self.group is None or answer is None:
            return Score({name: 1.0}, detail="Right.")
        right = (found[self.group] or "").strip() == answer.strip()
        return Score({name: float(right)}, detail="Right." if right else f"The answer is {answer}.")

    def _find(self, text: str) -> re.Match[str] | None:
        if self.match == "full":
            return self._compiled.fullmatch(text)
        found = self._compiled.search(text)
        if self.match == "last":
            for found in self._compiled.finditer(text):  # noqa: B007 (only the last one is wanted)
                pass
        return found
