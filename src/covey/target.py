"""What a command after a run works on: a model by itself, or one of those that a run keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covey.errors import ConfigError, MissingInputError, did_you_mean

if TYPE_CHECKING:
    from covey.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A model as in `model.path`; of a run also the run's folder, and after which step the model stood (None: unknown)."""

    named: str
    model: str
    run: Path | None = None
    step: int | None = None


def find_target(named: str, *, best: bool = False, step: int | None = None) -> Target:
    """The model of a run: of its end or else of its newest checkpoint, its best one, or the checkpoint of a step.

    A name that is no run's folder is a model, of which there is only one. Raises MissingInputError for what a run does not have.
    """
    if best and step is not None:
        raise ConfigError("--best", "given beside --step", "Give one of them.")
    folder = Path(named).expanduser()
    if not (folder / "run.yaml").is_file():
        if best or step is not None:
            asked = "--best" if best else "--step"
            raise ConfigError(asked, f"{named} is no run", "Only a run's folder has several models.")
        return Target(named=named, model=named)
    model, at = _best(folder) if best else _newest(folder) if step is None else _checkpoint(folder, step)
    return Target(named=named, model=str(model), run=folder, step=at)


def newest_model(folder: Path) -> Path:
    """The model of a run: of its end, or else of its newest checkpoint."""
    return _newest(folder)[0]


def _newest(folder: Path) -> tuple[Path, int | None]:
    if (folder / "model").is_dir():
        return folder / "model", _read_step(folder / "end.json")
    from covey.checkpoint import load

    found = load(folder)
    if not found.model.is_dir():
        raise MissingInputError(str(folder), "has no model yet", "Wait for its first checkpoint.")
    return found.model, found.step


def _best(folder: Path) -> tuple[Path, int | None]:
    model = folder / "best" / "model"
    if not model.is_dir():
        raise MissingInputError(str(folder), "has no best model", "A run with budget.best.metric keeps one in best/.")
    return model, _read_step(folder / "best" / "best.json")


def _checkpoint(folder: Path, step: int) -> tuple[Path, int]:
    from covey import files

    chosen = folder / "checkpoints" / f"step-{step:06d}"
    if not chosen.is_dir():
        kept = [int(path.name[5:]) for path in sorted((folder / "checkpoints").glob("step-[0-9]*"))]
        right = f"It keeps {', '.join(map(str, kept))}." if kept else "It keeps none."
        raise MissingInputError(str(folder), f"keeps no checkpoint of step {step}", right)
    if reason := files.fault(chosen):
        raise MissingInputError(str(chosen), reason, "Choose another checkpoint.")
    return chosen / "model", step


def _read_step(file: Path) -> int | None:
    """The step that a small JSON file tells; None where it does not."""
    try:
        step = json.loads(file.read_text(encoding="utf-8")).get("step")
    except (OSError, ValueError, AttributeError):
        return None
    return step if isinstance(step, int) else None


def resolve_target(target: Target, flags: Sequence[str] = ()) -> RunConfig:
    """The configuration that goes with a target: the run's own, or the defaults with that model; flags on top."""
    from covey.config import resolve

    if target.run is None:
        return resolve(flags, values={"model": target.model}).config
    return resolve([*flags, f"model.path={target.model}"], file=target.run / "run.yaml").config


def check_flags(
    flags: Sequence[str], named: str, reads: Sequence[str], what: str, *, short: Sequence[str] = ()
) -> None:
    """Refuse settings that the command does not read (`short`: other names of such), and another model than the named one."""
    from covey.config.layers import parse_flag

    for flag in flags:
        item = parse_flag(flag)
        path = ".".join(item.path)
        if path == "model.path":
            raise ConfigError(item.key, f"the model is {named} already", "Leave it out.")
        if not any(path == key or path.startswith(f"{key}.") for key in reads):
            near = did_you_mean(item.key, {*reads, *(key.rpartition(".")[2] for key in reads), *short})
            hint = near if near.startswith("Did") else ""
            raise ConfigError(item.key, f"{what} does not read it", f"{hint} It reads: {', '.join([*short, *reads])}.")


def split_words(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Names of what a command works on, and KEY=VALUE settings. A file or folder that is there is a name, whatever it holds."""
    names: list[str] = []
    flags: list[str] = []
    for word in words or ():
        (flags if "=" in word and not Path(word).expanduser().exists() else names).append(word)
    return names, flags


def portable(value: Any) -> Any:
    """Plain data without the folders of this machine: of an absolute path only its last part."""
    if isinstance(value, Mapping):
        return {name: portable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~/")) and value.count("/") > 1:
        return Path(value).name or value
    return value


def plain_setting(config: RunConfig, key: str) -> Any:
    """The plain value of a dotted key."""
    value: Any = config.plain()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
