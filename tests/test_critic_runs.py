"""Whole runs with a critic by the real command: the same bytes after a resume, over two ranks, and a policy that waits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.test_run import SMALL, _tiny, covey, fingerprint, rollouts, sha

pytestmark = pytest.mark.slow

PPO = ["train", "recipe=ppo", "budget.optimizer_steps_per_pass=2", "engines.tokens_per_slice=128", *SMALL]
KINDS = ("separate", "shared")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("critics")


def marks(run: Path, step: int) -> dict[str, str]:
    """What has to be equal, critic included."""
    saved = run / f"checkpoints/step-{step:06d}"
    return {
        **fingerprint(run, step),
        **{name: sha(saved / name) for name in ("critic.safetensors", "critic_optimizer.safetensors")},
    }


def go_back(run: Path, step: int) -> None:
    """As if the run had been killed right after this step's checkpoint."""
    for saved in (run / "checkpoints").iterdir():
        if saved.name > f"step-{step:06d}":
            shutil.rmtree(saved)
    shutil.rmtree(run / "model")


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_to_the_same_bytes(home: Path, kind: str) -> None:
    run = home / kind
    options = [f"recipe.critic={kind}", "recipe.critic.warm_up_steps=1", "budget.checkpoint_every=2"]
    covey(*PPO, *options, "steps=4", "--out", kind, cwd=home)
    whole = marks(run, 4)
    go_back(run, 2)
    covey("train", "--resume", kind, cwd=home)
    assert marks(run, 4) == whole
    names = set(load_file(run / "checkpoints/step-000004/critic.safetensors"))
    assert {"head.weight", "head.bias"} <= names
    assert (len(names) == 2) == (kind == "shared")
    assert set(load_file(run / "model/model.safetensors")) == set(load_file(_tiny() / "model.safetensors"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_waits_for_its_critic(home: Path, kind: str) -> None:
    """In the critic's warm-up no weight of the policy moves, and its optimizer has no step behind it."""
    name = f"waits-{kind}"
    options = [f"recipe.critic={kind}", "recipe.critic.warm_up_steps=2", "steps=3", "budget.checkpoint_every=2"]
    covey(*PPO, *options, "model.dtype=float32", "--out", name, cwd=home)
    before, waited = (
        load_file(path / "model.safetensors") for path in (_tiny(), home / name / "checkpoints/step-000002/model")
    )
    after = load_file(home / name / "model/model.safetensors")
    assert all(torch.equal(before[key].float(), waited[key]) for key in before)
    assert any(not torch.equal(after[key], waited[key]) for key in after)
    critic = load_file(home / name / "checkpoints/step-000002/critic.safetensors")
    assert critic["head.weight"].abs().sum() > 0
    assert not load_file(home / name / "checkpoints/step-000002/optimizer.safetensors")
    rows = [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "critic/loss" in row]
    assert [("loss/value" in row, row["grad/norm_critic"] > 0) for row in steps] == [(False, True)] * 2 + [(True, True)]


@pytest.mark.distributed
@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_learn_what_one_learns_also_after_a_resume(home: Path, kind: str) -> None:
    options = [f"recipe.critic={kind}", "steps=4", "budget.checkpoint_every=2", "model.dtype=float64"]
    names = f"one-{kind}", f"two-{kind}"
    covey(*PPO, *options, "--out", names[0], cwd=home)
    covey(*PPO, *options, "--out", names[1], cwd=home, ranks=2)
    go_back(home / names[1], 2)
    covey("train", "--resume", names[1], cwd=home, ranks=2)
    for step in (1, 2, 3, 4):
        assert rollouts(home / names[0], step) == rollouts(home / names[1], step)
    for file in ("model/model.safetensors", "checkpoints/step-000004/critic.safetensors"):
        one, two = (load_file(home / name / file) for name in names)
        assert one.keys() == two.keys()
        gap = torch.cat([(one[name] - two[name]).flatten() for name in one]).norm()
        assert gap / torch.cat([value.flatten() for value in one.values()]).norm() <= 1e-11


@pytest.mark.long
def test_adapters_have_a_critic_with_adapters(home: Path) -> None:
    """The critic trains adapters and a head of its own; a rounded model has room for a head only."""
    options = ["model.lora.rank=2", "steps=1"]
    covey(*PPO, *options, "--out", "adapted", cwd=home)
    names = set(load_file(home / "adapted/checkpoints/step-000001/critic.safetensors"))
    assert {"head.weight", "head.bias"} < names
    assert all(".lora_" in name for name in names - {"head.weight", "head.bias"})
    covey(*PPO, *options, "model.quantize=int8", "--out", "rounded", cwd=home, expect=2)
    covey(*PPO, *options, "model.quantize=int8", "recipe.critic=shared", "--out", "headed", cwd=home)
