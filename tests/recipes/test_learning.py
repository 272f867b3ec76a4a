"""Every recipe teaches a table a language of two tokens, and would unteach it with its sign turned around."""

from __future__ import annotations

import pytest

from covey.recipes.recipe import Recipe
from tests.recipes.toy import LENGTH, WORDS, learn, passes
from tests.stages.contract import all_recipes

CHANCE = 1 / WORDS**LENGTH


METHODS = [recipe for recipe in all_recipes() if "@" not in recipe.name]
"""Presets are other options of the same parts."""


@pytest.mark.parametrize("recipe", METHODS, ids=lambda recipe: recipe.name)
def test_learns(recipe: Recipe) -> None:
    assert learn(recipe) >= 0.85
    assert learn(recipe, sign=-1.0) <= CHANCE / 2


def test_what_acts_more_than_once_on_a_batch() -> None:
    """Recipes with a ratio take two optimizer steps per batch here, so that the ratio is not always 1."""
    assert {recipe.name: passes(recipe) for recipe in all_recipes()}.items() >= {
        "reinforce": 1,
        "grpo": 2,
        "dr_grpo": 2,
        "dapo": 2,
    }.items()
