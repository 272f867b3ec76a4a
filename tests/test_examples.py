"""Every example runs as it stands, in an empty folder; the one that needs no covey computes what covey computes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from covey import functional, recipes
from covey.proof.data import distance
from covey.stages.objective import objective
from tests.stages.contract import case, prepare

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("[0-9]*.py"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(example: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs").glob("*/model/*config.json"))


@pytest.fixture(scope="module")
def one_file() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("grpo_in_one_file", FOLDER / "grpo_in_one_file.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(6))
def test_the_method_in_one_file_is_the_recipe(one_file: ModuleType, seed: int) -> None:
    """Advantages, loss and gradient on ragged rows: with the functions for own trainers, and with the stages themselves."""
    recipe = recipes.get("grpo")
    policy, batch = case(recipe, seed)
    batch = batch.with_(rollout=torch.arange(batch.size), reward_weights=(1.0, 1.0))
    step, states = prepare(recipe, batch)
    reward = batch.reward.sum(1)
    worth = one_file.advantage(reward, batch.group, batch.mask)
    assert distance(worth, functional.advantage("grpo", reward=reward, group=batch.group, mask=batch.mask)) <= 1e-12
    assert distance(worth, step.advantage) <= 1e-12
    ref_logp, logp = batch.columns["ref_logp"], policy.forward(batch).logp
    found = one_file.loss(logp, batch.old_logp, ref_logp, worth, batch.mask)
    same = functional.loss(
        "grpo",
        logp=policy.forward(batch).logp,
        old_logp=batch.old_logp,
        advantage=worth,
        mask=batch.mask,
        ref_logp=ref_logp,
    )
    staged, _ = objective(recipe, policy.forward(step), step, states)
    for other in (same, staged):
        assert float(found.detach()) == pytest.approx(float(other.detach()), abs=1e-12)
    gradient = policy.gradient(found)
    assert float(gradient.norm()) > 0
    for other in (same, staged):
        assert distance(policy.gradient(other), gradient) <= 1e-12


def test_the_one_file_is_short_and_needs_no_covey() -> None:
    text = (FOLDER / "grpo_in_one_file.py").read_text()
    assert len(text.splitlines()) < 150
    assert "import covey" not in text
    assert "from covey" not in text


@pytest.mark.slow
def test_the_one_file_learns(one_file: ModuleType) -> None:
    curve = one_file.train(steps=60)
    assert sum(curve[:5]) / 5 < 0.2
    assert sum(curve[-5:]) / 5 > 0.6
