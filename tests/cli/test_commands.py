"""The commands: output, one-line errors with the exit code of their class, what they load."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import covey.cli
from covey import recipes
from covey.cli import main
from covey.cli.evaluate import newest_model, settle
from covey.cli.train import settle_resume
from covey.config import RunConfig, resolve
from covey.errors import EXIT_CODES, ConfigError, MissingInputError, OutputError

Result = tuple[int, str, str]


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )


def error_line(result: Result) -> str:
    """The one line of a user's mistake; nothing on stdout, no traceback."""
    _, out, err = result
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    return err.strip()


# What is loaded

HEAVY = ("torch", "jaxtyping", "transformers", "numpy", "covey.recipes", "covey.registry")


def loaded_after(code: str) -> list[str]:
    """Which of the heavy modules a piece of code loads."""
    done = python("-c", f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])")
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[-2].split()


def test_import_covey_loads_nothing_heavy() -> None:
    assert loaded_after("import covey; covey.__version__; dir(covey)") == []


@pytest.mark.parametrize(
    "command", [[], ["train"], ["eval"], ["sft"], ["show"], ["recipes", "list"], ["config", "schema"]]
)
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    assert loaded_after(f"from covey.cli import main; assert main({[*command, '--help']!r}) == 0") == []


def test_usage_errors_load_nothing_heavy() -> None:
    assert loaded_after("from covey.cli import main; assert main(['trian']) == 2") == []


def test_public_names_are_there_on_demand() -> None:
    assert covey.recipes is recipes
    assert covey.Prompt.__name__ == "Prompt"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        covey.trian  # noqa: B018


# Help


@pytest.mark.parametrize(
    "command", [[], ["train"], ["eval"], ["sft"], ["show"], ["recipes", "explain"], ["config", "show"]]
)
def test_help_fits_one_screen_and_has_an_example(covey_: Callable[..., Result], command: list[str]) -> None:
    code, out, err = covey_(*command, "--help")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 110
    assert "Example" in out
    assert f"covey {' '.join(command)}".strip() in out.partition("Example")[2]


def test_help_names_every_exit_code(covey_: Callable[..., Result]) -> None:
    _, out, _ = covey_("--help")
    for code, meaning in EXIT_CODES.items():
        assert f"{code}  {meaning}" in out
    assert covey_()[1] == out  # no command at all is a question too


def test_version(covey_: Callable[..., Result]) -> None:
    assert covey_("--version") == (0, f"covey {covey.__version__}\n", "")


# Mistakes


def test_a_mistyped_command_or_option_is_understood(covey_: Callable[..., Result]) -> None:
    result = covey_("trian")
    assert result[0] == 2
    assert error_line(result) == "error: covey: No such command 'trian'. Did you mean 'train'? See `covey --help`."
    result = covey_("train", "--steps", "3")
    assert result[0] == 2
    assert "Settings are written KEY=VALUE" in error_line(result)
    assert covey_("eval")[0] == 2


MISTAKES: dict[tuple[str, ...], tuple[int, str]] = {
    ("train", "stpes=3"): (2, "Did you mean 'steps'?"),
    ("train", "recipe=dapoo"): (2, "Did you mean 'dapo'?"),
    ("train", "steps=0"): (2, "budget.steps: got 0"),
    ("train", "--config", "nope.yaml"): (66, "nope.yaml: cannot be read (No such file or directory)"),
    ("train", "data=nope.jsonl"): (66, "nope.jsonl"),
    ("train", "--resume", "nope"): (66, "nope: does not exist"),
    ("train", "--resume", "file"): (66, "file: is a file"),
    ("train", "--resume", "."): (66, "has no run.yaml"),
    ("train", "--resume", "a", "--out", "b"): (2, "--out beside --resume"),
    ("train", "--resume", "a", "--config", "b"): (2, "--config beside --resume"),
    ("train", "--out", "file"): (73, "file: is a file"),
    ("train", "--out", "file/below"): (73, "file: is a file"),
    ("train", "--out", "used"): (73, "used: is not empty. Choose another folder, or go on with --resume used."),
    ("train", "reward=nope.py:f"): (66, "nope.py"),
    ("eval", "nope", "steps=3"): (2, "steps: an evaluation does not read it"),
    ("eval", "nope", "model=tiny"): (2, "model: the model is nope already"),
    ("eval", "nope", "--samples", "0"): (2, "--samples"),
    ("show", "nope"): (66, "nope: does not exist"),
    ("recipes", "explain", "grop"): (2, "Did you mean 'grpo'?"),
    ("config", "show", "x=1"): (2, "there is no such key"),
    ("config", "schema", "budget.optmizer"): (2, "Did you mean 'budget.optimizer'?"),
    ("sft", "model=tiny", "out=y"): (2, "data: absent. Write data=VALUE."),
    ("sft", "data=x", "out=y", "stesp=3"): (2, "stesp: there is no such key. Did you mean 'steps'?"),
    ("sft", "data=x", "data=y"): (2, "data: given twice"),
    ("sft", "model=tiny", "data=x", "out=y", "lr=fast"): (2, "lr: got 'fast'"),
    ("sft", "model=tiny", "data=nope.jsonl", "out=y"): (66, "nope.jsonl"),
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_with_its_exit_code(
    covey_: Callable[..., Result], arguments: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("keep")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "run.yaml").write_text("keep")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    code, words = MISTAKES[arguments]
    result = covey_(*arguments)
    assert words in error_line(result)
    assert result[0] == code
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before  # nothing made, nothing touched
    assert (tmp_path / "used" / "run.yaml").read_text() == "keep"


def test_a_mistake_is_found_before_transformers_is_loaded() -> None:
    code = "from covey.cli import main; assert main(['train', 'recipe.surrogate.hgih=1', 'steps=1']) == 2"
    assert "transformers" not in loaded_after(code)


def test_python_m_covey_is_covey(tmp_path: Path) -> None:
    done = python("-m", "covey", "trian", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: covey: No such command 'trian'. Did you mean 'train'? See `covey --help`.\n"


def test_debugging_shows_the_traceback(covey_: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVEY_DEBUG", "1")
    code, _, err = covey_("train", "steps=0")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: budget.steps: got 0")


def test_bugs_full_disks_and_interrupts(covey_: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[BaseException] = []

    def fail(*_: Any, **__: Any) -> None:
        raise raised[-1]

    monkeypatch.setattr("covey.recipes.get", fail)
    raised.append(OSError(errno.ENOSPC, "No space left on device", "run.yaml"))
    result = covey_("recipes", "explain", "x")
    assert (result[0], error_line(result)) == (74, "error: run.yaml: cannot be written (No space left on device)")
    raised.append(KeyboardInterrupt())
    assert covey_("recipes", "explain", "x")[0] == 130
    for bug in (ValueError("a bug"), OSError(errno.ENOENT, "a bug")):
        raised.append(bug)
        with pytest.raises(type(bug)):  # the interpreter prints the traceback and exits with 1
            main(["recipes", "explain", "x"])


# Listings


def test_config_show_says_where_values_come_from(covey_: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("budget:\n  seed: 5\n")
    _, out, _ = covey_("config", "show", "--config", "mine.yaml", "steps=3", "recipe=grpo")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["budget.steps"] == ["3", "flag"]
    assert rows["budget.seed"] == ["5", "mine.yaml:2"]
    assert rows["report.completions_every"][-1] == "default"
    assert rows["recipe.penalties.kl.coef"] == ["0.04", "flag"]
    told = json.loads(covey_("config", "show", "steps=3", "--json")[1])
    assert told["budget.steps"] == {"value": 3, "origin": "flag"}
    flags = [
        f"{key}={json.dumps(item['value'])}" for key, item in told.items() if key.startswith(("budget", "engines"))
    ]
    assert resolve(flags).config.budget == resolve(["steps=3"]).config.budget  # what is shown can be written


def test_config_schema(covey_: Callable[..., Result]) -> None:
    _, out, _ = covey_("config", "schema")
    for key in (
        "budget.optimizer.lr",
        "recipe.surrogate.low",
        "recipe.penalties.kl.coef",
        "task.levels",
        "reward.function",
    ):
        assert f"{key}\n    " in out
    _, part, _ = covey_("config", "schema", "budget.steps")
    assert part == "budget.steps\n    integer; steps; >= 1; default 100\n    length of the run\n"
    assert "budget" in json.loads(covey_("config", "schema", "--json")[1])["properties"]
    rows = json.loads(covey_("config", "schema", "budget.steps", "--json")[1])
    assert [(row["path"], row["unit"], row["default"]) for row in rows] == [("budget.steps", "steps", 100)]


def test_dry_run_prints_what_would_run(covey_: Callable[..., Result], tmp_path: Path) -> None:
    _, out, _ = covey_("train", "recipe=dapo", "steps=3", "--dry-run", "--out", "new")
    assert RunConfig.of(yaml.safe_load(out)) == resolve(["recipe=dapo", "steps=3"]).config
    told = json.loads(covey_("train", "recipe=dapo", "steps=3", "--dry-run", "--json")[1])
    assert RunConfig.of(told) == resolve(["recipe=dapo", "steps=3"]).config
    assert list(tmp_path.iterdir()) == []


# Resume and evaluation


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder that looks like a run's."""
    folder = tmp_path / "runs" / "first-1"
    (folder / "model").mkdir(parents=True)
    config = resolve(
        ["steps=3", "task.levels=[1]", "budget.sampling.max_tokens=9", "budget.optimizer.schedule=constant"]
    ).config
    (folder / "run.yaml").write_text(config.write_yaml())
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    return folder


def test_resume_takes_the_stored_settings(run_folder: Path) -> None:
    stored = resolve(file=run_folder / "run.yaml").config
    assert settle_resume(run_folder, []) == stored
    again = settle_resume(
        run_folder, ["steps=6", "budget.checkpoint_every=1", "engines.threads=1", "report.completions_every=5"]
    )
    assert (again.budget.steps, again.budget.checkpoint_every, again.engines.threads) == (6, 1, 1)
    assert again.recipe == stored.recipe
    assert settle_resume(run_folder, ["seed=0"]) == stored  # said again, not changed


def test_resume_refuses_other_changes_and_shows_them(run_folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"other settings: recipe\.surrogate\.high 0\.2 -> 0\.3, budget\.seed 0 -> 1\."
    ) as caught:
        settle_resume(run_folder, ["seed=1", "recipe.surrogate.high=0.3", "steps=9"])
    assert caught.value.exit_code == 2


def test_resume_keeps_the_length_that_a_schedule_depends_on(run_folder: Path) -> None:
    config = resolve(["steps=3", "budget.optimizer.schedule=linear", "budget.optimizer.warmup_steps=0"]).config
    (run_folder / "run.yaml").write_text(config.write_yaml())
    with pytest.raises(ConfigError, match=r"budget\.steps 3 -> 6"):
        settle_resume(run_folder, ["steps=6"])


def test_evaluation_of_a_run_uses_its_task_and_newest_model(run_folder: Path) -> None:
    config = settle(str(run_folder), ["budget.eval_samples=4", "seed=3"])
    assert config.model.path == str(run_folder / "model")
    assert config.task.levels == (1,)  # type: ignore[attr-defined]
    assert (config.budget.sampling.max_tokens, config.budget.eval_samples, config.budget.seed) == (9, 4, 3)
    (run_folder / "model").rmdir()
    with pytest.raises((MissingInputError, OutputError)):
        newest_model(run_folder)


def test_evaluation_of_a_model_takes_the_defaults() -> None:
    config = settle("tiny", ["task=countdown"])
    assert (config.model.path, config.task.kind) == ("tiny", "countdown")


def test_show_tells_of_a_run(covey_: Callable[..., Result], run_folder: Path) -> None:
    code, out, _ = covey_("show", str(run_folder))
    assert code == 0
    assert recipes.DEFAULT in out
    told = json.loads(covey_("show", str(run_folder), "--json")[1])
    assert (told["steps"], told["steps_done"], told["task"]) == (3, 1, "compose")
