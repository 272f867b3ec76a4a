"""The layers of a configuration, later wins: defaults < the model's own covey.yaml < file < values and KEY=VALUE.

Every layer becomes a list of assignments to paths. They are merged first (an assignment takes away what earlier layers said at or
below its path) and applied once, whole parts before dotted ones, so the order in which keys are written never matters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from covey import recipes
from covey.config.nearest import suggest
from covey.config.paths import NAMING, beside
from covey.config.text import read, read_setting, read_text
from covey.config.values import DEFAULT_MODEL, DEFAULT_TASK, NAME, RunConfig, Section, as_recipe, section_of
from covey.errors import ConfigError, did_you_mean
from covey.models import find_model
from covey.registry import Component, Value, kinds, plain

SHORT = {
    "steps": ("budget", "steps"), "seed": ("budget", "seed"), "model": ("model", "path"), "data": ("task",),
    "report_to": ("report", "to"),
}  # fmt: skip
"""Short keys; `recipe`, `task` and `reward` are whole parts already."""
ROWS = ("rows", "data")
"""The kind of the task that `data=FILE` means, and the option that holds the file."""
SECTIONS = ("model", "budget", "engines", "scoring", "report")
MODEL_FILE = "covey.yaml"
TASK_FILE = "run.yaml"
"""A file of this name that names no run names it after its folder."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One value at one path; `key` is what was written, `origin` where: `model tiny`, `FILE:LINE`, `flag`, `argument`."""

    path: tuple[str, ...]
    value: Any
    origin: str
    key: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration and where its values come from; `assignments` hold only what differs from the defaults by being said."""

    config: RunConfig
    assignments: tuple[Assignment, ...]

    def origin(self, path: str) -> str:
        """Where the value at a dotted path comes from: `default`, or the origin of the most specific assignment above it."""
        return find_origin(path, self.assignments) or "default"


def resolve(
    flags: Sequence[str] = (), *, file: Path | None = None, values: Mapping[str, Any] | None = None
) -> Resolved:
    """The configuration of a run. `flags` are `KEY=VALUE` texts, `values` the same from Python, where objects are allowed."""
    said = [] if file is None else [read_layer(file)]
    said.append(list_assignments(values or {}, origin="argument"))
    said.append([parse_flag(flag) for flag in flags])
    for layer in said:
        refuse_twice(layer)
    named = [item.value for layer in said for item in layer if item.path == ("model", "path")]
    own = read_model_layer(named[-1] if named else DEFAULT_MODEL)
    merged = merge([own, *said])
    try:
        return Resolved(apply(merged), tuple(merged))
    except ConfigError as error:
        origin = find_origin(error.where, merged)
        if origin in (None, "flag", "argument"):
            raise
        raise ConfigError(f"{origin}: {error.where}", error.found, error.right) from None


def parse_flag(text: str) -> Assignment:
    """One `KEY=VALUE` of the command line."""
    key, value = read_setting(text, (*SHORT, *RunConfig.model_fields))
    return assign(key, value, "flag")


def read_layer(file: Path) -> list[Assignment]:
    """The assignments of a YAML file. Files that it names for data and reward are looked for beside it first."""
    data, lines = read(read_text(file), str(file))
    found = [
        replace(item, value=beside(item.value, file.parent, option=item.path[-1])) if item.path[0] in NAMING else item
        for item in list_assignments(data, origin=str(file), lines=lines)
    ]
    own = file.absolute().parent.name
    if file.name == TASK_FILE and "name" not in data and re.fullmatch(NAME, own):
        found.append(Assignment(("name",), own, str(file), "name"))
    return found


def read_model_layer(model: Any) -> list[Assignment]:
    """What a model's own `covey.yaml` says: the budget and engines that suit it, nothing else."""
    if not isinstance(model, str):
        return []
    file = Path(find_model(model)).expanduser() / MODEL_FILE
    if not file.is_file():
        return []
    data, _ = read(read_text(file), str(file))
    for name in data:
        if name.partition(".")[0] not in ("budget", "engines"):
            raise ConfigError(f"{file}: {name}", "a model may only set its budget and engines", "Take it out.")
    return list_assignments(data, origin=f"model {model}")


def list_assignments(
    data: Mapping[str, Any], *, origin: str, lines: Mapping[tuple[str, ...], int] | None = None, prefix: str = ""
) -> list[Assignment]:
    """The assignments of nested data with dotted keys. A mapping with `kind`, or a recipe with its name, is one value."""
    found: list[Assignment] = []
    for name, value in data.items():
        key = f"{prefix}{name}"
        whole = not isinstance(value, Mapping) or not value or "kind" in value or key == "data"
        whole = whole or (key == "recipe" and "name" in value)
        if not whole:
            found += list_assignments(value, origin=origin, lines=lines, prefix=f"{key}.")
            continue
        line = (lines or {}).get(tuple(key.split(".")))
        found.append(assign(key, value, origin if line is None else f"{origin}:{line}"))
    return found


def assign(key: str, value: Any, origin: str) -> Assignment:
    """The assignment that a key means; `data=FILE` is a task."""
    if key == "data":
        value = name_task(value)
    path = SHORT.get(key, tuple(key.split(".")))
    if path == ("model", "path") and isinstance(value, Path):
        value = str(value)
    return Assignment(path, value, origin, key)


def name_task(data: Any) -> Any:
    """The task that `data=` means: rows, or a mixture of several sources, in a list or by name. Plain data of tasks stays."""
    if isinstance(data, Mapping) and "kind" not in data:
        return {"kind": "mixture", "tasks": {name: name_task(part) for name, part in data.items()}}
    if isinstance(data, (list, tuple)):
        return {
            "kind": "mixture",
            "tasks": {name: name_task(part) for name, part in zip(name_files(data), data, strict=True)},
        }
    return (
        data if isinstance(data, Mapping) else {"kind": ROWS[0], ROWS[1]: str(data) if isinstance(data, Path) else data}
    )


def name_files(paths: Sequence[Any]) -> list[str]:
    """A name for each of several files, folders or hub ids: its own without endings, with a number where it occurs again."""
    names: list[str] = []
    for path in paths:
        own = re.sub(r"[^A-Za-z0-9_]+", "-", Path(str(path)).name.split(".")[0]).strip("-_") or "data"
        again = sum(name == own or name.startswith(f"{own}-") for name in names)
        names.append(f"{own}-{again + 1}" if own in names else own)
    return names


def refuse_twice(layer: Sequence[Assignment]) -> None:
    """Refuse a layer that says two things about one path."""
    seen: dict[tuple[str, ...], Assignment] = {}
    for item in layer:
        other = seen.setdefault(item.path, item)
        if other is item:
            continue
        found = "given twice" if other.key == item.key else f"'{other.key}' says the same thing"
        raise ConfigError(item.key, found, "Give one of them.")


def merge(layers: Iterable[Sequence[Assignment]]) -> list[Assignment]:
    """One list, shallow paths first; what a layer assigns replaces all that earlier layers said at or below that path."""
    merged: list[Assignment] = []
    for layer in layers:
        paths = {item.path for item in layer}
        kept = [old for old in merged if not any(old.path[: len(path)] == path for path in paths)]
        merged = [*kept, *layer]
    return sorted(merged, key=lambda item: len(item.path))


def find_origin(path: str, assignments: Sequence[Assignment]) -> str | None:
    """The origin of the deepest assignment at or above a dotted path; else of the first one below it."""
    parts = tuple(path.split("."))
    above = [item for item in assignments if parts[: len(item.path)] == item.path]
    below = [item for item in assignments if item.path[: len(parts)] == parts]
    if above:
        return max(above, key=lambda item: len(item.path)).origin
    return below[0].origin if below else None


def apply(assignments: Sequence[Assignment]) -> RunConfig:
    """The configuration that assignments give on top of the defaults."""
    own: dict[str, list[Assignment]] = {name: [] for name in RunConfig.model_fields}
    for item in assignments:
        if item.path[0] not in own:
            raise ConfigError(item.key, "there is no such key", suggest(item.key, list_keys()))
        own[item.path[0]].append(item)
    parts: dict[str, Any] = {}
    for name in SECTIONS:
        parts[name] = edit_section(name, own[name])
    if own["name"]:
        parts["name"] = own["name"][-1].value
    parts["task"] = edit_component("task", own["task"], DEFAULT_TASK)
    parts["reward"] = edit_component("reward", own["reward"], None)
    parts["recipe"] = edit_recipe(own["recipe"])
    return RunConfig.of(parts)


def edit_section(name: str, assignments: Sequence[Assignment]) -> dict[str, Any]:
    """Plain data of a section with its assignments."""
    tree: dict[str, Any] = {name: plain(RunConfig.model_fields[name].default)}
    for item in assignments:
        place = tree
        for depth, part in enumerate(item.path[:-1], start=1):
            inner = place.get(part)
            if inner is None and (missing := find_section(item.path[:depth])) is not None:
                inner = place[part] = plain(missing())
            if not isinstance(inner, dict):
                raise ConfigError(item.key, "there is no such key", suggest(item.key, list_keys()))
            place = inner
        last = item.path[-1]
        if last not in place:
            raise ConfigError(item.key, "there is no such key", suggest(item.key, list_keys()))
        if isinstance(place[last], dict) and find_section(item.path) is not None and item.value is not None:
            raise ConfigError(item.key, f"got {item.value!r:.60}", f"It has keys: {', '.join(place[last])}.")
        place[last] = item.value
    section: dict[str, Any] = tree[name]
    return section


def find_section(path: Sequence[str]) -> type[Section] | None:
    """The section at a path, whether it is always there or may be null; None for a single value."""
    owner: type[Value] = RunConfig
    for part in path:
        info = owner.model_fields.get(part)
        inner = None if info is None else section_of(info.annotation)
        if inner is None:
            return None
        owner = inner
    return owner  # type: ignore[return-value]


def edit_component(stage: str, assignments: Sequence[Assignment], default: Any) -> Any:
    """What builds a component: the whole assignment (or the default) with the dotted ones in it."""
    value = default
    for item in assignments:
        if len(item.path) == 1:
            value = item.value
            continue
        if isinstance(value, Component):
            value = plain(value)
        if isinstance(value, str):
            value = {"kind": "function", "function": value} if ":" in value else {"kind": value}
        if isinstance(value, list):
            value = {"kind": "mix", "rewards": value}
        if not isinstance(value, dict):
            raise ConfigError(item.key, f"the run has no {stage} of its own", f"Name one first: {stage}=KIND.")
        value = edit_options(stage, value, item)
    return value


def edit_options(stage: str, value: dict[str, Any], item: Assignment) -> dict[str, Any]:
    """Plain data of a component with one option changed."""
    cls = kinds(stage).get(str(value.get("kind")))
    if cls is None:
        return value  # building it names the mistake
    field, rest = item.path[1], item.path[2:]
    if field not in cls.model_fields:
        above = item.key.rsplit(".", len(rest) + 1)[0]
        options = [f"{above}.{name}" for name in cls.model_fields]
        raise ConfigError(item.key, f"{stage} '{cls.kind}' has no option '{field}'", suggest(item.key, options))
    if not rest:
        return {**value, field: item.value}
    inner = value.get(field, plain(cls.model_fields[field].get_default(call_default_factory=True)))
    if isinstance(inner, dict) and len(rest) > 1 and field == "tasks":
        return {**value, field: {**inner, rest[0]: edit_source(stage, inner, replace(item, path=(stage, *rest)))}}
    if not isinstance(inner, dict) or len(rest) > 1:
        raise ConfigError(item.key, f"{stage}.{field} has no parts", f"Write {stage}.{field}=VALUE.")
    return {**value, field: {**inner, rest[0]: item.value}}


def edit_source(stage: str, sources: Mapping[str, Any], item: Assignment) -> Any:
    """Plain data of one of several components by name, with one option of it changed."""
    name = item.path[1]
    if name not in sources:
        raise ConfigError(item.key, f"there is no source '{name}'", did_you_mean(name, sources))
    own = sources[name]
    own = {"kind": own} if isinstance(own, str) else own
    return edit_options(stage, own, replace(item, path=(stage, *item.path[2:])))


def edit_recipe(assignments: Sequence[Assignment]) -> Any:
    """The recipe: the whole assignment (or the default) with all dotted ones at once."""
    base = recipes.get(recipes.DEFAULT)
    edits: dict[str, Any] = {}
    for item in assignments:
        if len(item.path) == 1:
            base = as_recipe(item.value)
        else:
            edits[".".join(item.path[1:])] = item.value
    return base.but(**edits) if edits else base


def list_keys() -> list[str]:
    """Every key that can be written, sections and the options of all components included."""
    from covey.config.schema import list_options, list_rows

    paths = [row.path for row in (*list_rows(), *list_options())]
    sections = [path.rpartition(".")[0] for path in paths if "." in path]
    return [*dict.fromkeys((*SHORT, *RunConfig.model_fields, *sections, *paths))]
