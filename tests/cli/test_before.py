"""Before the run, by the real commands: new, check, doctor, --dry-run, and a task's folder in the place of settings."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from covey.cli.train import newest_run

Result = tuple[int, str, str]
COVEY = [sys.executable, "-m", "covey"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
QUICK = ["budget.optimizer.schedule=constant", "budget.eval_samples=2", "engines.threads=1"]


def covey(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own; it has to end with that exit code."""
    done = subprocess.run(
        [*COVEY, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("command", ["new", "check", "doctor", "train"])
def test_help_fits_one_screen_and_loads_nothing_heavy(command: str) -> None:
    code = (
        f"import sys\nfrom covey.cli import main\nassert main([{command!r}, '--help']) == 0\n"
        "assert not {'torch', 'transformers', 'numpy', 'covey.recipes', 'covey.registry'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) <= 40
    assert "Example:" in done.stdout


# new


def test_new_makes_a_task_and_says_what_is_next(covey_: Callable[..., Result]) -> None:
    code, out, _ = covey_("new", "my-task")
    assert code == 0
    assert "covey check my-task" in out
    assert {path.name for path in Path("my-task").iterdir()} == {"data.jsonl", "reward.py", "run.yaml", "README.md"}
    before = {path: path.read_bytes() for path in Path("my-task").iterdir()}
    code, out, err = covey_("new", "my-task")
    assert (code, out) == (73, "")
    assert err == "error: my-task: is not empty. Choose another name, or train what is there: covey train my-task.\n"
    assert {path: path.read_bytes() for path in Path("my-task").iterdir()} == before
    told = json.loads(covey_("new", "other", "--json")[1])
    assert told["folder"] == "other"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("new", "a b"), 2, "cannot name a task"),
        (("new", "../.."), 2, "cannot name a task"),
        (("new", "x", "--data", "absent.jsonl"), 66, "absent.jsonl"),
        (("new",), 2, "NAME"),
        (("check", "absent.yaml"), 66, "absent.yaml"),
        (("check", "empty"), 66, "the folder has no run.yaml"),
        (("check", "my-tsak"), 66, "Did you mean 'my-task'?"),
        (("check", "elsewhere"), 66, "neither a setting nor a task's folder. `covey new elsewhere` makes a task"),
        (("check", "my-task/data.jsonl"), 66, "A file of rows is data=my-task/data.jsonl"),
        (("check", "steps"), 2, "steps: not a setting. Write steps=VALUE."),
        (("check", "my-task", "lerning_rate=1e-5"), 2, "lerning_rate"),
        (("check", "my-task", "model=absent"), 66, "absent"),
        (("check", "my-task", "data=absent.jsonl"), 66, "absent.jsonl"),
        (("check", "my-task", "budget.samples_per_prompt=1"), 2, "a group of one"),
        (("check", "my-task", "--config", "my-task/run.yaml"), 2, "Give one of them"),
        (("check", "my-task", "engines.server.url=http://127.0.0.1:9/v1"), 2, "a server takes none"),
        (("check", "my-task", "recipe=ppo", "model.lora.rank=2", "model.quantize=int8"), 2, "rounded weights"),
        (("train", "empty"), 66, "covey new empty"),
        (("train", "my-task", "--resume"), 66, "there is no such run to go on with. Start one: covey train my-task."),
        (("train", "--resume"), 2, "no run is named"),
        (("train", "--resume", "--json"), 2, "no run is named"),
        (("train", "--resume", "steps=3"), 2, "no run is named"),
        (("train", "--resume", "absent"), 66, "absent"),
        (("train", "ran", "steps=2"), 2, "is a run already. Go on with `--resume ran`"),
        (("doctor", "steps=3"), 2, "doctor looks at the machine"),
        (("doctor", "tiny"), 2, "not a setting"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_line(
    covey_: Callable[..., Result], arguments: tuple[str, ...], code: int, words: str
) -> None:
    covey_("new", "my-task")
    Path("empty").mkdir()
    Path("ran").mkdir()
    Path("ran/run.yaml").write_text("steps: 3\n")
    Path("ran/metrics.jsonl").write_text("")
    found, out, err = covey_(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


# check


def test_check_says_what_will_happen(covey_: Callable[..., Result]) -> None:
    covey_("new", "my-task")
    code, out, err = covey_("check", "my-task")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert " ".join(lines[0].split()) == "data 17 rows to train on, 7 held out; columns prompt answer"
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "data", "template", "reward", "recipe", "batch", "plan", "all",
    ]  # fmt: skip
    assert "reward.py:score  gold answers 1.00 (as ANSWER, ANSWER.), wrong ones 0.00, empty 0.00" in out
    assert lines[-1] == "all good"
    assert (code, covey_("check", "--config", "my-task/run.yaml")[0]) == (0, 0)


def test_check_fails_on_what_is_bad_and_with_strict_on_warnings(covey_: Callable[..., Result]) -> None:
    covey_("new", "my-task")
    reward = Path("my-task/reward.py")
    reward.write_text("def score(completion, answer):\n    return float(completion in answer)\n")
    code, out, err = covey_("check", "my-task")
    assert (code, err) == (65, "")
    assert "x an empty response earns 1.00, a gold answer 1.00" in out
    told = json.loads(covey_("check", "my-task", "--json")[1])
    assert (told["ok"], told["status"]) == (False, "bad")
    assert {"name", "status", "line", "knob"} == set(told["findings"][0])
    reward.write_text("def score(completion, answer):\n    return float(answer in completion)\n")
    assert covey_("check", "my-task")[0] == 0
    assert covey_("check", "my-task", "--strict")[0] == 65


def test_the_page_shows_what_the_commands_print(covey_: Callable[..., Result]) -> None:
    """`docs/own-task.md`, figures of time and memory apart."""
    page = (Path(__file__).parents[2] / "docs" / "own-task.md").read_text()

    def plain(text: str) -> list[str]:
        return [re.sub(r"[0-9.]+ (ms|MiB|GiB)", r"N \1", line).strip() for line in text.strip().splitlines()]

    for command in ("new my-task", "check my-task"):
        shown = re.search(rf"```console\n\$ covey {command}\n(.*?)```", page, re.S)
        assert shown
        assert plain(shown[1]) == plain(covey_(*command.split())[1])
    reward = Path("my-task/reward.py")
    reward.write_text(reward.read_text().replace("== answer", "in answer"))
    shown = re.search(r"```\n(reward  .*?)```", page, re.S)
    assert shown
    assert "\n".join(plain(shown[1])) in "\n".join(plain(covey_("check", "my-task")[1]))


@pytest.mark.slow
def test_check_takes_seconds(tmp_path: Path) -> None:
    covey(tmp_path, "new", "my-task")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    covey(tmp_path, "check", "my-task")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 12


# train --dry-run


def test_a_dry_run_prints_yaml_alone_on_stdout(covey_: Callable[..., Result]) -> None:
    covey_("new", "my-task")
    code, out, err = covey_("train", "my-task", "--dry-run", "seed=5")
    assert code == 0
    config = yaml.safe_load(out)
    assert (config["name"], config["budget"]["seed"]) == ("my-task", 5)
    assert "all good" in err
    assert "plan" in err
    assert not Path("runs").exists()
    Path("my-task/reward.py").write_text("def score(completion):\n    return 0.5\n")
    code, out, err = covey_("train", "my-task", "--dry-run", "--json")
    assert code == 65
    assert json.loads(out)["name"] == "my-task"
    assert "whatever the response" in err


# doctor


@pytest.mark.slow
@pytest.mark.long
def test_the_doctor_finds_nothing_here(tmp_path: Path) -> None:
    told = json.loads(covey(tmp_path, "doctor", "--json", "model=tiny").stdout)
    assert told["ok"], told
    assert {finding["name"] for finding in told["findings"]} >= {
        "machine", "versions", "extras", "workers", "sandbox", "sampling", "learning", "network", "model", "template",
    }  # fmt: skip
    text = covey(tmp_path, "doctor").stdout
    assert text.splitlines()[-1] == "all good"
    covey(tmp_path, "doctor", "model=absent", code=65)


# From the first word to the model, and on again


@pytest.mark.slow
def test_a_task_from_new_to_a_model(tmp_path: Path) -> None:
    covey(tmp_path, "new", "my-task")
    covey(tmp_path, "check", "my-task", "--strict")
    told = json.loads(covey(tmp_path, "train", "my-task", "steps=2", *QUICK, "--json").stdout)
    assert told["steps_done"] == 2
    run = tmp_path / "runs" / "my-task-1"
    assert (run / "model").is_dir()
    data = yaml.safe_load((run / "run.yaml").read_text())["task"]["data"]
    assert data == str(tmp_path / "my-task" / "data.jsonl")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    told = json.loads(covey(elsewhere, "train", "--resume", "../runs/my-task-1", "steps=3", "--json").stdout)
    assert told["steps_done"] == 3
    done = covey(tmp_path, "train", "my-task", "--resume", "steps=4", "--json")
    assert json.loads(done.stdout)["steps_done"] == 4
    assert (
        "note: runs/my-task-1 keeps its own settings; my-task/run.yaml says (the run): budget.steps 100 (4)"
        in done.stderr
    )
    told = json.loads(covey(tmp_path, "train", "--resume", "my-task", "steps=5", "--json").stdout)
    assert told["steps_done"] == 5
    covey(tmp_path, "train", "--config", "my-task/run.yaml", "steps=1", *QUICK, "--json")
    assert (tmp_path / "runs" / "my-task-2" / "model").is_dir()
    asked = json.loads(covey(tmp_path, "eval", "runs/my-task-1", "--samples", "2", "--json").stdout)
    assert asked["task"] == "rows"


@pytest.mark.slow
@pytest.mark.long
def test_an_interrupted_task_says_a_command_that_goes_on(tmp_path: Path) -> None:
    covey(tmp_path, "new", "my-task")
    process = subprocess.Popen(
        [*COVEY, "train", "my-task", "steps=100000", *QUICK],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics, deadline = tmp_path / "runs/my-task-1/metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and '"reward/mean"' in metrics.read_text()):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    said = next(line for line in out.splitlines() if line.startswith("next: "))
    command = said.removeprefix("next: ").split("   |   ")[0].split()
    assert command[:2] == ["covey", "train"]
    done = sum('"reward/mean"' in line for line in metrics.read_text().splitlines())
    told = json.loads(covey(tmp_path, *command[1:], f"steps={done + 1}", "--json").stdout)
    assert told["steps_done"] == done + 1
    told = json.loads(covey(tmp_path, "train", "my-task", "--resume", f"steps={done + 2}", "--json").stdout)
    assert told["steps_done"] == done + 2


def test_the_newest_run_has_the_highest_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    file = Path("mine/run.yaml")
    file.write_text("steps: 3\n")
    for name in ("mine-2", "mine-10", "mine-9", "mine-x", "mine-11-old", "other-12"):
        Path("runs", name).mkdir(parents=True)
    Path("runs/mine-99").write_text("no folder")
    assert newest_run(file) == Path("runs/mine-10")
