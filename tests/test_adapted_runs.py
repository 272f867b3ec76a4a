"""Whole runs of adapters by the real command: killed and resumed, on two ranks, asked afterwards, gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.long]

SMALL = [
    "recipe=grpo",
    "model.lora.rank=4",
    "budget.prompts_per_step=4",
    "budget.samples_per_prompt=4",
    "budget.eval_problems=1",
    "budget.eval_samples=1",
    "budget.sampling.max_tokens=20",
    "budget.optimizer.lr=1e-3",
]
CASES = {
    "adapters": ["recipe.reference=moving", "recipe.reference.every=2", "recipe.reference.mix=0.4"],
    "rounded": ["model.quantize=nf4", "model.dtype=bfloat16"],
    "whole": [
        "model.lora=null",
        "model.dtype=bfloat16",
        "recipe.reference=moving",
        "recipe.reference.every=1",
        "recipe.reference.mix=0.1",
    ],
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def command(*arguments: str, ranks: int = 1) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *launch, "-m", "covey", *arguments]


def covey(*arguments: str, cwd: Path, ranks: int = 1, expect: int = 0, **extra: str) -> str:
    done = subprocess.run(
        command(*arguments, ranks=ranks), cwd=cwd, env=ENVIRONMENT | extra, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def kept(run: Path, step: int) -> dict[str, bytes]:
    """Weights, optimizer, reference and logs."""
    saved = run / "checkpoints" / f"step-{step:06d}"
    files = [
        *saved.glob("*.safetensors"),
        *saved.glob("model/*.safetensors"),
        run / "metrics.jsonl",
        run / "ledger.jsonl",
    ]
    return {str(path.relative_to(run)): path.read_bytes() for path in (*files, *sorted(run.glob("rollouts/*")))}


def wait_for(process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 200
    while not (folder / "manifest.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline, "the run made no progress"
        time.sleep(0.005)


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, case: str) -> None:
    options = ["train", "steps=5", "budget.checkpoint_every=3", *SMALL, *CASES[case]]
    covey(*options, "--out", "whole", cwd=tmp_path)
    expected = kept(tmp_path / "whole", 5)
    assert any("reference" in name for name in expected) == (case != "rounded")
    with subprocess.Popen(command(*options, "--out", "killed"), cwd=tmp_path, env=ENVIRONMENT) as process:
        wait_for(process, tmp_path / "killed/checkpoints/step-000003")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    covey("train", "--resume", "killed", cwd=tmp_path)
    assert kept(tmp_path / "killed", 5) == expected


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/adapter_model.safetensors")


def rollouts(run: Path, step: int) -> list[tuple[str, list[int]]]:
    rows = [json.loads(line) for line in (run / f"rollouts/step-{step:06d}.jsonl").read_text().splitlines()]
    return [(row["group"], row["tokens"]) for row in rows]


@pytest.mark.distributed
def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    options = ["train", "steps=2", "model.dtype=float64", "engines.tokens_per_slice=128", *SMALL, *CASES["adapters"]]
    covey(*options, "--out", "one", cwd=tmp_path)
    covey(*options, "--out", "two", cwd=tmp_path, ranks=2)
    for step in (1, 2):
        assert rollouts(tmp_path / "one", step) == rollouts(tmp_path / "two", step)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    gap = torch.cat([(one[name] - two[name]).flatten() for name in one]).norm()
    assert gap / torch.cat([value.flatten() for value in one.values()]).norm() <= 1e-12


def test_an_adapted_run_is_asked_and_gone_on_with(tmp_path: Path) -> None:
    """Its model is a PEFT folder; `covey eval` asks base and adapter; another run goes on training it."""
    covey("train", "steps=2", *SMALL, "--out", "first", cwd=tmp_path)
    last = [json.loads(line) for line in (tmp_path / "first/metrics.jsonl").read_text().splitlines()][-1]
    asked = json.loads(covey("eval", "first", "--json", cwd=tmp_path))
    assert asked["eval/accuracy"] == last["eval/accuracy"]
    alone = json.loads(covey("eval", "first/model", "--json", *SMALL[4:7], cwd=tmp_path))
    assert alone["model"].endswith("first/model")
    covey("train", "steps=1", "model=first/model", *SMALL, "--out", "second", cwd=tmp_path)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert before.keys() == after.keys()
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 0.01, "it went on from there: one step of 1e-3"
    assert not (tmp_path / "second/model/model.safetensors").exists()
