"""Reading a user's rows: JSON lines or mappings become checked rows, and every mistake is one line that says where."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from covey.errors import DataError, MissingInputError
from covey.types import Message

ROLES = ("system", "user", "assistant", "tool")
_KINDS = {"NoneType": "null", "str": "text", "bool": "a boolean", "int": "a number", "float": "a number"}


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that have a meaning; all others travel to the reward as they are."""

    prompt: str = "prompt"
    answer: str = "answer"
    id: str = "id"
    answer_needed: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One checked row. `family` is shared by rows with the same prompt that were given no id, so they stay together."""

    id: str
    family: str
    messages: tuple[Message, ...]
    answer: str | None
    meta: Mapping[str, Any] = field(default_factory=dict)
    conversational: bool = False


def read_lines(path: str) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines, each with its place, `FILE line N`; blank lines are skipped.

    Raises MissingInputError if the file cannot be read, DataError if it is not UTF-8 or a line is not JSON.
    """
    file = Path(path)
    if not file.is_file():
        found = "this is a folder" if file.is_dir() else "there is no such file"
        raise MissingInputError(path, found, "Give a file of JSON lines.")
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise MissingInputError(path, f"it cannot be read ({error.strerror})") from None
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield f"{path} line {number}", _parse(line, f"{path} line {number}")


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(where, f"byte {error.start + 1} is not UTF-8", "Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise DataError(where, f"no JSON: {error.msg} at column {error.colno}", "Write one object per line.") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(where, f"no JSON: {reason}", "Write one object per line.") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def number_rows(rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Values given in Python, each with its place, `row N` from 0."""
    return ((f"row {number}", value) for number, value in enumerate(rows))


def check_rows(values: Iterable[tuple[str, Any]], source: str, columns: Columns) -> tuple[Row, ...]:
    """All rows, checked. Raises DataError at the first mistake, at a repeated id, and if there is no row."""
    rows: list[Row] = []
    places: dict[str, str] = {}
    counts: dict[str, int] = {}
    for where, value in values:
        row = check_row(value, where, columns)
        if row.family != row.id:  # no id was given: rows of one family are told apart by their count
            counts[row.family] = counts.get(row.family, 0) + 1
            row = replace(row, id=f"{row.family}-{counts[row.family]}")
        if row.id in places:
            raise DataError(where, f"id {row.id!r} was used before ({places[row.id]})", "Give every row its own id.")
        places[row.id] = where
        rows.append(row)
    if not rows:
        raise DataError(source, "it holds no rows", "Give at least one row.")
    return tuple(rows)


def check_row(value: Any, where: str, columns: Columns) -> Row:
    """One row: a mapping with a prompt (text or messages), perhaps an answer and an id, and further columns."""
    if not isinstance(value, Mapping):
        raise DataError(where, f"a row is an object, not {_name(value)}", f'Write {{"{columns.prompt}": ...}}.')
    wanted = (columns.prompt, columns.answer) if columns.answer_needed else (columns.prompt,)
    for name in wanted:
        if name not in value:
            raise DataError(where, f"there is no column '{name}'", f"It has: {', '.join(map(str, value)) or 'none'}.")
    messages = check_prompt(value[columns.prompt], where, columns.prompt)
    answer = _check_answer(value.get(columns.answer), where, columns)
    conversational = not isinstance(value[columns.prompt], str)
    known = (columns.prompt, columns.answer, columns.id)
    meta = {str(name): item for name, item in value.items() if name not in known}
    given = value.get(columns.id)
    if given is None:
        family = _digest(messages)
        return Row("", family, messages, answer, meta, conversational)
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        raise DataError(where, f"{columns.id} is {_name(given)}", "An id is text or a whole number.")
    return Row(str(given), str(given), messages, answer, meta, conversational)


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
    if not isinstance(value, Mapping) or set(value) != {"role", "content"}:
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


def _name(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, Mapping) else _KINDS.get(type(value).__name__, type(value).__name__)


def _digest(messages: tuple[Message, ...]) -> str:
    text = json.dumps([[message.role, message.content] for message in messages])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
