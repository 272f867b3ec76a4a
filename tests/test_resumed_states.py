"""Whole runs of recipes with state by the real command: a run that goes on from a checkpoint ends in the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from covey.recipes import get
from covey.stages.credit import initial_states
from tests.test_critic_runs import go_back
from tests.test_run import SMALL, covey, fingerprint

pytestmark = [pytest.mark.slow, pytest.mark.long]

RUN = ["steps=4", "budget.checkpoint_every=2", "budget.optimizer_steps_per_pass=2", *SMALL]
CASES = {
    "quartiles": ("gfpo_adaptive", {"filters.k_best_by_difficulty.warmup": 1}, "filter.k_best_by_difficulty"),
    "baseline": ("reinforce", {"advantage.baseline": "moving", "surrogate": "clip", "ratio": "token"},
                 "advantage.batch_baseline"),
    "dual": ("disco", {"penalties.constraint.multiplier": "dual", "penalties.constraint.limit": 0}, "penalty.constraint"),
    "entropy": ("dr_grpo", {"penalties": [{"kind": "entropy", "target": 1.0}]}, "penalty.entropy"),
    "divergence": ("reinforce_plus_plus", {"mix.controller": "adaptive"}, "mix.token_kl"),
}  # fmt: skip
"""Name -> recipe, changes, and the component whose state has to survive."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_goes_on_with_the_states(home: Path, name: str) -> None:
    recipe, changes, part = CASES[name]
    given = [f"recipe.{path}={json.dumps(value)}" for path, value in changes.items()]
    covey("train", f"recipe={recipe}", *given, *RUN, "--out", name, cwd=home)
    whole, states = fingerprint(home / name, 4), [saved_states(home / name, step) for step in (2, 4)]
    assert initial_states(get(recipe).but(**changes))[part] != states[0][part] != states[1][part]
    go_back(home / name, 2)
    covey("train", "--resume", name, cwd=home)
    assert fingerprint(home / name, 4) == whole
    assert saved_states(home / name, 4) == states[1]


def saved_states(run: Path, step: int) -> dict[str, dict[str, object]]:
    """The states of the components in a checkpoint, by `stage.kind`."""
    saved = json.loads((run / f"checkpoints/step-{step:06d}/state.json").read_text())
    found: dict[str, dict[str, object]] = saved["record"]["states"]
    return found
