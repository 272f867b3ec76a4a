"""The task `rows`: a user's own prompts and answers, from files, folders, the hub or Python."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from covey.errors import ConfigError, DataError
from covey.random import key, permutation
from covey.registry import Component, component
from covey.rewards.kinds import build_reward
from covey.rewards.match import Match
from covey.tasks.sources import Given, find_given, give, read
from covey.tasks.table import Columns, Row, check_rows
from covey.types import Prompt

SHARE = 0.1
"""Share of rows that is kept for evaluation if nothing is said and no other held-out rows are named."""
EPOCHS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Split:
    """Rows as prompts: those to train on and those kept for evaluation.

    `ranks` say for each training row where its value stands among all values of the column that decides on the order, from
    0; None without such a column. `digest` is of all rows read. `left_out` counts rows of training whose prompt is held out.
    """

    train: tuple[Prompt, ...]
    held: tuple[Prompt, ...]
    digest: str
    ranks: array[int] | None = None
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """All that decides what is read. Equal ones name the same places, however they are written."""

    data: str = field(compare=False)
    held_data: str | None = field(compare=False)
    places: tuple[str, str]
    split: str | None
    held_split: str | None
    share: float
    most: int
    columns: Columns


class Kept:
    """What was read for a component. It is no part of its value: any two are equal."""

    def __init__(self) -> None:
        self.splits: dict[Reading, Split] = {}
        self.orders: dict[tuple[Reading, str | None, str, int, int], Sequence[int]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kept)

    __hash__ = None  # type: ignore[assignment]


def _build(value: Any) -> Any:
    return build_reward(value, "task.reward")


@component("task", "rows")
class Rows(Component):
    """One problem per row: `prompt` (text or messages), `answer`, perhaps `id`; other columns reach the reward by name.

    A row keeps its id (or gets one from its prompt), and the id decides whether it is held out, so a new row moves no other.
    Rows of training whose prompt is also held out are left out. Each epoch shows every training row once, in an order that
    depends on (seed, epoch) and, with `order`, follows a column.
    """

    data: str = Field(
        min_length=1,
        description="file (.jsonl, .json, .csv, .tsv, .parquet), pattern of files, folder, or hub id owner/name:config",
    )
    reward: Annotated[Any, BeforeValidator(_build)] = Field(
        "exact_match", description="how responses are scored: a registered reward or FILE.py:function"
    )
    prompt_column: str = Field("prompt", description="name of the column with the prompt: text or a list of messages")
    answer_column: str = Field(
        "answer",
        description="name of the column with the gold answer; dots lead into objects: reward_model.ground_truth",
    )
    id_column: str = Field("id", description="name of the column with a row's own id, if there is one")
    keep_columns: tuple[str, ...] | None = Field(None, description="further columns that the reward sees; null: all")
    split: str | None = Field(None, description="split of a folder or hub id; null: train, or the only one")
    held_share: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of rows kept for evaluation, 0 to below 1; null: 0.1, or 0 beside held_data or held_split",
    )
    held_max: int = Field(200, ge=1, description="largest number of rows that held_share keeps")
    held_data: str | None = Field(None, description="rows to evaluate on, as in data; null: a share or split of data")
    held_split: str | None = Field(None, description="split to evaluate on, of held_data or else of data: test")
    order: str | None = Field(
        None, description="column that rows are shown by, least first; -COLUMN: greatest first; null: shuffled"
    )
    order_epochs: Literal["first", "all"] = Field(
        "first", description="epochs that follow `order`; later ones are shuffled"
    )

    _given: tuple[Given | None, ...] = PrivateAttr(())
    _kept: Kept = PrivateAttr(default_factory=Kept)

    @model_validator(mode="after")
    def _one_held_out_set(self) -> Self:
        if self.held_share and (self.held_data or self.held_split):
            other = "held_data" if self.held_data else "held_split"
            raise ConfigError("task.held_share", f"{other} says already what is held out", "Give one of them.")
        return self

    def model_post_init(self, _: Any) -> None:
        """Keep rows that were given in Python alive; files are read when rows are asked for."""
        self._given = (find_given(self.data), find_given(self.held_data or ""))

    @property
    def size(self) -> int:
        """The number of training rows."""
        return len(self.parts().train)

    @property
    def main_set(self) -> str:
        """Accuracy on the held-out rows is `eval/accuracy`."""
        return "held_out"

    @property
    def digest(self) -> str:
        """A digest of everything that was read: equal digests mean equal problems in equal order."""
        return self.parts().digest

    def train(self, seed: int, index: int) -> Prompt:
        """The prompt at place `index` of an endless series of epochs."""
        split = self.parts()
        epoch, place = divmod(index, len(split.train))
        return split.train[self._order(split, seed, epoch)[place]]

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        """The rows kept for evaluation, the same for every seed; no set at all if none is kept."""
        held = self.parts().held
        return {"held_out": held} if held else {}

    def notes(self) -> tuple[str, ...]:
        """What is worth knowing before a run."""
        count = self.parts().left_out
        said = f"{count} row{'s' if count != 1 else ''} of {self.data} left out of training: their prompts are held out"
        return (said,) if count else ()

    def parts(self) -> Split:
        """All rows, checked; they are read once. Raises MissingInputError, DataError."""
        reading = self._reading()
        if reading not in self._kept.splits:
            self._kept.splits[reading] = read_split(reading)
        return self._kept.splits[reading]

    def _reading(self) -> Reading:
        apart = self.held_data or self.held_split
        default = 0.0 if apart else SHARE
        return Reading(
            data=self.data,
            held_data=self.held_data,
            places=(os.path.abspath(self.data), os.path.abspath(self.held_data or self.data)),
            split=self.split,
            held_split=self.held_split,
            share=default if self.held_share is None else self.held_share,
            most=self.held_max,
            columns=Columns(
                prompt=self.prompt_column,
                answer=self.answer_column,
                id=self.id_column,
                answer_needed=isinstance(self.reward, Match),
                keep=self.keep_columns,
                order=None if self.order is None else self.order.removeprefix("-"),
            ),
        )

    def _order(self, split: Split, seed: int, epoch: int) -> Sequence[int]:
        """The permutation of an epoch: random, and among rows of one rank it stays so where the epoch follows a column."""
        at = (self._reading(), self.order, self.order_epochs, seed, epoch)
        if at not in self._kept.orders:
            order = permutation(len(split.train), seed, "rows", epoch)
            ranks = split.ranks
            if ranks is not None and (epoch == 0 or self.order_epochs == "all"):
                order.sort(key=lambda row: ranks[row], reverse=(self.order or "").startswith("-"))
            while len(self._kept.orders) >= EPOCHS_KEPT:
                del self._kept.orders[next(iter(self._kept.orders))]
            self._kept.orders[at] = array("q", order)
        return self._kept.orders[at]


def from_rows(rows: Any, **fields: Any) -> Rows:
    """The task of rows given in Python: an iterable of mappings, or a `datasets` Dataset. `fields` are those of `Rows`.

    The rows are checked at once. A configuration names them by a digest, under which this process finds them as long as
    they are in use.
    """
    given = give(rows)
    task = Rows(data=given.handle, **fields)
    task.parts()
    return task


def read_split(reading: Reading) -> Split:
    """Read and check rows, and part those to train on from those to evaluate on."""
    columns = reading.columns
    rows = check_rows(read(reading.data, split=reading.split, columns=columns.wanted), reading.data, columns)
    if reading.held_data is None and reading.held_split is None:
        train, held = split_rows(rows, reading)
    else:
        other, only = reading.held_data or reading.data, replace(columns, order=None)
        train, held = rows, check_rows(read(other, split=reading.held_split, columns=only.wanted), other, only)
    known = {row.messages for row in held}
    left = [row for row in train if row.messages not in known] if known else train
    if not left:
        raise DataError(
            reading.data, "every prompt is held out too", "Train on other rows than those of the evaluation."
        )
    return Split(
        train=tuple(_as_prompt(row) for row in left),
        held=tuple(_as_prompt(row) for row in held),
        digest=_digest(rows, held),
        ranks=None if columns.order is None else rank([row.order for row in left]),
        left_out=len(train) - len(left),
    )


def rank(values: Sequence[Any]) -> array[int]:
    """The place of each value among the different values, least first, from 0."""
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    return array("q", [places[value] for value in values])


def split_rows(rows: Sequence[Row], reading: Reading) -> tuple[list[Row], list[Row]]:
    """Keep for evaluation the rows whose id hashes below the share, at most the most, in the order of their hashes.

    With a share above 0 at least one family of rows is kept and at least one is left for training. Raises DataError if
    that cannot be done.
    """
    if reading.share == 0:
        return list(rows), []
    ranks = {family: key("rows-held", family) for family in dict.fromkeys(row.family for row in rows)}
    order = sorted(ranks, key=lambda family: ranks[family])
    if len(order) == 1:
        found = f"the one prompt of {reading.data} cannot be split"
        raise DataError("task.held_share", found, "Give more rows or held_share=0.")
    low = [family for family in order if ranks[family] < reading.share * 2**64]
    chosen = _fill(low[: len(order) - 1] or order[:1], rows, reading.most)
    held = [row for row in rows if row.family in chosen]
    return [row for row in rows if row.family not in chosen], sorted(held, key=lambda row: ranks[row.family])


def _fill(families: Sequence[str], rows: Iterable[Row], most: int) -> set[str]:
    """The first families whose rows are together at most `most`; the first one in any case."""
    counts = Counter(row.family for row in rows)
    chosen, total = set(families[:1]), counts[families[0]]
    for family in families[1:]:
        total += counts[family]
        if total > most:
            break
        chosen.add(family)
    return chosen


def _as_prompt(row: Row) -> Prompt:
    return Prompt(f"rows/{row.id}", row.messages, row.answer, "rows", row.meta, row.conversational)


def _digest(*parts: Sequence[Row]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for rows in parts:
        digest.update(f"{len(rows)} rows".encode())
        for row in rows:
            said = [(message.role, message.content) for message in row.messages]
            order = () if row.order is None else (row.order,)
            digest.update(repr((row.id, said, row.answer, row.meta, row.conversational, *order)).encode())
    return digest.hexdigest()
