"""A new task's folder: data, a reward with tests, settings with comments, and what to do next."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from covey import files
from covey.config.values import DEFAULT_MODEL, NAME
from covey.errors import ConfigError, DataError
from covey.folder import check_free
from covey.models import list_models
from covey.preflight import starter
from covey.recipes import DEFAULT
from covey.tasks.sources import read

PROMPTS = ("prompt", "question", "problem", "messages", "instruction", "query", "input", "text")
ANSWERS = ("answer", "solution", "target", "gold", "ground_truth", "label", "expected", "response", "output")
"""Names under which other data sets keep what is asked and what is right, the likeliest first."""
LOOKED_AT = 8
"""Rows whose columns are looked at."""


@dataclass(frozen=True, slots=True)
class Found:
    """A user's data: its columns by meaning, all its columns, and one answer to show."""

    prompt: str
    answer: str | None
    columns: tuple[str, ...]
    example: str


def new_task(name: str, *, model: str = DEFAULT_MODEL, data: str | None = None, home: Path = Path()) -> list[Path]:
    """Write the folder of a task; returns its files. A used folder is refused (OutputError)."""
    folder = home / name
    if not name or not re.fullmatch(NAME, folder.name) or folder.name == "runs":
        right = "Use letters, digits and . _ @ -, first a letter or digit, up to 100."
        raise ConfigError("covey new", f"{name!r:.60} cannot name a task", right)
    check_free(folder, right="Choose another name, or train what is there: covey train {out}.")
    found = None if data is None else look_at(data)
    with files.reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    texts = write_sample(folder.name, model) if data is None or found is None else write_own(folder, model, data, found)
    for file, text in texts.items():
        files.write_atomic(folder / file, text.encode())
    return [folder / file for file in texts]


def write_sample(name: str, model: str) -> dict[str, str]:
    """Files of a task on which the embedded model learns something in seconds."""
    rows = starter.sample_rows()
    first = json.loads(rows.splitlines()[0])
    about = '    Here a model may rewrite step by step, "A(bcde)=edcb.": only what follows the last = counts.'
    right = f"{first['answer']}."
    reward = starter.REWARD.substitute(
        name=name,
        about=about,
        expression='completion.rpartition("=")[2].strip().rstrip(".")',
        right=_quote(f"{first['prompt']}{right}"),
        wrong=_quote(f"{first['answer'][::-1]}."),
        answer=_quote(first["answer"]),
    )
    line = "data: data.jsonl  # a problem per line: prompt, answer, and what else the reward wants to know"
    return {
        "data.jsonl": rows,
        "reward.py": reward,
        "run.yaml": _settings(name, model, line, max_tokens=24),
        "README.md": starter.README.substitute(name=name, data_file="data.jsonl", about=starter.ABOUT_ROWS),
    }


def write_own(folder: Path, model: str, data: str, found: Found) -> dict[str, str]:
    """Files of a task on the user's own data, which stay where they are."""
    name, here = folder.name, Path(data).expanduser()
    local = here.exists() or glob.has_magic(data)
    path = os.path.relpath(here.absolute(), folder.absolute()) if local else data
    if found.answer is None:
        reward = starter.UNANSWERED.substitute(name=name, columns=", ".join(found.columns))
    else:
        reward = starter.REWARD.substitute(
            name=name,
            about="    Here the whole response has to be the answer; say what counts in yours.",
            expression='completion.strip().rstrip(".")',
            right=_quote(f"{found.example}."),
            wrong=_quote(f"not {found.example}"),
            answer=_quote(found.example),
        )
    line = f"data: {_plain(path)}  # it has the columns {', '.join(found.columns)}"
    line += "".join(f"\ntask.{kind}_column: {_plain(own)}" for kind, own in _renamed(found))
    return {
        "reward.py": reward,
        "run.yaml": _settings(name, model, line, max_tokens=24 if model in list_models() else 512),
        "README.md": starter.README.substitute(name=name, data_file=path, about=""),
    }


def look_at(data: str) -> Found:
    """The columns of the first rows of a file, folder or hub id. Raises MissingInputError, DataError."""
    rows: list[Mapping[str, Any]] = []
    for where, row in islice(read(data), LOOKED_AT):
        if not isinstance(row, Mapping):
            raise DataError(where, "a row is an object", 'Write {"prompt": ...}.')
        rows.append(row)
    if not rows:
        raise DataError(data, "it holds no rows", "Give at least one row.")
    columns = tuple(dict.fromkeys(str(name) for row in rows for name in row))
    prompt = next((name for name in PROMPTS if name in columns), None)
    if prompt is None:
        right = f"One of {', '.join(PROMPTS)} has to hold what is asked."
        raise DataError(data, f"it has the columns {', '.join(columns)}", right)
    answer = next((name for name in ANSWERS if name in columns and name != prompt), None)
    example = "" if answer is None else next((row[answer] for row in rows if row.get(answer) is not None), "")
    return Found(prompt, answer, columns, example if isinstance(example, str) else json.dumps(example))


def _renamed(found: Found) -> list[tuple[str, str]]:
    pairs = (("prompt", found.prompt), ("answer", found.answer))
    return [(kind, own) for kind, own in pairs if own is not None and own != kind]


def _settings(name: str, model: str, data: str, *, max_tokens: int) -> str:
    tiny = model in list_models()
    return starter.SETTINGS.substitute(
        name=name,
        model=_plain(model),
        data=data,
        recipe=DEFAULT,
        steps=100,
        max_tokens=max_tokens,
        lr="7e-4" if tiny else "1e-6",
    )


def _plain(text: str) -> str:
    """A text as YAML reads it: with quotes only where it needs them."""
    return (
        text
        if re.fullmatch(r"[A-Za-z_./][\w./-]*", text) and text not in ("true", "false", "null")
        else json.dumps(text)
    )


def _quote(text: str) -> str:
    """A text as Python writes it, with double quotes."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)
