"""The real commands on the embedded model: train, show, evaluate, go on, stop in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from covey.errors import EXIT_CODES

SMALL = [
    "budget.prompts_per_step=2",
    "budget.samples_per_prompt=2",
    "budget.eval_problems=2",
    "budget.eval_samples=2",
    "budget.sampling.max_tokens=24",
    "engines.threads=1",
    "budget.optimizer.schedule=constant",
]
COVEY = [sys.executable, "-m", "covey"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def covey(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in a folder; it has to end with that exit code, and a mistake has to be one line."""
    done = subprocess.run(
        [*COVEY, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == code, (EXIT_CODES.get(done.returncode), done.stderr)
    assert "Traceback" not in done.stderr
    if code not in (0, 130):
        assert [line[:7] for line in done.stderr.splitlines()] == ["error: "], done.stderr
    return done


@pytest.mark.slow
def test_a_run_from_start_to_evaluation(tmp_path: Path) -> None:
    covey(tmp_path, "train", "steps=2", "recipe=grpo", *SMALL)
    run = tmp_path / "runs" / "grpo-compose-1"
    assert {"run.yaml", "metrics.jsonl", "timings.jsonl", "rollouts", "checkpoints", "model"} <= set(os.listdir(run))
    told = json.loads(covey(tmp_path, "show", "runs/grpo-compose-1", "--json").stdout)
    assert (told["steps_done"], told["recipe"], len(told["evaluations"])) == (2, "grpo", 2)

    asked = json.loads(covey(tmp_path, "eval", str(run), "--samples", "4", "--json").stdout)
    assert asked["eval/samples"] == 8  # 2 problems
    assert 0 <= asked["eval/accuracy"] <= asked["eval/pass@2"] <= asked["eval/pass@4"] <= 1
    assert "eval/accuracy_L2" in asked
    table = covey(tmp_path, "eval", str(run / "model"), SMALL[2], SMALL[4], "--temperature", "0").stdout
    assert "L2 *" in table

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    covey(tmp_path, "train", "steps=1", *SMALL, "--out", str(run), code=73)
    covey(tmp_path, "train", "--resume", str(run), "seed=1", code=2)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    told = json.loads(covey(tmp_path, "train", "--resume", str(run), "steps=3", "--json").stdout)
    assert told["steps_done"] == 3
    covey(tmp_path, "train", "steps=1", "recipe=grpo", *SMALL, "--json")
    assert (tmp_path / "runs" / "grpo-compose-2" / "model").is_dir()


@pytest.mark.slow
def test_the_same_command_gives_the_same_metrics(tmp_path: Path) -> None:
    for name in ("a", "b"):
        covey(tmp_path, "train", "steps=2", *SMALL, "--out", name, "--json")
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_an_interrupt_ends_the_step_saves_and_can_go_on(tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    process = subprocess.Popen(
        [*COVEY, "train", "steps=100000", *SMALL, "--out", str(run)],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    metrics = run / "metrics.jsonl"
    while time.monotonic() < deadline and not (metrics.is_file() and '"reward/mean"' in metrics.read_text()):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    done = sum('"reward/mean"' in line for line in metrics.read_text().splitlines())
    assert list((run / "checkpoints").iterdir())
    told = json.loads(covey(tmp_path, "train", "--resume", str(run), f"steps={done + 1}", "--json").stdout)
    assert told["steps_done"] == done + 1


@pytest.mark.slow
def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    done = covey(tmp_path, "eval", "nowhere", code=66)
    assert "nowhere" in done.stderr
    covey(tmp_path, "train", "model=nowhere", code=66)
