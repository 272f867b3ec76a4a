"""Recipes: every method as one value in one file. `get(name)`, `names()`, and `DEFAULT`, what `covey train` uses."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from covey.errors import ConfigError, did_you_mean
from covey.recipes import peers
from covey.recipes.recipe import Recipe

DEFAULT = "dr_grpo"


@cache
def _all() -> dict[str, tuple[Recipe, str]]:
    """Recipes by name, each with its description: the docstring of its module, where the value bears the file's name.

    The modules of `covey.recipes.peers` hold several, in `presets`, each with its own words.
    """
    modules = {info.name: import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
    found = [(getattr(module, stem, None), module.__doc__) for stem, module in modules.items()]
    for info in pkgutil.iter_modules(peers.__path__):
        found += import_module(f"{peers.__name__}.{info.name}").presets
    found += [(entry.load(), import_module(entry.module).__doc__) for entry in entry_points(group="covey.recipes")]
    out: dict[str, tuple[Recipe, str]] = {}
    for recipe, doc in found:
        if not isinstance(recipe, Recipe):
            continue
        if recipe.name in out:
            raise ConfigError(
                "recipe", f"two recipes are called '{recipe.name}'", "Give the installed one another name."
            )
        out[recipe.name] = (recipe, (doc or "").strip())
    return dict(sorted(out.items()))


def names() -> list[str]:
    """The names of all recipes, ours and those of installed packages."""
    return list(_all())


def get(name: str) -> Recipe:
    """The recipe of that name."""
    if name not in _all():
        raise ConfigError("recipe", f"there is no recipe '{name}'", did_you_mean(name, names()))
    return _all()[name][0]


def describe(name: str) -> str:
    """The docstring of the recipe's file: paper, difference from its parent, formula."""
    get(name)
    return _all()[name][1]


__all__ = ["DEFAULT", "Recipe", "describe", "get", "names"]
