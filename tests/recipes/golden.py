"""The dumps of our recipes, kept as files: `python -m tests.recipes.golden` writes them anew, to be read in the diff."""

from __future__ import annotations

from pathlib import Path

import yaml

from covey import recipes
from covey.recipes.recipe import Recipe

FOLDER = Path(__file__).parent / "golden"


def text(recipe: Recipe) -> str:
    """The dump of a recipe as YAML."""
    return yaml.safe_dump(recipe.plain(), sort_keys=False)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in recipes.names():
        (FOLDER / f"{name}.yaml").write_text(text(recipes.get(name)), encoding="utf-8")
