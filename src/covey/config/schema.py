"""Every key of the configuration as a table and as JSON schema."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from covey import recipes
from covey.config.values import DEFAULT_TASK, RunConfig, section_of
from covey.recipes.recipe import MANY, STAGES, Recipe
from covey.registry import Component, kinds, plain

COMPONENTS = {**{f"recipe.{field}": stage for field, stage in STAGES.items()}, "task": "task", "reward": "reward"}
"""Paths that hold components -> their stage."""


@dataclass(frozen=True, slots=True)
class Row:
    """One key: its path, type, unit, range, default and what it says; `kind` names the component whose option it is."""

    path: str
    type: str
    unit: str
    range: str
    default: Any
    description: str
    kind: str = ""

    def plain(self) -> dict[str, Any]:
        """The row as plain data."""
        return {name: plain(getattr(self, name)) for name in self.__slots__}


def list_rows() -> list[Row]:
    """Every key of a run, in the order of its YAML; options of components are `list_options`."""
    return list(_walk(RunConfig, ""))


def list_options() -> list[Row]:
    """The options of every registered component, as they are written: `recipe.surrogate.low`, `recipe.penalties.kl.coef`.

    Components inside components too: `recipe.mix.shaping.soft_overlong.factor`.
    """
    rows: list[Row] = []
    for path, stage in COMPONENTS.items():
        rows += _list_stage(path, stage, path.partition(".")[2] in MANY)
    return rows


def _list_stage(path: str, stage: str, many: bool) -> Iterator[Row]:
    for kind, cls in sorted(kinds(stage).items()):
        prefix = f"{path}.{kind}" if many else path
        for name, info in cls.model_fields.items():
            yield describe(f"{prefix}.{name}", info, kind)
            if inner := _holds(info.annotation):
                yield from _list_stage(f"{prefix}.{name}", name, inner == "many")


def _holds(annotation: Any) -> Literal["one", "many"] | None:
    """Whether a field holds a component, or several: it is named after their stage."""
    parts = typing.get_args(annotation) if typing.get_origin(annotation) is tuple else (annotation,)
    if not any(isinstance(part, type) and issubclass(part, Component) for part in parts):
        return None
    return "one" if parts == (annotation,) else "many"


def describe(path: str, info: FieldInfo, kind: str = "") -> Row:
    """The row of one field."""
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, Mapping) else {}
    return Row(
        path=path,
        type=name_type(info.annotation),
        unit=str(extra.get("unit", "")),
        range=name_range(info),
        default=_default(path, info),
        description=info.description or "",
        kind=kind,
    )


def name_type(annotation: Any) -> str:
    """A type in words: `integer`, `number or null`, `one of constant, linear`, `list of text` ..."""
    simple = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "anything"}
    if annotation in simple:
        return simple[annotation]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return name_type(inner[0])
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(str(value) for value in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(name_type(part) for part in inner)
    if origin is tuple:
        members = [part for part in inner if part is not Ellipsis]
        return (
            f"list of {name_type(members[0])}"
            if Ellipsis in inner
            else f"list of {len(members)} {name_type(members[0])}s"
        )
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping to {name_type(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Component):
        return "component"
    return getattr(annotation, "__name__", str(annotation)).lower()


def name_range(info: FieldInfo) -> str:
    """The bounds of a field: `>= 1`, `> 0, <= 1`."""
    signs: tuple[tuple[Any, str, str], ...] = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))
    bounds = [
        f"{sign} {getattr(item, name)}" for item in info.metadata for cls, name, sign in signs if isinstance(item, cls)
    ]
    bounds += [f"at least {item.min_length} long" for item in info.metadata if isinstance(item, MinLen)]
    patterns = [str(item.pattern) for item in info.metadata if getattr(item, "pattern", None)]
    return ", ".join(bounds + patterns)


def json_schema() -> dict[str, Any]:
    """JSON schema of the YAML, for editors: components are a kind's name or a mapping with `kind` and its options."""
    schema = RunConfig.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for path, stage in COMPONENTS.items():
        owner = definitions["Recipe"] if path.startswith("recipe.") else schema
        field = path.rpartition(".")[2]
        _place_components(owner["properties"], field, stage, definitions, many=field in MANY)
    definitions["Recipe"].pop("required", None)
    schema["properties"]["recipe"] = {"anyOf": [{"enum": recipes.names()}, {"$ref": "#/$defs/Recipe"}]}
    schema["properties"]["model"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/ModelConfig"}]}
    for name, target in (("steps", "steps"), ("seed", "seed")):
        schema["properties"][name] = definitions["Budget"]["properties"][target]
    said = "rows of a file, folder or hub id: a task; several, in a list or by name: a mixture"
    schema["properties"]["data"] = {"type": ["string", "array", "object"], "description": said}
    schema.pop("required", None)
    return schema


def _place_components(
    properties: dict[str, Any], field: str, stage: str, definitions: dict[str, Any], *, many: bool
) -> None:
    """Say of a field that it holds components of a stage."""
    one = _component_schema(stage, definitions)
    several = {"anyOf": [one, {"type": "array", "items": one}]}
    text = {key: value for key, value in properties[field].items() if key == "description"}
    properties[field] = {**(several if many else {"anyOf": [*one["anyOf"], {"type": "null"}]}), **text}


def _component_schema(stage: str, definitions: dict[str, Any]) -> dict[str, Any]:
    options: list[dict[str, Any]] = [{"type": "string"}]
    for kind, cls in sorted(kinds(stage).items()):
        own = cls.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(own.pop("$defs", {}))
        own["properties"] = {"kind": {"const": kind}, **own.get("properties", {})}
        for name, info in cls.model_fields.items():
            if inner := _holds(info.annotation):
                _place_components(own["properties"], name, name, definitions, many=inner == "many")
        own["required"] = ["kind", *own.get("required", [])]
        definitions[f"{stage}.{kind}"] = own
        options.append({"$ref": f"#/$defs/{stage}.{kind}"})
    return {"anyOf": options}


def _walk(cls: type[BaseModel], prefix: str) -> Iterator[Row]:
    for name, info in cls.model_fields.items():
        inner: type[BaseModel] | None = Recipe if name == "recipe" and not prefix else section_of(info.annotation)
        if inner is None:
            yield describe(f"{prefix}{name}", info)
            continue
        if info.default is None:
            yield describe(f"{prefix}{name}", info)
        yield from _walk(inner, f"{prefix}{name}.")


def _default(path: str, info: FieldInfo) -> Any:
    named: dict[str, Any] = {"name": "RECIPE-TASK", "task": DEFAULT_TASK, "recipe.name": recipes.DEFAULT}
    if path in named:
        return named[path]
    top, _, field = path.partition(".")
    if top == "recipe" and field in STAGES:
        return _brief(getattr(recipes.get(recipes.DEFAULT), field))
    value = info.get_default(call_default_factory=True)
    return None if value is PydanticUndefined else plain(value)


def _brief(value: Any) -> Any:
    if isinstance(value, tuple):
        return [part.kind for part in value]
    return value.kind if isinstance(value, Component) else value
