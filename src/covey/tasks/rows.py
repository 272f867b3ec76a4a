"""The task `rows`: a user's own prompts and answers, from a file of JSON lines or from Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PrivateAttr

from covey.errors import DataError
from covey.random import key, permutation
from covey.registry import Component, component
from covey.rewards.kinds import build_reward
from covey.rewards.match import Match
from covey.tasks.table import Columns, Row, check_rows, number_rows, read_lines
from covey.types import Prompt


@dataclass(frozen=True, slots=True)
class Split:
    """Rows as prompts: those to train on and those kept for evaluation."""

    train: tuple[Prompt, ...]
    held: tuple[Prompt, ...]


def _build(value: Any) -> Any:
    return build_reward(value, "task.reward")


@component("task", "rows")
class Rows(Component):
    """One problem per row: `prompt` (text or messages), `answer`, perhaps `id`; other columns reach the reward by name.

    A row keeps its id (or gets one from its prompt), and the id decides whether it is held out, so a new row moves no
    other. Each epoch shows every training row once, in an order that depends on (seed, epoch).
    """

    data: str = Field(description="path of a file of JSON lines, one object per line")
    reward: Annotated[Any, BeforeValidator(_build)] = Field(
        "exact_match", description="how responses are scored: a registered reward or FILE.py:function"
    )
    prompt_column: str = Field("prompt", description="name of the column with the prompt: text or a list of messages")
    answer_column: str = Field("answer", description="name of the column with the gold answer")
    id_column: str = Field("id", description="name of the column with a row's own id, if there is one")
    held_share: float = Field(0.1, ge=0, lt=1, description="share of rows kept for evaluation; 0 to below 1")
    held_max: int = Field(200, ge=1, description="largest number of rows kept for evaluation")

    _given: Split | None = PrivateAttr(None)
    _changed: int = PrivateAttr(0)

    def model_post_init(self, _: Any) -> None:
        """Remember which version of the file this value speaks of; the file itself is read when rows are asked for."""
        file = Path(self.data)
        self._changed = file.stat().st_mtime_ns if file.is_file() else 0

    @property
    def size(self) -> int:
        """The number of training rows."""
        return len(self.split().train)

    @property
    def main_set(self) -> str:
        """Accuracy on the held-out rows is `eval/accuracy`."""
        return "held_out"

    def train(self, seed: int, index: int) -> Prompt:
        """The prompt at place `index` of an endless series of shuffled epochs."""
        prompts = self.split().train
        epoch, place = divmod(index, len(prompts))
        return prompts[_order(len(prompts), seed, epoch)[place]]

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        """The rows kept for evaluation, the same for every seed; no set at all if none is kept."""
        held = self.split().held
        return {"held_out": held} if held else {}

    def split(self) -> Split:
        """All rows, checked. A file is read once. Raises MissingInputError, DataError."""
        if self._given is not None:
            return self._given
        return _read_split(self.data, self._changed, _columns(self), self.held_share, self.held_max)


def from_rows(rows: Iterable[Mapping[str, Any]], *, name: str = "rows", **fields: Any) -> Rows:
    """The task of rows given in Python: any iterable of mappings. `fields` are those of `Rows` except `data`.

    The rows are checked at once. Such a task cannot be read back from a run's configuration, which only keeps `name`.
    """
    task = Rows(data=name, **fields)
    checked = check_rows(number_rows(rows), name, _columns(task))
    task._given = split_rows(checked, task.held_share, task.held_max)
    return task


def split_rows(rows: Sequence[Row], share: float, most: int) -> Split:
    """Keep for evaluation the rows whose id hashes below `share`, at most `most`, in the order of their hashes.

    With a share above 0 at least one family of rows is kept and at least one is left for training. Raises DataError if
    that cannot be done.
    """
    prompts = [(row.family, _as_prompt(row)) for row in rows]
    if share == 0:
        return Split(tuple(prompt for _, prompt in prompts), ())
    ranks = {family: key("rows-held", family) for family, _ in prompts}
    order = sorted(ranks, key=lambda family: ranks[family])
    if len(order) == 1:
        raise DataError("task.held_share", "one prompt cannot be split", "Give more rows or held_share=0.")
    low = [family for family in order if ranks[family] < share * 2**64]
    chosen = _fill(low[: len(order) - 1] or order[:1], prompts, most)
    return Split(
        tuple(prompt for family, prompt in prompts if family not in chosen),
        tuple(prompt for family, prompt in sorted(prompts, key=lambda pair: ranks[pair[0]]) if family in chosen),
    )


def _fill(families: Sequence[str], prompts: Sequence[tuple[str, Prompt]], most: int) -> set[str]:
    """The first families whose rows are together at most `most`; the first one in any case."""
    counts = Counter(family for family, _ in prompts)
    chosen, total = set(families[:1]), counts[families[0]]
    for family in families[1:]:
        total += counts[family]
        if total > most:
            break
        chosen.add(family)
    return chosen


def _as_prompt(row: Row) -> Prompt:
    return Prompt(f"rows/{row.id}", row.messages, row.answer, "rows", row.meta, row.conversational)


def _columns(task: Rows) -> Columns:
    needed = isinstance(task.reward, Match)
    return Columns(task.prompt_column, task.answer_column, task.id_column, needed)


@lru_cache(maxsize=8)
def _read_split(path: str, changed: int, columns: Columns, share: float, most: int) -> Split:
    return split_rows(check_rows(read_lines(path), path, columns), share, most)


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> list[int]:
    return permutation(size, seed, "rows", epoch)
