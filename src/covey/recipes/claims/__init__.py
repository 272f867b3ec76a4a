"""What the papers claim, each statement small enough to be checked here: `every()`, `find(names)`.

Run with `covey claims`. A claim names its recipes, the paper's own number and the rule of its verdict.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from covey.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from covey.recipes.claims.claim import Claim

__all__ = ["every", "find"]


@cache
def every() -> dict[str, Claim]:
    """All claims by name: those in `claims` of this package's modules."""
    out: dict[str, Claim] = {}
    for info in pkgutil.iter_modules(__path__):
        for claim in getattr(import_module(f"{__name__}.{info.name}"), "claims", ()):
            if claim.name in out:
                raise ConfigError("claims", f"two claims are called '{claim.name}'", "Rename one.")
            out[claim.name] = claim
    order = sorted(out.values(), key=lambda claim: (claim.recipes or ("~",), claim.name))
    return {claim.name: claim for claim in order}


def find(names: Sequence[str]) -> list[Claim]:
    """The claims of some names; a name is a claim's or a recipe's. No names: all of them."""
    known, recipes = every(), {recipe for claim in every().values() for recipe in claim.recipes}
    for name in names:
        if name not in known and name not in recipes:
            right = did_you_mean(name, [*known, *recipes], otherwise="`covey claims --list` shows what there is.")
            raise ConfigError("covey claims", f"no claim and no recipe with claims is called '{name}'", right)
    return [
        claim
        for claim in known.values()
        if not names or claim.name in names or any(recipe in names for recipe in claim.recipes)
    ]
