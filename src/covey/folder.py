"""The folder of a run: where it is, and what it says of the machine it ran on."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from covey import files
from covey.errors import OutputError, StorageError

PACKAGES = ("covey", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")


def check_free(out: Path | None, right: str = "Choose another folder, or go on with --resume {out}.") -> None:
    """Refuse an output folder that holds something or cannot be made; of many ranks the first one decides."""
    if out is None or os.environ.get("RANK", "0") != "0":
        return
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise OutputError(str(nearest), "is a file", "Give a folder that is new or empty.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(str(nearest), "cannot be written", "Choose a folder you may write to.")
    if out.is_dir() and any(out.iterdir()):
        raise OutputError(str(out), "is not empty", right.format(out=out))


def new_folder(out: Path | None, name: str, home: Path = Path("runs")) -> Path:
    """A folder that no run has used: `out`, or the first free `runs/<name>-<n>/`. Made here; a used one is refused."""
    if out is None:
        return _first_free(name, home)
    check_free(out)
    with files.reported(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start where the disk has fewer than `needed` bytes left, before anything is trained."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        found = f"{free / 1e6:,.1f} MB free, the checkpoints of this run take about {needed / 1e6:,.1f} MB"
        raise StorageError(str(folder), found, "Make room, or lower budget.checkpoint_keep.")


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
    import torch

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
