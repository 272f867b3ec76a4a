"""Files that a configuration names: beside the YAML that names them, and found again from any directory."""

from __future__ import annotations

from collections.abc import Mapping
from glob import has_magic, iglob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covey.registry import Component

if TYPE_CHECKING:
    from covey.config.values import RunConfig

NAMING = ("task", "reward")
"""The parts of a configuration in which a text may be the path of a user's file."""
ROWS = ("data", "held_data")
"""Options that name rows."""


def beside(value: Any, folder: Path, *, option: str = "") -> Any:
    """Plain data with every relative path of something in `folder` led there: `data.jsonl`, `reward.py:score`.

    A text is a path if a file of that name with a suffix is there; where the option is called `data` or `held_data`, also if
    a folder is, or files that match a pattern. Anything else, absolute paths too, stays as it is.
    """
    if isinstance(value, str):
        return _beside(value, folder, option)
    if isinstance(value, Mapping):
        return {
            beside(name, folder) if isinstance(name, str) else name: beside(item, folder, option=str(name))
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(beside(item, folder, option=option) for item in value)
    return value


def _beside(text: str, folder: Path, option: str) -> str:
    name, colon, function = text.rpartition(":") if ".py:" in text else (text, "", "")
    if not name or len(name) > 1000 or "\0" in name or Path(name).is_absolute():
        return text
    try:
        there = (folder / name).is_file() if Path(name).suffix else option in ROWS and (folder / name).is_dir()
        there = there or (option in ROWS and has_magic(name) and any(iglob(str(folder / name), recursive=True)))
    except OSError:  # a text that no file could be called
        return text
    return f"{folder / name}{colon}{function}" if there else text


def anchor(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths of the files it names, to be stored: a run can go on from any directory.

    What was read for the tasks of the given one is not known to it.
    """
    found = {name: _anchor_part(part) for name in NAMING if (part := getattr(config, name)) is not None}
    return config.model_copy(update=found)


def _anchor_part(part: Any) -> Any:
    """A component with absolute paths. What it was made with besides its fields (functions, rows) stays."""
    if not isinstance(part, Component):
        return part
    changed: dict[str, Any] = {}
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, Component):
            changed[name] = _anchor_part(value)
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Component) for item in value):
            changed[name] = type(value)(_anchor_part(item) for item in value)
        elif isinstance(value, Mapping) and any(isinstance(item, Component) for item in value.values()):
            changed[name] = {key: _anchor_part(item) for key, item in value.items()}
        elif isinstance(value, (str, Mapping, list, tuple)):
            changed[name] = beside(value, Path.cwd(), option=name)
    return part.model_copy(update=changed)


def same(before: Any, after: Any) -> bool:
    """Whether two values are equal, or name the same file from the current directory."""
    return bool(before == after) or bool(
        beside(before, Path.cwd(), option="data") == beside(after, Path.cwd(), option="data")
    )
