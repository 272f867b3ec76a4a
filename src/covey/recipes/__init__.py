"""Recipes: every method as one value in one file. `get(name)`, `names()`, and `DEFAULT`, what `covey train` uses."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from covey.errors import ConfigError, did_you_mean
from covey.recipes.recipe import Recipe

DEFAULT = "dr_grpo"


@cache
def _all() -> dict[str, Recipe]:
    modules = [import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Recipe)]
    found += [entry.load() for entry in entry_points(group="covey.recipes")]
    return {recipe.name: recipe for recipe in sorted(found, key=lambda recipe: recipe.name)}


def names() -> list[str]:
    """The names of all recipes, ours and those of installed packages."""
    return list(_all())


def get(name: str) -> Recipe:
    """The recipe of that name."""
    if name not in _all():
        raise ConfigError("recipe", f"there is no recipe '{name}'", did_you_mean(name, names()))
    return _all()[name]


def describe(name: str) -> str:
    """The docstring of the recipe's file: paper, difference from its parent, formula."""
    for info in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{info.name}")
        if any(isinstance(value, Recipe) and value.name == name for value in vars(module).values()):
            return (module.__doc__ or "").strip()
    return ""


__all__ = ["DEFAULT", "Recipe", "describe", "get", "names"]
