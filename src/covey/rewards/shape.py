"""The reward `tags`: whether a response is made of the wanted tagged parts and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from covey.errors import ConfigError
from covey.registry import Component, component
from covey.rewards.schema import choose_weights
from covey.types import Prompt, Rollout, Score

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_COMPONENTS = ("format", "tags")


@component("reward", "tags")
class Tags(Component):
    """`format` is 1 iff the response is `<think>...</think><answer>...</answer>`: each tag once, in order, blanks around them.

    Tags are compared letter by letter: no attributes, no blanks inside. Nested and repeated tags are wrong; any other `<` is
    text. `tags` is the soft form, the share of the opening and closing tags that occur exactly once, wherever they stand.
    Both take time linear in the length of the response.
    """

    names: tuple[str, ...] = Field(default=("think", "answer"), description="names of the tags in order")
    opened: bool = Field(
        default=False, description="true: the prompt ends with the first opening tag, so that the response lacks it"
    )
    empty: bool = Field(default=False, description="whether a part may hold nothing but blanks")
    weights: Mapping[str, float] = Field(
        default={"format": 1.0, "tags": 0.0}, description="weight of the components in the mixed reward"
    )

    isolated: ClassVar[bool] = False

    @field_validator("names", mode="before")
    @classmethod
    def _right_names(cls, value: Any) -> Any:
        names = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
        for place, name in enumerate(names):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ConfigError("reward.names", f"{name!r:.60} is no tag", "Write letters and digits: think,answer.")
            if name in names[:place]:
                raise ConfigError("reward.names", f"'{name}' stands there twice", "Each tag occurs once.")
        if not names:
            raise ConfigError("reward.names", "no tags", "Give at least one.")
        return tuple(names)

    @field_validator("weights")
    @classmethod
    def _known(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        return choose_weights(value, _COMPONENTS)

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per response, in order."""
        return [self._score_one(rollout.text) for rollout in rollouts]

    def _score_one(self, text: str) -> Score:
        wanted = [tag for name in self.names for tag in (f"<{name}>", f"</{name}>")]
        if self.opened:
            text = wanted[0] + text
        problem = find_problem(text, wanted, empty=self.empty)
        once = sum(text.count(tag) == 1 for tag in wanted)
        return Score({"format": float(problem is None), "tags": once / len(wanted)}, detail=problem or "Right.")


def find_problem(text: str, tags: Sequence[str], *, empty: bool) -> str | None:
    """Why a text is not opening and closing tags in this order with text inside and only blanks between; None if it is."""
    for tag in tags:
        if (count := text.count(tag)) != 1:
            return f"{tag} is missing." if count == 0 else f"{tag} stands there {count} times."
    starts = [text.find(tag) for tag in tags]
    for place in range(1, len(tags)):
        if starts[place] < starts[place - 1]:
            return f"{tags[place]} stands before {tags[place - 1]}."
    ends = [start + len(tag) for start, tag in zip(starts, tags, strict=True)]
    between = [text[end:start] for end, start in zip([0, *ends], [*starts, len(text)], strict=True)]
    if any(part.strip() for part in between[::2]):
        return "There is text outside of the tags."
    if not empty:
        for tag, part in zip(tags[::2], between[1::2], strict=True):
            if not part.strip():
                return f"{tag} holds nothing."
    return None
