"""Files that a configuration names: found beside the YAML, stored so that a run goes on from any directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from covey.config import resolve
from covey.config.changes import refuse_changes
from covey.config.paths import anchor, beside, same
from covey.errors import ConfigError
from covey.tasks.rows import from_rows

REWARD = "def score(completion, answer):\n    return float(completion == answer)\n"


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task's folder, in a directory that is not the current one."""
    folder = tmp_path / "there" / "mine"
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text('{"prompt": "1", "answer": "1"}\n{"prompt": "2", "answer": "2"}\n')
    (folder / "reward.py").write_text(REWARD)
    (folder / "run.yaml").write_text("data: data.jsonl\nreward: reward.py:score\nmodel: tiny\ntask.held_share: 0.5\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_what_stands_beside_the_yaml_is_meant(task: Path) -> None:
    relative = Path("..") / "there" / "mine" / "run.yaml"
    config = resolve(file=relative).config
    assert config.task.data == str(relative.parent / "data.jsonl")  # type: ignore[attr-defined]
    assert config.reward.function == f"{relative.parent / 'reward.py'}:score"  # type: ignore[union-attr]
    assert config.name == "mine"
    config.check_data()


def test_the_folder_of_the_yaml_wins_over_the_current_one(task: Path) -> None:
    Path("data.jsonl").write_text('{"prompt": "other", "answer": "3"}\n')
    assert resolve(file=task / "run.yaml").config.task.data == str(task / "data.jsonl")  # type: ignore[attr-defined]


def test_what_is_not_there_is_read_from_the_current_directory(task: Path) -> None:
    (task / "data.jsonl").unlink()
    Path("data.jsonl").write_text('{"prompt": "other", "answer": "3"}\n')
    assert resolve(file=task / "run.yaml").config.task.data == "data.jsonl"  # type: ignore[attr-defined]


def test_a_flag_is_read_from_the_current_directory(task: Path) -> None:
    Path("data.jsonl").write_text('{"prompt": "other", "answer": "3"}\n')
    config = resolve(["data=data.jsonl"], file=task / "run.yaml").config
    assert config.task.data == "data.jsonl"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "option", "changed"),
    [
        ("data.jsonl", "data", True),
        ("reward.py:score", "reward", True),
        ({"kind": "rows", "data": "data.jsonl"}, "task", True),
        ({"parts": [{"data": "data.jsonl"}]}, "task", True),
        ({"reward.py:score": 1.0}, "reward", True),
        (["data.jsonl"], "data", True),
        ("sub", "data", True),
        ("sub", "kind", False),
        ("*.jsonl", "data", True),
        ("*.jsonl", "pattern", False),
        ("absent.jsonl", "data", False),
        ("absent.py:score", "reward", False),
        ("number", "kind", False),
        ("", "data", False),
        (3, "data", False),
        ("x" * 5000, "data", False),
        ("a\0b.jsonl", "data", False),
    ],
)
def test_what_is_a_path(task: Path, value: object, option: str, changed: bool) -> None:
    (task / "sub").mkdir()
    (task / "number").write_text("")
    found = beside(value, task, option=option)
    assert (found != value) == changed
    assert (str(task) in str(found)) == changed
    assert beside(found, task, option=option) == found  # what is absolute stays


def test_a_stored_configuration_is_read_from_anywhere(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(task)
    config = resolve(["data=data.jsonl", "reward=reward.py:score", "name=x"]).config
    stored = tmp_path / "run.yaml"
    stored.write_text(anchor(config).write_yaml())
    monkeypatch.chdir("/")
    again = resolve(file=stored).config
    again.check_data()
    assert again.name == "x"
    assert again.task.data == str(task / "data.jsonl")  # type: ignore[attr-defined]
    assert anchor(again).plain() == again.plain()


def test_what_was_given_in_python_survives_an_anchor() -> None:
    rows = [{"prompt": str(n), "answer": str(n)} for n in range(4)]
    config = resolve(values={"task": from_rows(rows, reward=lambda completion: 1.0)}).config
    assert anchor(config).plain() == config.plain()


def test_a_path_written_another_way_is_no_change(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(task)
    assert same("data.jsonl", str(task / "data.jsonl"))
    assert not same("data.jsonl", str(task / "reward.py"))
    assert same(None, None)
    assert not same(None, "data.jsonl")
    made = resolve(["data=data.jsonl"]).config
    refuse_changes(task, made.plain(), anchor(made).plain())
    (task / "more.jsonl").write_text('{"prompt": "3", "answer": "1"}\n')
    with pytest.raises(ConfigError, match=r"more\.jsonl"):
        refuse_changes(task, made.plain(), resolve(["data=more.jsonl"]).config.plain())


def test_the_file_alone_names_no_run(task: Path) -> None:
    """Only `run.yaml` in a folder with a usable name does."""
    other = task / "other.yaml"
    other.write_text((task / "run.yaml").read_text())
    assert resolve(file=other).config.name != "mine"
    assert resolve(["name=given"], file=task / "run.yaml").config.name == "given"
    odd = task.parent / "no name"
    task.rename(odd)
    assert resolve(file=odd / "run.yaml").config.name == "dr_grpo-rows"
