"""The package in examples/third_party: one file and two entry points are enough for every command to know a new method."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "examples" / "third_party"

pytestmark = pytest.mark.slow


def install(source: Path, folder: Path) -> dict[str, str]:
    """Install a copy of the package into a folder; the environment in which it is found."""
    copy = folder / "source"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    return place(copy, folder / "target")


def place(source: Path, target: Path) -> dict[str, str]:
    """Install a source tree into a target folder."""
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", *words, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}


def covey(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """A command in that environment."""
    return subprocess.run(
        [sys.executable, "-m", "covey", *words], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The package as it ships."""
    return install(PACKAGE, tmp_path_factory.mktemp("third_party"))


def test_it_is_listed_and_can_be_changed(installed: dict[str, str], tmp_path: Path) -> None:
    done = covey(installed, "recipes", "list", "--json")
    assert done.returncode == 0, done.stderr
    listed = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert listed["dr_grpo_tanh"]["surrogate"] == {"kind": "tanh", "width": 0.2}
    assert {"grpo", "dr_grpo"} <= set(listed)
    schema = covey(installed, "config", "schema")
    assert "recipe.surrogate.width" in schema.stdout


def test_it_is_proven(installed: dict[str, str]) -> None:
    done = covey(installed, "prove", "dr_grpo_tanh", "--json", "--seeds", "5")
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)
    outcomes = {verdict["property"]: verdict["outcome"] for verdict in entry["properties"]}
    assert outcomes.pop("two_passes") == "idle"
    assert set(outcomes.values()) == {"holds"}


GAIN = "masked(batch.advantage.to(moved.dtype) * moved, batch.mask)"
MOVED = "self.width * ((log_ratio.exp() - 1) / self.width)"


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        (GAIN, GAIN + " / batch.mask.sum().clamp(min=1)", "slices"),
        (GAIN, GAIN + " / max(batch.mask.shape[1], 1)", "padding"),
        (MOVED, "((log_ratio.exp() - 1) / self.width)", "first_step"),
    ],
    ids=["slices", "padding", "first_step"],
)
def test_a_mistake_in_it_is_named(right: str, wrong: str, named: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    file = source / "covey_tanh.py"
    text = file.read_text()
    assert right in text
    file.write_text(text.replace(right, wrong))
    done = covey(place(source, tmp_path / "target"), "prove", "dr_grpo_tanh", "--seeds", "3")
    assert done.returncode == 76, done.stdout + done.stderr
    assert done.stderr.startswith(f"error: dr_grpo_tanh: {named}: seed ")
    assert done.stderr.count("\n") == 1
