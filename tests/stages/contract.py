"""Every recipe and component that is registered; what is proven of them stands in `covey.proof`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from covey import recipes
from covey.errors import ConfigError
from covey.proof.gradients import (
    WAIVED,
    add_up,
    bare,
    case,
    cut,
    deal,
    divided,
    in_two_passes,
    prepare,
    slice_gradient,
    two_pass,
    units,
    whole,
)
from covey.recipes.recipe import MANY, STAGES, Recipe
from covey.registry import Component, kinds
from covey.stages.advantages import GroupNorm
from covey.stages.surrogates import Surrogate
from tests.stages import coupled  # registers the test-only components that are meant to be right

__all__ = [
    "BASE",
    "add_up",
    "all_recipes",
    "around",
    "bare",
    "case",
    "component_recipes",
    "cut",
    "deal",
    "divided",
    "everything",
    "in_two_passes",
    "prepare",
    "proven",
    "slice_gradient",
    "two_pass",
    "units",
    "values",
    "whole",
]

BASE = Recipe(
    name="base",
    mix="weighted_sum",
    advantage="group_norm",
    weighting="rollout_mean",
    ratio="token",
    surrogate="clip",
    waivers=WAIVED,
)


def all_recipes() -> list[Recipe]:
    """Every recipe that ships or is installed."""
    return [recipes.get(name) for name in recipes.names()]


def values(cls: type[Component]) -> Iterator[Component]:
    """A component with its defaults, and with every other choice of every closed option; none if it must be told something."""
    if any(field.is_required() for field in cls.model_fields.values()):
        return
    yield cls()
    for name, field in cls.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        for choice in choices:
            if choice != field.default:
                yield from _accepted(cls, {name: choice})


def _accepted(cls: type[Component], options: Mapping[str, object]) -> Iterator[Component]:
    try:
        yield cls(**options)
    except (ConfigError, ValidationError):
        return


def component_recipes() -> dict[str, Recipe]:
    """A recipe around every registered component, by `stage.kind.options`."""
    out: dict[str, Recipe] = {}
    for field, stage in {**STAGES, "mix.shaping": "shaping"}.items():
        for kind, cls in sorted(kinds(stage).items()):
            for value in values(cls) if proven(cls) else ():
                options = ",".join(f"{k}={v}" for k, v in value if v != cls.model_fields[k].default)
                out[f"{stage}.{kind}({options})"] = around(field, value)
    return out


def proven(cls: type[Component]) -> bool:
    """False for components that only some test made up; the coupled ones are test-only too, but meant to be right."""
    return not cls.__module__.startswith("test") or cls.__module__ == coupled.__name__


def around(field: str, value: Component) -> Recipe:
    """The plainest recipe that holds this component."""
    changes: dict[str, object] = {field: (value,) if field in MANY or field == "mix.shaping" else value}
    if isinstance(value, Surrogate) and not value.reads_ratio:
        changes["ratio"] = None
    if field == "objective":
        changes |= {"ratio": None, "surrogate": None}
    if field == "mix" and value.per not in GroupNorm.reads:
        changes["advantage"] = _first("advantage", lambda cls: value.per in cls.reads)
    if field == "advantage" and "row" not in value.reads:
        changes["mix"] = _first("mix", lambda cls: cls.per in value.reads)
    if field == "reference":
        changes["penalties"] = ("kl",)  # somebody has to read it
    if field == "critic":
        changes["advantage"] = "gae"  # makes what it learns
    return BASE.but(**changes)


def _first(stage: str, fits: Callable[[Any], bool]) -> Component:
    return next(cls() for _, cls in sorted(kinds(stage).items()) if proven(cls) and fits(cls))


def everything() -> dict[str, Recipe]:
    """What the contract is proven for."""
    return {**{f"recipe.{recipe.name}": recipe for recipe in all_recipes()}, **component_recipes()}
