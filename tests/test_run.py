"""Whole runs by the real command: the same bytes from the same seed, after kill -9, after Ctrl-C, and with two ranks."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SMALL = [
    "budget.prompts_per_step=4",
    "budget.samples_per_prompt=4",
    "budget.eval_problems=2",
    "budget.eval_samples=2",
    "budget.sampling.max_tokens=16",
]
SLOW_REWARD = """
import time

def score(completion, answer):
    time.sleep(0.03)
    return float(completion.rstrip(".").endswith(answer))
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def command(*arguments: str, ranks: int = 1) -> list[str]:
    if ranks == 1:
        return [sys.executable, "-m", "covey", *arguments]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "covey"]
    return [sys.executable, *launch, *arguments]


def covey(*arguments: str, cwd: Path, ranks: int = 1, expect: int = 0, **extra: str) -> str:
    done = subprocess.run(
        command(*arguments, ranks=ranks), cwd=cwd, env=ENVIRONMENT | extra, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(run: Path, step: int) -> dict[str, str]:
    """What has to be equal: weights, optimizer state, metrics, rollouts, ledger."""
    saved = run / "checkpoints" / f"step-{step:06d}"
    files = [
        saved / "model/model.safetensors",
        saved / "optimizer.safetensors",
        run / "metrics.jsonl",
        run / "ledger.jsonl",
    ]
    files += sorted((run / "rollouts").glob("*.jsonl"))
    return {str(path.relative_to(run)): sha(path) for path in files}


def steps_done(run: Path) -> int:
    try:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return 0
    return max((row["step"] for row in rows), default=0)


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while steps_done(run) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "slow.py").write_text(SLOW_REWARD)
    return folder


SIX = ["train", "steps=6", "budget.checkpoint_every=3", "reward=slow.py:score", *SMALL]


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> dict[str, str]:
    """Six steps in one go."""
    covey(*SIX, "--out", "whole", cwd=home)
    return fingerprint(home / "whole", 6)


def test_the_same_seed_gives_the_same_bytes(home: Path, undisturbed: dict[str, str]) -> None:
    covey(*SIX, "--out", "again", cwd=home)
    assert fingerprint(home / "again", 6) == undisturbed


def test_a_killed_run_goes_on_to_the_same_bytes(home: Path, undisturbed: dict[str, str]) -> None:
    with subprocess.Popen(command(*SIX, "--out", "killed"), cwd=home, env=ENVIRONMENT, text=True) as process:
        wait_for_step(process, home / "killed", 4)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (home / "killed/model").exists()
    covey("train", "--resume", "killed", cwd=home)
    assert fingerprint(home / "killed", 6) == undisturbed


@pytest.mark.parametrize("operation", [3, 17, 40])
def test_a_run_killed_at_a_file_operation_goes_on_to_the_same_bytes(
    home: Path, undisturbed: dict[str, str], operation: int
) -> None:
    """Operations of a save: the run dies inside one of its checkpoints, or between them."""
    name = f"fault-{operation}"
    covey(*SIX, "--out", name, cwd=home, expect=-signal.SIGKILL, COVEY_FAULT=f"fsync:{operation}:kill")
    if list((home / name / "checkpoints").glob("step-*")):
        covey("train", "--resume", name, cwd=home)
        assert fingerprint(home / name, 6) == undisturbed
    else:  # killed before its first checkpoint: said in one line, nothing lost that was promised
        covey("train", "--resume", name, cwd=home, expect=66)


def test_ctrl_c_finishes_the_step_saves_and_can_be_resumed(home: Path, undisturbed: dict[str, str]) -> None:
    with subprocess.Popen(
        command(*SIX, "--out", "stopped"), cwd=home, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE
    ) as process:
        wait_for_step(process, home / "stopped", 2)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in out
    saved = sorted(path.name for path in (home / "stopped/checkpoints").iterdir())
    assert saved == [f"step-{steps_done(home / 'stopped'):06d}"]
    covey("train", "--resume", "stopped", cwd=home)
    assert fingerprint(home / "stopped", 6) == undisturbed


def test_a_used_folder_is_refused_and_left_alone(home: Path, undisturbed: dict[str, str]) -> None:
    covey(*SIX, "--out", "whole", cwd=home, expect=73)
    assert fingerprint(home / "whole", 6) == undisturbed


def rollouts(run: Path, step: int) -> list[tuple[str, list[int]]]:
    rows = [json.loads(line) for line in (run / f"rollouts/step-{step:06d}.jsonl").read_text().splitlines()]
    return [(row["group"], row["tokens"]) for row in rows]


def test_samples_do_not_depend_on_how_many_are_made_side_by_side(home: Path) -> None:
    """Bitwise: rows of different widths, other neighbours, more waves; so the whole run is the same."""
    options = ["train", "steps=3", *SMALL]
    covey(*options, "engines.sampler_rows=256", "--out", "wide", cwd=home)
    covey(*options, "engines.sampler_rows=4", "--out", "narrow", cwd=home)
    assert sha(home / "wide/metrics.jsonl") == sha(home / "narrow/metrics.jsonl")


@pytest.mark.distributed
def test_two_ranks_learn_what_one_learns(home: Path) -> None:
    options = ["train", "steps=2", "model.dtype=float64", "engines.tokens_per_slice=128", *SMALL]
    covey(*options, "--out", "one", cwd=home)
    covey(*options, "--out", "two", cwd=home, ranks=2)
    for step in (1, 2):
        assert rollouts(home / "one", step) == rollouts(home / "two", step)
    one, two = (load_file(home / name / "model/model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    gap = torch.cat([(one[name] - two[name]).flatten() for name in one]).norm()
    assert gap / torch.cat([value.flatten() for value in one.values()]).norm() <= 1e-12
    assert json.loads((home / "two/machine.json").read_text())["ranks"] == 2


@pytest.mark.parametrize("recipe", ["reinforce", "grpo", "dapo"])
def test_every_recipe_runs_and_moves_the_model(home: Path, recipe: str) -> None:
    covey("train", f"recipe={recipe}", "steps=2", *SMALL, "--out", recipe, cwd=home)
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (home / recipe / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [row for row in rows if "loss/value" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["grad/norm"] > 0 for row in steps)
    before, after = (
        load_file(path) for path in (_tiny() / "model.safetensors", home / recipe / "model/model.safetensors")
    )
    assert any(not torch.equal(before[name].float(), after[name]) for name in before)


def _tiny() -> Path:
    from covey.models import find_model

    return Path(find_model("tiny"))


def test_the_model_folder_is_an_ordinary_transformers_folder(home: Path, undisturbed: dict[str, str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for folder in (home / "whole/model", home / "whole/checkpoints/step-000003/model"):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template([{"role": "user", "content": "A(abc)="}], add_generation_prompt=True)
        ids = ids["input_ids"] if not isinstance(ids, list) else ids
        made = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
        assert tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
