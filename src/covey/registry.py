"""The open registry: components of a recipe and other named parts, found by stage and kind.

A component is a frozen pydantic value. Registering one makes it usable by name in recipes, in YAML and on the command line:

    @component("surrogate", "soft_clip")
    class SoftClip(Component): ...

Packages announce modules that register components by the entry point group `covey.components`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from covey.errors import ConfigError, did_you_mean

Couples = Literal["row", "group", "step"]
Per = Literal["row", "component", "token"]
"""What there is a score of: rows [N], reward components of rows [N K], or tokens [N T]."""
State = Mapping[str, Any]


class Value(BaseModel):
    """A frozen, typed value: compared, printed, hashed, dumped and read back. Unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Component(Value):
    """One registered part. What it declares:

    `needs`: columns that must be there; `live`: outputs of the forward besides logp; `couples`: the smallest unit of rows over
    which its output is not a sum of independent terms. `initial()` is its state at step 0 (empty: it has none); a component
    with state takes it as the keyword `state` and, in credit, returns `(output, new state)`.
    """

    stage: ClassVar[str] = ""
    kind: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    live: ClassVar[tuple[str, ...]] = ()
    couples: ClassVar[Couples] = "row"

    def initial(self) -> State:
        """The state before the first step: JSON-able values by name; empty for a component without state."""
        return {}

    def columns(self) -> tuple[str, ...]:
        """The columns that these very options need."""
        return self.needs

    def latex(self) -> str:
        """What the component computes with these very options, as LaTeX in the symbols of `covey recipes explain`."""
        return ""

    def exemptions(self) -> Mapping[str, str]:
        """Properties of `covey prove` that these very options break on purpose, each with the reason."""
        return {}

    def refuse_unread(self, where: str, choice: str, *names: str) -> None:
        """Refuse options that nobody reads under this choice, if they differ from their defaults; `where` is the part's place."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ConfigError(f"{where}.{name}", f"nobody reads it with {choice}", "Leave it out.")


AnyComponent = TypeVar("AnyComponent", bound=type[Component])
_REGISTRY: dict[str, dict[str, type[Component]]] = {}
_LOADED: set[str] = set()


def component(stage: str, kind: str) -> Callable[[AnyComponent], AnyComponent]:
    """Register a component class under a stage and a kind."""

    def register(cls: AnyComponent) -> AnyComponent:
        taken = _REGISTRY.setdefault(stage, {}).get(kind)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(f"{stage}.{kind}", f"already registered by {taken.__module__}", "Choose another kind.")
        cls.stage, cls.kind = stage, kind
        _REGISTRY[stage][kind] = cls
        return cls

    return register


def load_extensions() -> None:
    """Import the modules that installed packages announce under the entry point group `covey.components` (once)."""
    for entry in _announced():
        if entry.value not in _LOADED:
            _LOADED.add(entry.value)
            entry.load()


@cache
def _announced() -> tuple[EntryPoint, ...]:
    """Looked up once: it reads the metadata of every installed package."""
    return tuple(entry_points(group="covey.components"))


def kinds(stage: str) -> dict[str, type[Component]]:
    """All registered component classes of a stage by kind."""
    load_extensions()
    return dict(_REGISTRY.get(stage, {}))


def build(stage: str, value: Any, where: str) -> Component:
    """A component from a value, a kind's name or a mapping with `kind` and fields. Errors name `where`."""
    if isinstance(value, Component):
        if value.stage != stage:
            raise ConfigError(where, f"{type(value).__name__} is a {value.stage}, not a {stage}", "")
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping) or "kind" not in value:
        raise ConfigError(where, f"{value!r} is no {stage}", f"Give a kind: {', '.join(sorted(kinds(stage)))}.")
    options, kind = dict(value), value["kind"]
    del options["kind"]
    known: Mapping[str, type[Component]] = _REGISTRY.get(stage, {})
    if str(kind) not in known:  # only then: an extension may itself be made of recipes that are just being built
        known = kinds(stage)
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(where, f"there is no {stage} '{kind}'", did_you_mean(str(kind), known))
    try:
        return known[kind](**options)
    except ValidationError as error:
        raise explain(error, where, known[kind]) from None


def explain(error: ValidationError, where: str, cls: type[BaseModel]) -> ConfigError:
    """The first problem of a validation as one line: `where.field: found. What would be right.`"""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    place = f"{where}.{path}" if path else where
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        return ConfigError(place, f"{cls.__name__} has no field '{name}'", did_you_mean(name, cls.model_fields))
    if first["type"] == "missing":
        return ConfigError(place, "absent", f"{cls.__name__} needs it.")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    return ConfigError(place, f"got {first['input']!r}", first["msg"] + ".")


def dump(value: Component) -> dict[str, Any]:
    """A component as plain data: its kind, then its fields; nested components likewise."""
    return {"kind": value.kind, **{name: plain(getattr(value, name)) for name in type(value).model_fields}}


def plain(value: Any) -> Any:
    """Plain data (for YAML and JSON) of a value, a component, or a container of them."""
    if isinstance(value, Component):
        return dump(value)
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value
