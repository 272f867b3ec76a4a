"""The rewards that ship as a user names them: mistakes are one line with the exit code of their class."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from covey import rewards
from covey.registry import kinds

ROWS = [
    {"prompt": "1+1=", "answer": "2"},
    {"prompt": "root of 2?", "answer": r"\sqrt{2}"},
    {"prompt": "x?", "answer": "3"},
]


def covey(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return train(folder, *words)


def train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "covey", "train", "data=rows.jsonl", "task.held_share=0", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_every_kind_is_there() -> None:
    assert rewards.MathMatch.kind == "math"
    names = {
        "math",
        "json_schema",
        "regex",
        "tags",
        "length_band",
        "cosine_length",
        "repetition",
        "reward_model",
        "mix",
    }
    assert names <= set(kinds("reward"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["reward=mth"], 2, "error: reward: there is no reward 'mth'. Did you mean 'math'?"),
        (["reward=regex"], 2, "error: reward.pattern: absent. RegexMatch needs it."),
        (["reward=regex", "reward.pattern=(a"], 2, "reward.pattern: missing ), unterminated subpattern at position 0"),
        (["reward=json_schema", "reward.form=absent.json"], 66, "error: reward.form: there is no file absent.json."),
        (["reward=reward_model", "reward.path=./absent"], 66, "error: reward model ./absent: there is no such folder."),
        (["reward=json_schema", "reward.column=form"], 65, "the row has no column 'form'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, words: list[str], code: int, line: str) -> None:
    done = covey(tmp_path, *words, "budget.steps=1", "--out", "run")
    assert done.returncode == code, done.stderr
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_column_that_some_rows_lack_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def score(completion, topic): return 1.0\n")
    last = {"prompt": "5?", "answer": "5", "id": "bare"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, "topic": "t"}) + "\n" for row in ROWS))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps(last) + "\n")
    done = train(tmp_path, "reward=r.py:score", "budget.steps=1", "--out", "run")
    assert done.returncode == 65, done.stderr
    assert "reward score: the row has no column 'topic'." in done.stderr
    assert "The row is rows/bare." in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_options_reach_the_configuration(tmp_path: Path) -> None:
    done = covey(tmp_path, "reward=cosine_length", "reward.of={kind: math, on_hang: wrong}", "--dry-run")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout[done.stdout.index("recipe:") :])["reward"]
    assert (found["kind"], found["of"]["kind"], found["of"]["on_hang"]) == ("cosine_length", "math", "wrong")


@pytest.mark.slow
@pytest.mark.distributed
def test_a_step_is_trained_with_a_mix_of_them(tmp_path: Path) -> None:
    words = [
        "reward=[math,tags,repetition]",
        "budget.steps=1",
        "budget.prompts_per_step=2",
        "budget.samples_per_prompt=4",
    ]
    words += ["budget.sampling.max_tokens=8", "budget.checkpoint_every=null", "--out", "run"]
    done = covey(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(key.startswith("reward/") and "repetition" in key for line in lines for key in line), sorted(lines[-1])
