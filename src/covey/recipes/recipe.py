"""The Recipe: a method as a frozen value, one field per stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from covey import stages as _stages  # noqa: F401  (registers the components that ship)
from covey.errors import ConfigError, did_you_mean
from covey.recipes.rules import check
from covey.registry import Component, Value, build, explain, plain
from covey.stages.reference import InitialReference

STAGES = {
    "admit": "admit",
    "mix": "mix",
    "filters": "filter",
    "advantage": "advantage",
    "shapers": "shaper",
    "corrections": "correction",
    "weighting": "weighting",
    "ratio": "ratio",
    "surrogate": "surrogate",
    "penalties": "penalty",
    "objective": "objective",
    "reference": "reference",
    "critic": "critic",
}
"""Field of a recipe -> stage of its components, in the order in which they run."""

OPTIONAL = ("ratio", "surrogate", "objective", "critic")
MANY = ("admit", "filters", "shapers", "corrections", "penalties")


class Recipe(Value):
    """What is maximised: comparable across runs and machines; it never mentions a device.

    Components are given by value, by registered kind (`"token_mean"`) or as plain data (`{"kind": "clip", "low": 0.1}`).
    Combinations that cannot be right are refused; `waivers` names the refusals that are waived on purpose.
    """

    name: str = Field(description="how the recipe is called in listings and run names")
    admit: tuple[Component, ...] = Field(default=(), description="which groups a step may be made of")
    mix: Component = Field(description="reward components to score")
    filters: tuple[Component, ...] = Field(default=(), description="which rows count in loss, statistics, denominators")
    advantage: Component = Field(description="score to advantage")
    shapers: tuple[Component, ...] = Field(default=(), description="reweighting of advantages, in order")
    corrections: tuple[Component, ...] = Field(default=(), description="factors for sampler/learner mismatch")
    weighting: Component = Field(description="the normalisation over an optimizer step")
    ratio: Component | None = Field(default=None, description="log-ratio that the surrogate reads")
    surrogate: Component | None = Field(default=None, description="gain per token; absent only beside an objective")
    penalties: tuple[Component, ...] = Field(default=(), description="costs with their own coefficient and weighting")
    objective: Component | None = Field(default=None, description="one function that replaces the whole objective")
    reference: Component = Field(default=InitialReference(), description="the policy that ref_logp is of")
    critic: Component | None = Field(default=None, description="what learns the values that the advantage reads")
    waivers: tuple[str, ...] = Field(default=(), description="names of refusals that are waived on purpose")
    _parent: Recipe | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _build(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {name: _stage(name, value) if name in STAGES else value for name, value in data.items()}

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        if self.objective is None:
            self._refuse_ratio()
        for field in ("ratio", "surrogate", "penalties"):
            if self.objective is not None and getattr(self, field):
                raise ConfigError(
                    f"recipe.{field}", f"objective '{self.objective.kind}' never reads it", "Leave it out."
                )
        for field in MANY:
            seen = [part.kind for part in getattr(self, field)]
            if len(set(seen)) < len(seen):
                raise ConfigError(
                    f"recipe.{field}", "a kind occurs twice", "Members are addressed by kind: give each once."
                )
        if self.objective is not None and self.joint_critic is not None:
            found = f"objective '{self.objective.kind}' never reads the critic's loss"
            raise ConfigError("recipe.critic", found, "Use critic separate.")
        per, reads = getattr(self.mix, "per", "row"), getattr(self.advantage, "reads", ("row",))
        if per not in reads:
            found = f"mix '{self.mix.kind}' gives a score per {per}, advantage '{self.advantage.kind}' reads one per"
            raise ConfigError("recipe.mix", f"{found} {' or '.join(reads)}", "Change one of them.")
        if self.reference.kind != "initial" and "ref_logp" not in self.needs():
            found = f"'{self.reference.kind}', but no component reads the reference"
            raise ConfigError("recipe.reference", found, "Leave it out, or add one that does, e.g. penalty kl.")
        inner = [part for outer in self.components() for part in nested(outer) if part is not outer]
        for part in (self.weighting, *inner):
            if part.initial():
                raise ConfigError(
                    f"recipe: {part.stage} '{part.kind}'", "has state, which is not kept in this place", ""
                )
        check(self)
        return self

    def _refuse_ratio(self) -> None:
        if self.surrogate is None:
            raise ConfigError("recipe.surrogate", "absent", "Name one, e.g. clip, or give an objective.")
        reads = getattr(self.surrogate, "reads_ratio", True)
        if reads and self.ratio is None:
            found = f"absent, but surrogate '{self.surrogate.kind}' reads a ratio"
            raise ConfigError("recipe.ratio", found, "Name one, e.g. token.")
        if not reads and self.ratio is not None:
            found = f"surrogate '{self.surrogate.kind}' never reads it"
            raise ConfigError("recipe.ratio", found, "Leave it out (null).")

    def components(self) -> Iterator[Component]:
        """All components in the order in which they run."""
        for field in STAGES:
            value = getattr(self, field)
            yield from value if isinstance(value, tuple) else () if value is None else (value,)

    def parts(self, field: str) -> tuple[Component, ...]:
        """The components of a field that act: a reference that nobody reads does not."""
        value = getattr(self, field)
        if value is None or (field == "reference" and "ref_logp" not in self.needs()):
            return ()
        return value if isinstance(value, tuple) else (value,)

    def live_components(self) -> tuple[Component, ...]:
        """The components that see the forward's live outputs."""
        parts = (self.ratio, self.surrogate, *self.penalties, self.objective, self.joint_critic)
        return tuple(part for part in parts if part is not None)

    @property
    def joint_critic(self) -> Any:
        """The critic, if its loss is a term of the policy's; else None."""
        return self.critic if getattr(self.critic, "joint", False) else None

    @property
    def own_critic(self) -> Any:
        """The critic, if it is a model of its own; else None."""
        return self.critic if self.joint_critic is None else None

    def needs(self) -> tuple[str, ...]:
        """The columns that its components, and the components inside these, need; without repeats."""
        parts = [inner for part in self.components() for inner in nested(part)]
        return tuple(dict.fromkeys(name for part in parts for name in part.columns()))

    def exemptions(self) -> dict[str, str]:
        """Properties of `covey prove` that its components, and those inside these, break on purpose, with the reasons."""
        parts = [inner for part in self.components() for inner in nested(part)]
        return {name: reason for part in parts for name, reason in part.exemptions().items()}

    def but(self, **changes: Any) -> Recipe:
        """A recipe with changes: keys are fields or dotted paths (`"surrogate.low"`, `"penalties.kl.coef"`).

        A member of a tuple is addressed by its kind. Values are components, kinds or plain data.
        """
        recipe: Any = self
        for key in sorted(changes, key=lambda key: key.count(".")):
            recipe = _changed(recipe, key.split("."), changes[key], "recipe")
        made = Recipe.of(recipe if isinstance(recipe, dict) else plain(recipe))
        made._parent = self
        return made

    @property
    def parent(self) -> Recipe | None:
        """The recipe that this one was made from by `but`, in this process; None for one that was written or read as a whole."""
        return self._parent

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Recipe:
        """A recipe from plain data (its dump); errors are one line."""
        try:
            return cls(**data)
        except ValidationError as error:
            raise explain(error, "recipe", cls) from None

    def plain(self) -> dict[str, Any]:
        """The recipe as plain data, for YAML and JSON; `Recipe.of` reads it back."""
        out: dict[str, Any] = plain(self)
        return out

    @property
    def digest(self) -> str:
        """sha256 of the plain data without the name: equal digests mean the same method with the same options."""
        data = {key: value for key, value in self.plain().items() if key != "name"}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        """The same name, components, options and waivers; how it came about has no say."""
        return isinstance(other, Recipe) and self.plain() == other.plain()

    def __hash__(self) -> int:
        return hash((self.name, self.digest))


def _stage(field: str, value: Any) -> Any:
    where = f"recipe.{field}"
    if field in MANY:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(build(STAGES[field], item, f"{where}.{_kind(item)}") for item in items)
    if value is None and field in OPTIONAL:
        return None
    return build(STAGES[field], value, where)


def _kind(item: Any) -> str:
    """The kind by which a member of a tuple is addressed."""
    return str(item.get("kind", "?") if isinstance(item, Mapping) else getattr(item, "kind", item))


def nested(part: Component) -> Iterator[Component]:
    """A component and all components among its fields."""
    yield part
    for name in type(part).model_fields:
        value = getattr(part, name)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Component):
                yield from nested(inner)


def _changed(value: Any, path: list[str], new: Any, where: str) -> Any:
    """Plain data of `value` with the item at `path` replaced."""
    if not path:
        return new
    data = dict(value) if isinstance(value, Mapping) else _fields(value)
    head, rest, place = path[0], path[1:], f"{where}.{path[0]}"
    open_ended = where != "recipe" and "kind" not in data  # a mapping field, such as weights by name
    if head not in data and not (open_ended and not rest):
        owner = data.get("kind", "Recipe" if where == "recipe" else "it")
        raise ConfigError(place, f"{owner} has no field '{head}'", did_you_mean(head, data))
    if not rest:
        return {**data, head: _stage(head, new) if place == f"recipe.{head}" and head in STAGES else new}
    inner = data[head]
    if isinstance(inner, (tuple, list)):
        kinds = [_kind(member) for member in inner]
        if rest[0] not in kinds:
            raise ConfigError(f"{place}.{rest[0]}", f"no member of kind '{rest[0]}'", did_you_mean(rest[0], kinds))
        at = kinds.index(rest[0])
        changed = _changed(inner[at], rest[1:], new, f"{place}.{rest[0]}")
        return {**data, head: (*inner[:at], changed, *inner[at + 1 :])}
    if not isinstance(inner, (Component, Mapping)):
        raise ConfigError(f"{place}.{rest[0]}", f"{head} has no fields", "")
    return {**data, head: _changed(inner, rest, new, place)}


def _fields(value: Component | Recipe) -> dict[str, Any]:
    own = {name: getattr(value, name) for name in type(value).model_fields}
    return {"kind": value.kind, **own} if isinstance(value, Component) else own
