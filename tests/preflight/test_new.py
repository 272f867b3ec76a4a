"""A new task's folder: what is in it works as it stands, and follows the columns of one's own data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from covey.config import resolve
from covey.errors import ConfigError, CoveyError, DataError, MissingInputError, OutputError
from covey.models.vocabulary import CHARACTERS
from covey.preflight.new import new_task
from covey.tasks.compose.tiny import FUNCTIONS


def run_tests(folder: Path) -> str:
    done = subprocess.run([sys.executable, "reward.py"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_sample_is_right_and_readable_by_the_embedded_model(tmp_path: Path) -> None:
    made = new_task("mine", home=tmp_path)
    assert {path.name for path in made} == {"data.jsonl", "reward.py", "run.yaml", "README.md"}
    rows = [json.loads(line) for line in (tmp_path / "mine" / "data.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert len({row["prompt"] for row in rows}) == 24
    for row in rows:
        outer, inner, value = row["prompt"][0], row["prompt"][2], row["prompt"][4:-3]
        assert row["prompt"] == f"{outer}({inner}({value}))="
        assert row["answer"] == FUNCTIONS[outer](FUNCTIONS[inner](value))
        assert set(row["prompt"] + row["answer"]) <= set(CHARACTERS)


def test_settings_are_short_and_every_line_says_what_it_is_for(tmp_path: Path) -> None:
    new_task("mine", home=tmp_path)
    text = (tmp_path / "mine" / "run.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) <= 12
    assert all("  # " in line for line in lines)
    config = resolve(file=tmp_path / "mine" / "run.yaml").config
    assert (config.name, config.model.path, config.task.size) == ("mine", "tiny", 17)  # type: ignore[attr-defined]
    assert len((tmp_path / "mine" / "README.md").read_text().splitlines()) < 12


def test_the_rewards_tests_run_and_can_fail(tmp_path: Path) -> None:
    new_task("mine", home=tmp_path)
    folder = tmp_path / "mine"
    assert run_tests(folder).count("ok ") == 3
    file = folder / "reward.py"
    file.write_text(file.read_text().replace("== answer", "in answer"))  # a substring test: empty text is in everything
    done = subprocess.run([sys.executable, "reward.py"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("file", "text", "columns"),
    [
        ("mine.jsonl", '{"question": "1?", "solution": "2"}\n{"question": "2?", "solution": "3"}\n', ("question", "solution")),
        ("mine.csv", "problem,target,level\n1+1?,2,a\n1+2?,3,b\n", ("problem", "target")),
        ("mine.jsonl", '{"prompt": "1+1?", "answer": 2}\n{"prompt": "1+2?", "answer": 3.5}\n', ("prompt", "answer")),
        ("it's.jsonl", '{"prompt": "a \\"", "answer": "a\\n\\"b\\""}\n{"prompt": "b", "answer": "c"}\n', ("prompt", "answer")),
    ],
)  # fmt: skip
def test_ones_own_data_stays_where_it_is_and_its_columns_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, columns: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(file).write_text(text)
    made = new_task("task-1", data=file)
    assert {path.name for path in made} == {"reward.py", "run.yaml", "README.md"}
    assert run_tests(tmp_path / "task-1").count("ok ") == 3
    monkeypatch.chdir("/")
    task = resolve(["task.held_share=0"], file=tmp_path / "task-1" / "run.yaml").config.task
    prompts = [task.train(0, at) for at in range(2)]  # type: ignore[attr-defined]
    assert all(prompt.answer is not None for prompt in prompts)
    written = (tmp_path / "task-1" / "run.yaml").read_text()
    for kind, name in zip(("prompt", "answer"), columns, strict=True):
        assert (f"task.{kind}_column: {name}" in written) == (kind != name)


def test_data_without_answers_gets_a_reward_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text('{"prompt": "say hi", "tone": "warm"}\n')
    new_task("mine", data="mine.jsonl", model="some/model")
    assert "tone" in Path("mine/reward.py").read_text()
    assert run_tests(tmp_path / "mine").count("ok ") == 3
    assert "model: some/model " in Path("mine/run.yaml").read_text()


@pytest.mark.parametrize("name", ["", "..", "a b", "-x", "a/../..", "x" * 101, "é", "runs", "a\nb", "a$b"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a task"):
        new_task(name, home=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert new_task("mine", home=tmp_path)
    with pytest.raises(OutputError, match="not empty"):
        new_task("mine", home=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        new_task("file", home=tmp_path)


@pytest.mark.parametrize(
    ("text", "error"),
    [*((text, DataError) for text in ("", "{}\n", "[1]\n", "no json\n", '{"x": 1}\n')), (None, MissingInputError)],
)
def test_data_that_cannot_be_used_makes_no_folder(tmp_path: Path, text: str | None, error: type[CoveyError]) -> None:
    if text is not None:
        (tmp_path / "d.jsonl").write_text(text)
    with pytest.raises(error):
        new_task("mine", home=tmp_path, data=str(tmp_path / "d.jsonl"))
    assert not (tmp_path / "mine").exists()
