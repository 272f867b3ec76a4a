"""Recipes: every method as one value in one file. `get(name)`, `names()`, and `DEFAULT`, what `covey train` uses."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from covey.errors import ConfigError, did_you_mean
from covey.recipes import peers
from covey.recipes.recipe import Recipe

DEFAULT = "dr_grpo"
LISTED = "`covey recipes list` shows what there is."
Described = dict[str, tuple[Recipe, str]]
"""Recipes by name, each with what there is to know of it."""


@cache
def _shipped() -> Described:
    """Our recipes by name, each with its description: the docstring of its module, where the value bears the file's name.

    The modules of `covey.recipes.peers` hold several, in `presets`, each with its own words.
    """
    modules = {info.name: import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
    found = [(getattr(module, stem, None), module.__doc__) for stem, module in modules.items()]
    for info in pkgutil.iter_modules(peers.__path__):
        found += import_module(f"{peers.__name__}.{info.name}").presets
    return _by_name({}, found)


@cache
def _all() -> Described:
    """Our recipes and those of installed packages, which may be made from ours."""
    entries = entry_points(group="covey.recipes")
    found = [(entry.load(), import_module(entry.module).__doc__) for entry in entries]
    return dict(sorted(_by_name(_shipped(), found).items()))


def _by_name(known: Described, found: Iterable[tuple[Any, str | None]]) -> Described:
    out = dict(known)
    for recipe, doc in found:
        if not isinstance(recipe, Recipe):
            continue
        if recipe.name in out:
            raise ConfigError(
                "recipe", f"two recipes are called '{recipe.name}'", "Give the installed one another name."
            )
        out[recipe.name] = (recipe, (doc or "").strip())
    return out


def names() -> list[str]:
    """The names of all recipes, ours and those of installed packages."""
    return list(_all())


def get(name: str) -> Recipe:
    """The recipe of that name."""
    if name in _shipped():  # an installed package asks for these while its own recipes are being loaded
        return _shipped()[name][0]
    if name not in _all():
        raise ConfigError("recipe", f"there is no recipe '{name}'", did_you_mean(name, names(), otherwise=LISTED))
    return _all()[name][0]


def describe(name: str) -> str:
    """The docstring of the recipe's file: paper, difference from its parent, formula."""
    get(name)
    return _all()[name][1]


__all__ = ["DEFAULT", "LISTED", "Recipe", "describe", "get", "names"]
