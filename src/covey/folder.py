"""The folder of a run: where it is, and what it says of the machine it ran on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from covey import files
from covey.errors import OutputError

PACKAGES = ("covey", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")


def new_folder(out: Path | None, name: str, home: Path = Path("runs")) -> Path:
    """A folder that no run has used: `out`, or the first free `runs/<name>-<n>/`. Made here; a used one is refused."""
    if out is None:
        return _first_free(name, home)
    if out.is_file():
        raise OutputError(str(out), "is a file", "Give a folder that is new or empty.")
    with files.reported(out):
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise OutputError(str(out), "is not empty", f"Choose another folder, or go on with --resume {out}.")
    return out


def _first_free(name: str, home: Path) -> Path:
    number = 1
    with files.reported(home):
        home.mkdir(parents=True, exist_ok=True)
        while True:
            folder = home / f"{name}-{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder


def describe_machine(threads: int, ranks: int) -> dict[str, Any]:
    """What "the same bytes" depends on: versions, processor capability, threads, ranks."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "ranks": ranks,
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
