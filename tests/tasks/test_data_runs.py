"""Whole runs on own data by the real command: the order goes on exactly, changed data is refused, nothing held out is fine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import covey
from covey.errors import DataError, MissingInputError

pytestmark = [pytest.mark.slow, pytest.mark.long]

SMALL = {
    "budget.prompts_per_step": 4,
    "budget.samples_per_prompt": 2,
    "budget.eval_problems": 2,
    "budget.eval_samples": 1,
    "budget.sampling.max_tokens": 4,
    "budget.checkpoint_every": 3,
    "budget.optimizer.schedule": "constant",
    "engines.threads": 1,
}
MIXED = ["data=[sums.jsonl, chats.json]", "task.weights.sums=3", "task.tasks.sums.order=-level"]


def run(*arguments: str, cwd: Path, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "covey", *arguments],
        cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout if expect == 0 else done.stderr


def train(*arguments: str, cwd: Path, expect: int = 0) -> str:
    return run("train", *(f"{name}={value}" for name, value in SMALL.items()), *arguments, cwd=cwd, expect=expect)


def trained(folder: Path) -> list[list[str]]:
    return [json.loads(line)["trained"] for line in (folder / "ledger.jsonl").read_text().splitlines()]


def sums(count: int = 9) -> list[dict[str, Any]]:
    return [{"id": i, "prompt": f"{i}+1=", "answer": str(i + 1), "level": i % 3} for i in range(count)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums()))
    chats = [{"prompt": [{"role": "user", "content": f"{i}+2="}], "answer": str(i + 2)} for i in range(6)]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    return tmp_path


def test_a_mixture_goes_on_with_the_very_next_prompts(home: Path) -> None:
    train("steps=6", *MIXED, "--out", "whole", cwd=home)
    train("steps=3", *MIXED, "--out", "parts", cwd=home)
    assert trained(home / "parts") == trained(home / "whole")[:3]
    run("train", "--resume", "parts", "steps=6", cwd=home)
    steps = trained(home / "parts")
    assert steps == trained(home / "whole")
    assert [Counter(name.partition("/")[0] for name in step) for step in steps] == [{"sums": 3, "chats": 1}] * 6
    issued = [name for step in steps for name in step if name.startswith("sums/")]
    assert len(set(issued)) == len(issued) == 18  # two epochs and more: a second visit is another group
    assert issued[-1].endswith("#2")
    row = read(home / "whole/metrics.jsonl")[-1]
    assert {"eval/accuracy", "eval/accuracy_all", "eval/accuracy_sums.held_out", "eval/accuracy_chats.held_out"} <= set(
        row
    )


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_does_not_go_on_with_other_rows(home: Path) -> None:
    train("steps=3", *MIXED, "--out", "run", cwd=home)
    rows = (home / "sums.jsonl").read_text()
    (home / "sums.jsonl").write_text(rows + json.dumps({"id": 99, "prompt": "more", "answer": "x", "level": 0}) + "\n")
    line = run("train", "--resume", "run", "steps=6", cwd=home, expect=65)
    assert line.strip().endswith(
        "the rows of sums have changed since its last checkpoint. Bring the rows back that it was begun with, or start a new run."
    )
    assert len(line.splitlines()) == 1
    (home / "sums.jsonl").write_text(rows)
    run("train", "--resume", "run", "steps=6", cwd=home)


def test_nothing_held_out(home: Path) -> None:
    shown = train("steps=2", "data=sums.jsonl", "task.held_share=0", "--out", "run", cwd=home)
    assert shown.count("no problems are held out") == 1
    assert "eval  after" not in shown
    assert (home / "run/model/config.json").is_file()
    run("show", "run", cwd=home)
    line = run("eval", "run", cwd=home, expect=65)
    assert "task: it holds out no problems. Set task.held_share=0.1 or task.held_data=FILE." in line


def test_rows_from_python(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(home)
    rows = sums()
    done = covey.train(data=iter(rows), steps=2, out="one", quiet=True, **{**SMALL, "task.order": "level"})
    assert [name.rpartition("#")[0] for step in trained(done.folder) for name in step]
    mixed = covey.train(
        data={"a": rows, "b": "chats.json"}, reward=lambda completion: float(len(completion)), steps=3, out="two",
        quiet=True, **{**SMALL, "task.weights.a": 3, "task.tasks.a.order": "-level"},
    )  # fmt: skip
    assert [Counter(name[0] for name in step) for step in trained(mixed.folder)] == [{"a": 3, "b": 1}] * 3
    # going on needs the same rows, as Python's are nowhere else
    with pytest.raises(DataError, match="one object with id"):
        covey.train(data=rows[0], steps=1)


def test_rows_from_python_are_given_again_to_go_on(home: Path) -> None:
    script = home / "go.py"
    script.write_text(
        "import json, sys, torch, covey\ntorch.set_num_threads(1)\n"
        f"SMALL = {SMALL!r}\nrows = {sums()!r}\n"
        "if sys.argv[1] == 'start':\n    covey.train(data=rows, steps=3, out='run', quiet=True, **SMALL)\n"
        "elif sys.argv[1] == 'same':\n    print(covey.train(data=[dict(row) for row in rows], resume='run', quiet=True).step)\n"
        "elif sys.argv[1] == 'other':\n    covey.train(data=rows[1:], resume='run', quiet=True)\n"
        "else:\n    covey.train(resume='run', quiet=True)\n"
    )

    def go(how: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "go.py", how], cwd=home, env=environment, capture_output=True, text=True, timeout=200
        )

    assert go("start").returncode == 0
    assert go("same").stdout.strip() == "3"
    for how in ("other", "none"):
        assert MissingInputError.__name__ in go(how).stderr
