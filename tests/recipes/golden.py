"""What our recipes are and how they are explained, kept as files: `python -m tests.recipes.golden` writes them anew.

Without names all of them, else those of the recipes that are named; the diff is to be read.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import yaml

from covey import recipes
from covey.cli import main
from covey.recipes.recipe import Recipe

FOLDER = Path(__file__).parent / "golden"
EXPLAINED = Path(__file__).parent / "explain"


def text(recipe: Recipe) -> str:
    """The dump of a recipe as YAML."""
    return yaml.safe_dump(recipe.plain(), sort_keys=False)


def explained(name: str) -> str:
    """What `covey recipes explain` prints where there is no terminal."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["recipes", "explain", name]) == 0
    return out.getvalue()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    EXPLAINED.mkdir(exist_ok=True)
    for name in sys.argv[1:] or recipes.names():
        (FOLDER / f"{name}.yaml").write_text(text(recipes.get(name)), encoding="utf-8")
        (EXPLAINED / f"{name}.txt").write_text(explained(name), encoding="utf-8")
