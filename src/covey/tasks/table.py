"""Checking a user's rows: mappings become rows with a prompt and an answer, and every mistake is one line that says where."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from covey.errors import DataError
from covey.types import Message

ROLES = ("system", "user", "assistant", "tool")
USUAL = {
    "prompt_column": ("question", "problem", "query", "instruction", "input", "text", "messages", "conversations"),
    "answer_column": (
        "solution",
        "final_answer",
        "ground_truth",
        "target",
        "gold",
        "label",
        "reward_model.ground_truth",
    ),
}
"""What well-known data sets call their prompts and answers: proposed where the wanted column is absent, never guessed."""
_KINDS = {"NoneType": "null", "str": "text", "bool": "a boolean", "int": "a number", "float": "a number"}
_PLAIN = (str, int, bool, type(None))
_AS_TEXT = (decimal.Decimal, uuid.UUID)
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that have a meaning; of all others those in `keep` (None: all) travel to the reward.

    A name may lead into a column of objects: `reward_model.ground_truth`.
    """

    prompt: str = "prompt"
    answer: str = "answer"
    id: str = "id"
    answer_needed: bool = False
    keep: tuple[str, ...] | None = None
    order: str | None = None

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The columns that have to be read; None: all."""
        if self.keep is None:
            return None
        named = [self.prompt, self.answer, self.id, *self.keep, *([self.order] if self.order else [])]
        return tuple(dict.fromkeys([*named, *(name.partition(".")[0] for name in named)]))

    def travels(self, name: str) -> bool:
        """Whether a column goes to the reward under its own name; the gold answer goes as `answer` in any case."""
        return name not in (self.prompt, "answer") and (self.keep is None or name in self.keep)


@dataclass(slots=True)
class Row:
    """One checked row. `family` is shared by rows with the same prompt that were given no id, so they stay together.

    `order` is the row's value in the column that decides on the order.
    """

    id: str
    family: str
    messages: tuple[Message, ...]
    answer: str | None
    meta: Mapping[str, Any] = field(default_factory=dict)
    conversational: bool = False
    order: float | str | None = None


def number_rows(rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Values given in Python, each with its place, `row N` from 0."""
    return ((f"row {number}", value) for number, value in enumerate(rows))


def check_rows(values: Iterable[tuple[str, Any]], source: str, columns: Columns) -> list[Row]:
    """All rows, checked. Raises DataError at the first mistake, at a repeated id, and if there is no row."""
    rows: list[Row] = []
    places: dict[str, str] = {}
    counts: dict[str, int] = {}
    for where, value in values:
        row = check_row(value, where, columns)
        if row.family != row.id:  # no id was given: rows of one family are told apart by their count
            counts[row.family] = counts.get(row.family, 0) + 1
            row.id = f"{row.family}-{counts[row.family]}"
        if row.id in places:
            raise DataError(where, f"id {row.id!r} was used before ({places[row.id]})", "Give every row its own id.")
        if rows and isinstance(row.order, str) != isinstance(rows[0].order, str):
            found = f"{columns.order} is {_name(row.order)}, but {_name(rows[0].order)} in the first row"
            raise DataError(where, found, "Give numbers everywhere, or text.")
        places[row.id] = where
        rows.append(row)
    if not rows:
        raise DataError(source, "it holds no rows", "Give at least one row.")
    return rows


def check_row(value: Any, where: str, columns: Columns) -> Row:
    """One row: a mapping with a prompt (text or messages), perhaps an answer and an id, and further columns."""
    if not isinstance(value, Mapping):
        raise DataError(where, f"a row is an object, not {_name(value)}", f'Write {{"{columns.prompt}": ...}}.')
    wanted = columns.wanted
    names = value if wanted is None else [name for name in wanted if name in value]
    row = {str(name): plain_value(value[name], where, str(name)) for name in names}
    prompt = find(row, columns.prompt)
    if prompt is _ABSENT:
        raise _absent(where, columns.prompt, value, "prompt_column")
    answer = find(row, columns.answer)
    if answer is _ABSENT and columns.answer_needed:
        raise _absent(where, columns.answer, value, "answer_column")
    messages = check_prompt(prompt, where, columns.prompt)
    own = _check_id(row, where, columns.id)
    number = {"answer": answer} if isinstance(answer, int | float) else {}  # TRL's functions are given it as it is
    return Row(
        id=own or "",
        family=own or _digest(messages),
        messages=messages,
        answer=_check_answer(None if answer is _ABSENT else answer, where, columns),
        meta={name: item for name, item in row.items() if columns.travels(name)} | number,
        conversational=not isinstance(prompt, str),
        order=None if columns.order is None else _check_order(row, where, columns.order),
    )


def find(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column by its name or, where no column is called so, by the dotted way into a column of objects."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _absent(where: str, name: str, row: Mapping[str, Any], option: str) -> DataError:
    """There is no such column: which there are, and which of them is the likely one."""
    usual = [near for near in USUAL[option] if find(row, near) is not _ABSENT]
    hint = f" Perhaps task.{option}={usual[0]}." if usual else ""
    return DataError(where, f"there is no column '{name}'", f"It has: {', '.join(map(str, row)) or 'none'}.{hint}")


def plain_value(value: Any, where: str, column: str) -> Any:
    """A value as JSON holds it: dates and decimals become text, arrays lists.

    Raises DataError for what JSON cannot hold: bytes, images, NaN and other objects.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise DataError(where, f"column '{column}' is nested too deeply", "Take the column out.") from None
    except ValueError as error:
        right = "Turn it into text or numbers, or leave the column out: task.keep_columns names those to keep."
        raise DataError(where, f"column '{column}' holds {error}", right) from None


def _plain(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("NaN" if math.isnan(value) else f"{float(value)}")
        return float(value)
    if isinstance(value, Mapping):
        if odd := next((name for name in value if not isinstance(name, str)), None):
            raise ValueError(f"an object with the key {odd!r:.40}")
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, _AS_TEXT):
        return str(value)
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and the like
        return _plain(value.tolist())
    if isinstance(value, str | int):
        return str(value) if isinstance(value, str) else int(value)
    raise ValueError(f"a value of type {type(value).__name__}")


def check_prompt(value: Any, where: str, name: str) -> tuple[Message, ...]:
    """The messages of a prompt: text is one user message; a list has roles and contents and does not end in a reply."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(where, f"{name} is empty", "Give text or a list of messages.")
        return (Message("user", value),)
    if not isinstance(value, list | tuple) or not value:
        raise DataError(where, f"{name} is {_name(value)}", "Give text or a list of messages.")
    messages = tuple(_check_message(item, where, f"{name}[{place}]") for place, item in enumerate(value))
    if messages[-1].role == "assistant":
        raise DataError(where, f"the last message of {name} is from the assistant", "End with what is to be answered.")
    return messages


def _check_message(value: Any, where: str, name: str) -> Message:
    """One message. Further keys are an error unless they are null, as in tables, where every message has every key."""
    keys = {key for key, item in value.items() if item is not None} if isinstance(value, Mapping) else set()
    if not isinstance(value, Mapping) or not keys <= {"role", "content"} <= set(value):
        found = f"has keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"is {_name(value)}"
        raise DataError(where, f"{name} {found}", "A message has exactly role and content.")
    role, content = value["role"], value["content"]
    if role not in ROLES:
        raise DataError(where, f"{name} has role {role!r}", f"Roles are: {', '.join(ROLES)}.")
    if not isinstance(content, str):
        raise DataError(where, f"the content of {name} is {_name(content)}", "Give text.")
    return Message(role, content)


def _check_answer(value: Any, where: str, columns: Columns) -> str | None:
    if value is None:
        if columns.answer_needed:
            raise DataError(where, f"{columns.answer} is null", "This reward compares with an answer.")
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(where, f"{columns.answer} is {_name(value)}", "An answer is text or a number.")
    return value if isinstance(value, str) else json.dumps(value)


def _check_id(row: Mapping[str, Any], where: str, name: str) -> str | None:
    given = find(row, name)
    if given is _ABSENT or given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        raise DataError(where, f"{name} is {_name(given)}", "An id is text or a whole number.")
    return str(given)


def _check_order(row: Mapping[str, Any], where: str, name: str) -> float | str:
    value = find(row, name)
    if value is _ABSENT:
        raise DataError(where, f"there is no column '{name}'", f"task.order needs it. It has: {', '.join(row)}.")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(where, f"{name} is {_name(value)}", "The order of rows follows numbers or text.")
    return value


def _name(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, Mapping) else _KINDS.get(type(value).__name__, type(value).__name__)


def _digest(messages: Sequence[Message]) -> str:
    text = json.dumps([[message.role, message.content] for message in messages])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
