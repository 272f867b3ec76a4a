"""The embedded models: plain transformers folders inside the package, and the script that made them."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def list_models() -> tuple[str, ...]:
    """The names of the models that ship in the package."""
    return tuple(sorted(path.parent.name for path in HERE.glob("*/config.json")))


def find_model(name: str) -> str:
    """The folder of an embedded model by its name; any other name (a folder, an id) as it is.

    A folder of that name in the current directory does not hide an embedded model: write `./tiny` to mean the folder.
    """
    return str(HERE / name) if name in list_models() else name
