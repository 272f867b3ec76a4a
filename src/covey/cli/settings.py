"""What commands have in common: their KEY=VALUE arguments and options, and how data is printed."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covey.errors import CoveyError, MissingInputError, did_you_mean

if TYPE_CHECKING:
    from covey.config import Resolved

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings; short keys: recipe model task data reward steps seed."),
]
TaskSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TASK] [KEY=VALUE]",
        help="A task's folder or YAML file, and settings; short keys: recipe model task data reward steps seed.",
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="YAML with settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


ANSWERING = (
    "model.dtype",
    "model.quantize",
    "model.system",
    "model.chat_template_kwargs",
    "model.thinking",
    "task",
    "reward",
    "scoring",
    "engines.threads",
    "budget.seed",
)
"""Keys that every command reads which has a model answer."""


def resolve_settings(settings: Sequence[str] | None, file: Path | None) -> Resolved:
    """The configuration of `KEY=VALUE` arguments on top of a file, which may stand first among them as TASK."""
    from covey.config import resolve

    task, flags = split_task(settings)
    if task is not None and file is not None:
        raise CoveyError("--config", f"'{settings[0]}' is a configuration too", "Give one of them.")  # type: ignore[index]
    return resolve(flags, file=task or file)


def split_task(settings: Sequence[str] | None) -> tuple[Path | None, list[str]]:
    """The YAML file that the first argument names by itself or by its folder, and the other arguments.

    Raises MissingInputError for a folder without `run.yaml`; and for a word that is no task and no key.
    """
    first, *rest = [*(settings or ()), ""][:-1] or [""]
    path = Path(first)
    if first and "=" not in first and path.is_dir():
        if not (path / "run.yaml").is_file():
            right = f"Make a task with `covey new {path.name or 'my-task'}`, or write KEY=VALUE."
            raise MissingInputError(first, "the folder has no run.yaml", right)
        return path / "run.yaml", rest
    if path.suffix in (".yaml", ".yml") and "=" not in first:
        return path, rest
    if first and "=" not in first and not _is_key(first):
        raise MissingInputError(first, "neither a setting nor a task's folder", _meant(first))
    return None, list(settings or ())


def _is_key(word: str) -> bool:
    from covey.config import RunConfig
    from covey.config.layers import SHORT

    return word in SHORT or word in RunConfig.model_fields


def _meant(word: str) -> str:
    near = did_you_mean(word, _tasks_here())
    if near.startswith("Did"):
        return near
    if Path(word).is_file():
        return f"A file of rows is data={word}, or a task made of it: covey new TASK --data {word}."
    return f"`covey new {word}` makes a task; settings are written KEY=VALUE, such as steps=100."


def _tasks_here() -> list[str]:
    """Folders of the current directory with settings in them."""
    return [path.parent.name for path in Path().glob("*/run.yaml")]


def print_json(data: Any) -> None:
    """Plain data as JSON; numbers that are not finite become null."""
    typer.echo(json.dumps(_finite(data), indent=1, ensure_ascii=False))


def print_rich(*parts: Any, to_stderr: bool = False) -> None:
    """Tables and text for the terminal."""
    from rich.console import Console

    if (sys.stderr if to_stderr else sys.stdout).isatty():
        Console(highlight=False, stderr=to_stderr).print(*parts, sep="\n")
        return
    # Without a terminal lines are as long as they need to be: they are read by programs.
    console = Console(highlight=False, width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()), err=to_stderr)


def read_run_config(folder: Path) -> Path:
    """The configuration file of a run folder."""
    file = folder / "run.yaml"
    if not file.is_file():
        found = "has no run.yaml" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise MissingInputError(str(folder), found, "Give the folder of a run, such as runs/NAME-1.")
    return file


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
