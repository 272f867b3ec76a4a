"""Sixty mistakes by the real commands: one line that says where, what and what would be right, and the exit code of its class.

The tables below are the catalogue, entry by entry. `Mistake` is a command that has to fail, `Fine` one that has to work,
`Elsewhere` names the test that covers an entry.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import test_served
import torch
from mistakes import (
    ASK,
    NO_EOS,
    ONE_STEP,
    ROW,
    ROWS,
    SMALL,
    Elsewhere,
    Fine,
    Mistake,
    add_bos,
    contents,
    data,
    edit,
    grow_vocabulary,
    lay_out,
    lose_a_shard,
    lose_the_index,
    need_tokenizer_code,
    rows,
    template,
    together,
    truncate_weights,
)
from safetensors.torch import load_file

from covey import checkpoint, files
from covey.cli import main
from covey.models import find_model
from covey.registry import _REGISTRY, Component
from covey.types import Prompt, Rollout, Score

CPU_LIMIT_S = 3.0

CONFIG = {
    "unknown key": Mistake(
        "train budget.setps=3", 2, ["budget.setps: there is no such key", "Did you mean 'budget.steps'?"]
    ),
    "wrong type": Mistake("train steps=many", 2, ["budget.steps: got 'many'", "integer"]),
    "out of range": Mistake("train budget.optimizer.lr=-1", 2, ["budget.optimizer.lr: got -1", "greater than 0"]),
    "two presets that conflict": Mistake(
        "train recipe=dapo recipe=grpo", 2, ["recipe: given twice", "Give one of them."]
    ),
    "group size 1 with a group method": Mistake(
        "train recipe=grpo budget.samples_per_prompt=1",
        2,
        ["budget.samples_per_prompt", "every advantage is 0", "Use 2 or more."],
    ),
    "unknown method, reward or model": Mistake("train recipe=gropo", 2, ["recipe", "'gropo'", "Did you mean 'grpo'?"]),
    "unknown method, reward or model (reward)": Mistake(
        "train reward=exct_match", 2, ["reward: there is no reward 'exct_match'", "Did you mean 'exact_match'?"]
    ),
    "unknown method, reward or model (model)": Mistake("train model=tinny", 66, ["model tinny", "tiny"]),
    "unreadable YAML": Mistake(
        "train --config c.yaml", 2, ["c.yaml:2:7: ", "Write KEY: VALUE lines"], {"c.yaml": "steps: 3\nseed: [1, 2\n"}
    ),
    "duplicate key": Mistake(
        "train --config c.yaml",
        2,
        ["c.yaml:3:1: key 'steps' occurs twice", "Give each key once."],
        {"c.yaml": "steps: 3\nseed: 1\nsteps: 4\n"},
    ),
    "YAML tab": Mistake(
        "train --config c.yaml",
        2,
        ["c.yaml:2:1: ", "Indent with spaces, not tabs."],
        {"c.yaml": "budget:\n\tsteps: 4\n"},
    ),
    "1e-5 read as a string": Fine(
        "config show --config c.yaml budget.optimizer.eps=1e-7 --json",
        ['"value": 1e-05,\n  "origin": "c.yaml:3"', '"value": 1e-07'],
        {"c.yaml": "budget:\n  optimizer:\n    lr: 1e-5\n"},
    ),
    "empty file": Mistake(
        "train --config c.yaml", 2, ["c.yaml: empty", "Write KEY: VALUE lines"], {"c.yaml": "# nothing\n"}
    ),
    "file not found": Mistake("train --config c.yaml", 66, ["c.yaml: cannot be read", "Give a YAML file."]),
    # No environment variable is read into a value; one that someone writes is refused as the text that it is.
    "environment variable unset": Mistake(
        "train --config c.yaml", 2, ["c.yaml:1: ", "got '${STEPS}'"], {"c.yaml": "steps: ${STEPS}\n"}
    ),
    # No key was renamed yet; the names that other libraries use are understood in the same way.
    "deprecated name": Mistake(
        "train learning_rate=1e-5",
        2,
        ["learning_rate: there is no such key", "It is called 'budget.optimizer.lr' here."],
    ),
}

DATA = {
    "missing file": Mistake(ROWS, 66, ["rows.jsonl: there is no such file", "Give a file of rows (.jsonl, "]),
    "missing file (of a hub id)": Mistake(
        f"{ONE_STEP} data=nobody/nothing", 66, ["data nobody/nothing", "not in the local cache", "Give a path"]
    ),
    "missing file (of evaluation)": Mistake(
        f"{ONE_STEP} data=rows.jsonl task.held_data=held.jsonl",
        66,
        ["held.jsonl: there is no such file"],
        data(rows(ROW)),
    ),
    "missing file (of several)": Mistake(
        f"{ONE_STEP} 'data=[rows.jsonl, more.csv]'",
        66,
        ["more.csv: there is no such file"],
        data(rows(ROW, {**ROW, "prompt": "2+2="})),
    ),
    "missing file (of a known format)": Mistake(
        f"{ONE_STEP} data=rows.txt",
        65,
        ["rows.txt: its ending '.txt' names no format", "Known: .jsonl"],
        {"rows.txt": "a"},
    ),
    "empty": Mistake(ROWS, 65, ["rows.jsonl: it holds no rows", "Give at least one row."], data("\n\n")),
    # There is no filter on rows; the split is what can leave nothing to train on.
    "0 rows after filter": Mistake(
        f"{ONE_STEP} data=rows.jsonl",
        65,
        ["task.held_share: the one prompt of rows.jsonl cannot be split", "held_share=0"],
        data(rows(ROW)),
    ),
    "missing column": Mistake(
        ROWS,
        65,
        [
            "rows.jsonl line 2: there is no column 'prompt'",
            "It has: question, answer. Perhaps task.prompt_column=question.",
        ],
        data(rows(ROW, {"question": "?", "answer": "2"})),
    ),
    "missing column (that decides on the order)": Mistake(
        f"{ROWS} task.order=level",
        65,
        ["rows.jsonl line 1: there is no column 'level'", "task.order needs it"],
        data(rows(ROW)),
    ),
    "missing column (a source that is not there)": Mistake(
        f"{ONE_STEP} 'data=[rows.jsonl, more.csv]' task.weights.rosw=2",
        2,
        ["task.weights.rosw: there is no such source", "Did you mean 'rows'?"],
        data(rows(ROW)),
    ),
    "broken JSONL (and tables)": Mistake(
        f"{ONE_STEP} data=rows.csv",
        65,
        ["rows.csv line 3: 3 cells, but the header names 2", "Quote cells"],
        {"rows.csv": "prompt,answer\n1+1=,2\n1,2,3\n"},
    ),
    "0 rows after filter (two of them)": Mistake(
        f"{ROWS.replace('held_share=0', 'held_share=0.5')} task.held_split=test",
        2,
        ["task.held_share: held_split says already what is held out", "Give one of them."],
        data(rows(ROW)),
    ),
    "null prompts": Mistake(
        ROWS, 65, ["line 2: prompt is null", "Give text"], data(rows(ROW, {**ROW, "prompt": None}))
    ),
    "prompt that is no string": Mistake(
        ROWS, 65, ["line 1: prompt is a number", "Give text"], data(rows({**ROW, "prompt": 7}))
    ),
    "broken JSONL": Mistake(
        ROWS,
        65,
        ["rows.jsonl line 2: no JSON", "column 12", "one object per line"],
        data(rows(ROW) + '{"prompt": \n'),
    ),
    "not UTF-8": Mistake(
        ROWS, 65, ["line 1: byte 13 is not UTF-8", "Save the file as UTF-8."], data(b'{"prompt": "\xe9"}\n')
    ),
    "duplicate ids": Mistake(
        ROWS, 65, ["line 2: id 'a' was used before", "line 1"], data(rows({**ROW, "id": "a"}, {**ROW, "id": "a"}))
    ),
    "huge prompt": Mistake(
        ROWS,
        65,
        ["prompt rows/b: it has ", "tokens or more, the model's context 512", "Shorten it"],
        data(rows({**ROW, "id": "a"}, {**ROW, "id": "b", "prompt": "long " * 2_000_000}, {**ROW, "id": "c"})),
    ),
    "all prompts over the context": Mistake(
        ROWS,
        65,
        ["prompt rows/", "tokens or more, the model's context 512", "Shorten it"],
        data(rows(*({**ROW, "prompt": f"{n}" * 600} for n in range(3)))),
    ),
    "answer of the wrong type": Mistake(
        ROWS, 65, ["line 1: answer is a list", "text or a number"], data(rows({**ROW, "answer": [2]}))
    ),
    "messages with a bad role": Mistake(
        ROWS,
        65,
        ["line 1: prompt[0] has role 'human'", "Roles are: system, user"],
        data(rows({**ROW, "prompt": [{"role": "human", "content": "1"}]})),
    ),
    "last message from the assistant": Mistake(
        ROWS,
        65,
        ["the last message of prompt is from the assistant", "End with"],
        data(rows({**ROW, "prompt": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]})),
    ),
}

TRAIN = f"{ONE_STEP} model=model"
MODEL = {
    "id not found while offline": Mistake(
        f"{ONE_STEP} model=nobody/nothing", 66, ["model nobody/nothing", "not in the local cache"]
    ),
    "no pad token": Fine(
        ASK, damage=together(edit("tokenizer_config.json", pad_token=None), edit("config.json", pad_token_id=None))
    ),
    "no eos": Mistake(
        TRAIN,
        2,
        ["model model: neither tokenizer nor generation config has an end token", "Set eos_token."],
        damage=NO_EOS,
    ),
    "pad = eos": Fine(TRAIN, damage=edit("tokenizer_config.json", pad_token="<|end|>")),
    "no chat template": Fine(TRAIN, damage=template(None)),
    "template that raises": Mistake(
        TRAIN,
        2,
        ["model chat template: it raised", "no system here"],
        damage=template("{{ raise_exception('no system here') }}"),
    ),
    "template that raises (undefined)": Mistake(
        TRAIN, 2, ["model chat template: it raised"], damage=template("{{ messages[3].content.x }}")
    ),
    "template that raises (syntax)": Mistake(TRAIN, 2, ["model chat template: it raised"], damage=template("{% if %}")),
    "template that adds a second BOS": Fine(TRAIN, damage=add_bos),
    "vocabulary larger than the embedding": Mistake(
        TRAIN, 2, ["ids up to 700, the embedding has 106 rows", "Resize"], damage=grow_vocabulary
    ),
    "safetensors truncated": Mistake(
        TRAIN, 66, ["model.safetensors cannot be read", "Copy the file again."], damage=truncate_weights
    ),
    "shard missing": Mistake(
        TRAIN,
        66,
        ["the shard model-00002-of-00002.safetensors is missing", "Copy the whole folder."],
        damage=lose_a_shard,
    ),
    "shard missing (and its index)": Mistake(
        TRAIN, 66, ["model model: its weights cannot be loaded", "Copy the files again."], damage=lose_the_index
    ),
    "dtype not supported": Mistake(
        f"{TRAIN} model.dtype=float16", 2, ["model.dtype: got 'float16'", "'float32', 'bfloat16' or 'float64'"]
    ),
    "dtype not supported (quantised files)": Mistake(
        TRAIN,
        2,
        ["model model: ", "quantis"],
        damage=edit("config.json", quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]}),
    ),
    "custom code required": Mistake(
        TRAIN,
        77,
        ["it needs code of its own (auto_map), which covey never runs"],
        damage=edit(
            "config.json",
            model_type="mine",
            auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
        ),
    ),
    "custom code required (tokenizer)": Mistake(
        TRAIN, 66, ["model model: its tokenizer cannot be loaded"], damage=need_tokenizer_code
    ),
}

FILES = {
    "folder of another run": Mistake(
        f"{ONE_STEP} --out runs/earlier", 73, ["runs/earlier: is not empty", "Choose another folder"]
    ),
    "read-only": Elsewhere("test_a_folder_that_cannot_be_written"),
    "disk full": Elsewhere("test_a_full_disk_is_one_line_and_the_run_goes_on_later"),
    "path is a file": Mistake(
        f"{ONE_STEP} --out rows.jsonl", 73, ["rows.jsonl: is a file", "Give a folder"], data(rows(ROW))
    ),
    "run already active": Elsewhere("test_a_run_that_is_active_is_left_alone"),
    "checkpoint of another config": Elsewhere(
        "test_a_checkpoint_of_another_configuration_is_refused_with_the_difference"
    ),
    "newer format version": Elsewhere("test_a_checkpoint_of_a_newer_version_is_refused"),
    "no space for the next save": Elsewhere("test_no_space_for_the_next_save_is_told_before_the_run"),
}

RUN = {
    "reward raises": Elsewhere("test_a_reward_that_fails_is_counted_and_never_0[raises]"),
    "reward returns the wrong length": Elsewhere("test_a_reward_with_too_few_scores_ends_the_run"),
    "reward returns None": Elsewhere("test_a_reward_that_fails_is_counted_and_never_0[None]"),
    "reward returns NaN": Elsewhere("test_a_reward_that_fails_is_counted_and_never_0[NaN]"),
    "reward returns a string": Elsewhere("test_a_reward_that_fails_is_counted_and_never_0[string]"),
    "reward returns a tensor on another device": Elsewhere(
        "test_a_reward_that_fails_is_counted_and_never_0[other device]"
    ),
    "reward takes 60 s": Elsewhere("test_a_reward_that_does_not_come_back_costs_its_own_score[takes 60 s]"),
    "reward prints a lot": Elsewhere("test_what_a_reward_prints_stays_off_stdout"),
    "reward mutates its input": Elsewhere("test_a_reward_cannot_change_the_data"),
    "reward kills the process": Elsewhere("test_a_reward_that_does_not_come_back_costs_its_own_score[kills itself]"),
    "server refuses": Elsewhere("test_served.test_a_server_that_refuses_connections_is_one_line"),
    "server has another model or other token ids": Elsewhere(
        "test_served.test_a_server_with_another_model_is_one_line"
    ),
    "server has another model or other token ids (ids)": Elsewhere(
        "test_served.test_a_server_with_other_token_ids_is_one_line"
    ),
}

SIZES = {"config": 14, "data": 14, "model": 12, "files": 8, "run": 12}
CATALOGUE = {"config": CONFIG, "data": DATA, "model": MODEL, "files": FILES, "run": RUN}
COMMANDS = {f"{part}: {name}": case for part, cases in CATALOGUE.items() for name, case in cases.items()}


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, output, and the seconds of processor time it took."""

    code: int
    out: str
    err: str
    cpu_s: float

    def line(self) -> str:
        """The one line of a mistake."""
        assert "Traceback" not in self.err
        assert re.fullmatch(r"error: [^\n]+: [^\n]+\. [A-Z][^\n]+[.?)]\n", self.err), self.err
        return self.err.strip()


@pytest.fixture
def covey(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Outcome]:
    """A command in a folder of its own that holds an earlier run; it runs in this process, with one thread, offline."""
    importlib.import_module("covey.start")  # what is measured is the command, not the first import
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COVEY_DEBUG", raising=False)
    monkeypatch.delenv("COVEY_FAULT", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    earlier = tmp_path / "runs" / "earlier"
    (earlier / "model").mkdir(parents=True)
    (earlier / "metrics.jsonl").write_text('{"step": 1}\n')
    (earlier / "model" / "config.json").write_text("{}")

    def run(command: str) -> Outcome:
        start = time.process_time()
        code = main(shlex.split(command))
        spent = time.process_time() - start
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err, spent)

    return run


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# The tables


def test_the_catalogue_is_whole() -> None:
    """Sixty entries, each covered; an entry with several cases counts once."""
    for part, size in SIZES.items():
        assert len({name.partition(" (")[0] for name in CATALOGUE[part]}) == size, part
    tests = {name for name in globals() if name.startswith("test_")}
    tests |= {f"test_served.{name}" for name in vars(test_served) if name.startswith("test_")}
    for case in COMMANDS.values():
        assert not isinstance(case, Elsewhere) or case.test.partition("[")[0] in tests


@pytest.mark.parametrize("name", [name for name, case in COMMANDS.items() if isinstance(case, Mistake)])
def test_a_mistake_is_one_line(covey: Callable[[str], Outcome], name: str, tmp_path: Path) -> None:
    case = COMMANDS[name]
    assert isinstance(case, Mistake)
    lay_out(case, tmp_path)
    before = contents(tmp_path)
    done = covey(case.command)
    line = done.line()
    assert [word for word in case.words if word not in line] == [], line
    assert (done.code, done.out) == (case.code, "")
    assert contents(tmp_path) == before  # nothing made, nothing touched
    assert done.cpu_s < CPU_LIMIT_S


@pytest.mark.parametrize("name", [name for name, case in COMMANDS.items() if isinstance(case, Fine)])
def test_what_is_no_mistake_works(covey: Callable[[str], Outcome], name: str, tmp_path: Path) -> None:
    case = COMMANDS[name]
    assert isinstance(case, Fine)
    lay_out(case, tmp_path)
    done = covey(case.command)
    assert (done.code, done.err) == (0, "")
    assert [word for word in case.words if word not in done.out] == [], done.out


def test_a_prompt_starts_with_one_bos(covey: Callable[[str], Outcome], tmp_path: Path) -> None:
    case = MODEL["template that adds a second BOS"]
    assert isinstance(case, Fine)
    lay_out(case, tmp_path)
    assert covey(f"{case.command} --out out").code == 0
    bos = json.loads((tmp_path / "model" / "tokenizer.json").read_text())["model"]["vocab"]["<|system|>"]
    problems = [row["problem"]["tokens"] for row in rollouts(tmp_path / "out") if "problem" in row]
    assert problems
    assert all((tokens[0], tokens.count(bos)) == (bos, 1) for tokens in problems)


def test_a_mistake_costs_little_from_the_start(tmp_path: Path) -> None:
    """A whole new process, with all that it imports."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "covey", "train", "setps=3"], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: setps: there is no such key. Did you mean 'steps'?\n"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < CPU_LIMIT_S + 1
    assert list(tmp_path.iterdir()) == []


# The file system


def rollouts(run: Path, step: int = 1) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rollouts" / f"step-{step:06d}.jsonl").read_text().splitlines()]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_folder_that_cannot_be_written(
    covey: Callable[[str], Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tmp_path)
    monkeypatch.setenv("COVEY_FAULT", "open:1:EROFS")
    monkeypatch.setattr(files, "_counts", {})
    done = covey(f"{ONE_STEP} --out out")
    assert done.code == 73
    assert "cannot be written (Read-only file system). Choose a folder you may write to." in done.line()
    assert {name: sha for name, sha in contents(tmp_path).items() if not name.startswith("out")} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission(covey: Callable[[str], Outcome], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    done = covey(f"{ONE_STEP} --out locked/out")
    assert (done.code, "locked: cannot be written" in done.line()) == (73, True)


@pytest.mark.parametrize("number", [1, 4, 9, 14, 24])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    covey: Callable[[str], Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The n-th write finds the disk full: of settings, metrics, rollouts, the first and the second checkpoint."""
    assert fill_the_disk(covey, monkeypatch, f"{TWO_STEPS} --out out", number) == 74
    go_on(covey, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.long
def test_a_full_disk_at_every_write(
    covey: Callable[[str], Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert covey(f"{TWO_STEPS} --out whole").code == 0
    for number in range(1, 100):
        out = tmp_path / f"out-{number}"
        if fill_the_disk(covey, monkeypatch, f"{TWO_STEPS} --out {out.name}", number) == 0:
            break
        if go_on(covey, out):
            assert (out / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
            assert (out / "model" / "model.safetensors").read_bytes() == (
                tmp_path / "whole" / "model" / "model.safetensors"
            ).read_bytes()
    assert 20 < number < 99


TWO_STEPS = f"train steps=2 budget.checkpoint_every=1 {SMALL}"


def fill_the_disk(covey: Callable[[str], Outcome], monkeypatch: pytest.MonkeyPatch, command: str, number: int) -> int:
    """Run a command whose n-th write fails; its exit code."""
    with monkeypatch.context() as patch:
        patch.setenv("COVEY_FAULT", f"write:{number}:ENOSPC")
        patch.setattr(files, "_counts", {})
        done = covey(command)
    if done.code:
        assert "writing failed (No space left on device). Make room, then resume or start again." in done.line()
    return done.code


def go_on(covey: Callable[[str], Outcome], run: Path) -> bool:
    """Resume a run: that works from its first checkpoint on, and before is a mistake that says so."""
    saved = any((run / "checkpoints").glob("step-*"))
    done = covey(f"train --resume {run.name}")
    if not saved:
        assert (done.code, f"error: {run.name}: " in done.line()) == (66, True)
        return False
    assert (done.code, done.err) == (0, "")
    assert [row["step"] for row in metrics(run) if "loss/value" in row] == [1, 2]
    return True


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main([*shlex.split(TWO_STEPS), "--out", str(run), "--json"]) == 0
    return run


@pytest.fixture
def run_copy(finished: Path, covey: Callable[[str], Outcome], tmp_path: Path) -> Path:
    """A copy of that run in the folder of the test."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize("command", ["train --resume run", f"{TWO_STEPS} --out run"])
def test_a_run_that_is_active_is_left_alone(covey: Callable[[str], Outcome], run_copy: Path, command: str) -> None:
    with checkpoint.active(run_copy):
        before = contents(run_copy)
        done = covey(command)
        assert done.code == 73
        assert ("a run is active here (process" in done.line()) == ("--resume" in command)
        assert contents(run_copy) == before
    assert covey("train --resume run").code == 0


def test_a_checkpoint_of_another_configuration_is_refused_with_the_difference(
    covey: Callable[[str], Outcome], run_copy: Path
) -> None:
    before = contents(run_copy)
    done = covey("train --resume run seed=1 recipe.surrogate.high=0.3")
    assert done.code == 2
    assert (
        "run: the run was made with other settings: recipe.surrogate.high 0.2 -> 0.3, budget.seed 0 -> 1."
        in done.line()
    )
    assert contents(run_copy) == before
    edited = (run_copy / "run.yaml").read_text().replace("samples_per_prompt: 2", "samples_per_prompt: 4")
    (run_copy / "run.yaml").write_text(edited)
    before = contents(run_copy)
    done = covey("train --resume run")
    assert done.code == 2
    assert "run: the run was made with other settings: budget.samples_per_prompt 2 -> 4." in done.line()
    assert contents(run_copy) == before


def test_a_checkpoint_of_a_newer_version_is_refused(
    covey: Callable[[str], Outcome], run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older checkpoint beside it is not taken: steps would be lost without a word."""
    monkeypatch.setattr(checkpoint, "FORMAT", 0)
    shutil.rmtree(run_copy / "model")
    before = contents(run_copy)
    for command in ("train --resume run", "eval run"):
        done = covey(command)
        assert done.code == 65
        assert "run/checkpoints/step-000002: format 1. This covey reads formats up to 0: update it." in done.line()
    assert contents(run_copy) == before


# Rewards


REWARDS = {
    "raises": ("    raise ValueError('no\\nsuch thing')", "ValueError: no such thing"),
    "None": ("    return None", "returned None"),
    "NaN": ("    return float('nan')", "returned NaN"),
    "infinite": ("    return float('-inf')", "returned -inf"),
    "string": ("    return '1.0'", "returned '1.0' (str), not a number"),
    "list": ("    return [1.0, 0.0]", "returned [1.0, 0.0] (list), not a number"),
    "other device": ("    import torch\n    return torch.ones((), device='meta')", "meta"),
    "leaves": ("    import sys\n    sys.exit(0)", "SystemExit: 0"),
}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("kind", REWARDS)
def test_a_reward_that_fails_is_counted_and_never_0(covey: Callable[[str], Outcome], tmp_path: Path, kind: str) -> None:
    """The run goes on, says how many failed, and learns nothing from them: the weights stay as they were."""
    body, reason = REWARDS[kind]
    (tmp_path / "r.py").write_text(f"def score(completion):\n{body}\n")
    done = covey(f"{ONE_STEP} reward=r.py:score --out out")
    assert (done.code, done.err) == (0, "")
    assert "reward-failures: 100% of the rollouts could not be scored" in done.out
    (step,) = [row for row in metrics(tmp_path / "out") if "loss/value" in row]
    assert (step["reward/failed"], step["reward/mean"], step["reward/score"]) == (1.0, None, None)
    rewards = [(row["rewards"], list(row["failures"])) for row in rollouts(tmp_path / "out")]
    assert rewards == [({}, ["score"])] * 4
    assert all(reason in row["failures"]["score"] for row in rollouts(tmp_path / "out"))
    before, after = tensors(Path(find_model("tiny"))), tensors(tmp_path / "out" / "model")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_reward_that_fails_now_and_then(covey: Callable[[str], Outcome], tmp_path: Path) -> None:
    """What was scored counts, what failed takes no part: neither in the mean nor in a group's baseline."""
    (tmp_path / "r.py").write_text(
        "calls = []\ndef score(completion):\n    calls.append(0)\n    return None if len(calls) % 3 == 0 else 5.0\n"
    )
    done = covey(f"{ONE_STEP} reward=r.py:score --out out".replace("samples_per_prompt=2", "samples_per_prompt=6"))
    assert (done.code, done.err) == (0, "")
    (step,) = [row for row in metrics(tmp_path / "out") if "loss/value" in row]
    assert (step["reward/failed"], step["reward/mean"]) == (pytest.approx(1 / 3), 5.0)
    assert {row["advantage"] for row in rollouts(tmp_path / "out")} == {0.0}  # a 0 in the mean would move all of them


def test_a_reward_that_never_works_ends_the_run(covey: Callable[[str], Outcome], tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def score(completion):\n    return undefined\n")
    done = covey(f"train steps=9 {SMALL} reward=r.py:score --out out")
    assert done.code == 65
    assert (
        "step 3: no rollout could be scored in 3 steps in a row (exception: NameError: name 'undefined' is not defined)"
        in done.line()
    )
    assert [row["step"] for row in metrics(tmp_path / "out") if "loss/value" in row] == [1, 2, 3]


FATAL = {
    "takes 60 s": ("time.sleep(60)", "timeout: no score within 0.5 s"),
    "kills itself": ("os.kill(os.getpid(), 9)", "crash: SIGKILL"),
}


@pytest.mark.distributed
@pytest.mark.parametrize("kind", FATAL)
def test_a_reward_that_does_not_come_back_costs_its_own_score(
    covey: Callable[[str], Outcome], tmp_path: Path, kind: str
) -> None:
    """The second response is fatal: it fails with the reason, its neighbours keep their scores, and the run goes on."""
    body, reason = FATAL[kind]
    (tmp_path / "r.py").write_text(
        "import os, time\n"
        "def score(completion):\n"
        "    with open('calls', 'a') as file:\n        file.write('.')\n"
        f"    if os.path.getsize('calls') == 2:\n        {body}\n"
        "    return 1.0\n"
    )
    (tmp_path / "rows.jsonl").write_text(rows(*({"prompt": f"{n}+1="} for n in range(3))))
    done = covey(f"{ROWS} reward=r.py:score scoring.workers=1 scoring.timeout_s=0.5 --out out")
    assert done.code == 0
    assert [row["failures"] for row in rollouts(tmp_path / "out")] == [{}, {"score": reason}, {}, {}]
    assert [row["rewards"] for row in rollouts(tmp_path / "out")] == [
        {"score": 1.0},
        {},
        {"score": 1.0},
        {"score": 1.0},
    ]
    (step,) = [row for row in metrics(tmp_path / "out") if "loss/value" in row]
    assert (step["reward/failed"], step[f"reward/failed_{reason.partition(':')[0]}"]) == (0.25, 1.0)


class TooFew(Component):
    """A reward of another package that loses a score."""

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score({"x": 1.0})] * (len(rollouts) - 1)


class Raises(Component):
    """A reward of another package that fails for a whole group."""

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        raise KeyError("topic")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cls in {"too_few": TooFew, "raises": Raises}.items():
        monkeypatch.setattr(cls, "stage", "reward")
        monkeypatch.setattr(cls, "kind", name)
        monkeypatch.setitem(_REGISTRY["reward"], name, cls)


@pytest.mark.usefixtures("registered")
def test_a_reward_with_too_few_scores_ends_the_run(covey: Callable[[str], Outcome]) -> None:
    """Which score belongs to which rollout cannot be known, so nothing is guessed."""
    done = covey(f"{ONE_STEP} reward=too_few --out out")
    assert done.code == 65
    assert re.search(r"reward: 1 scores for the 2 rollouts of prompt \S+\. Return one score per rollout", done.line())


@pytest.mark.usefixtures("registered")
def test_a_reward_of_another_package_that_raises_is_counted(covey: Callable[[str], Outcome], tmp_path: Path) -> None:
    assert covey(f"{ONE_STEP} reward=raises --out out").code == 0
    assert {row["failures"]["reward"] for row in rollouts(tmp_path / "out")} == {"exception: KeyError: 'topic'"}


def test_what_a_reward_prints_stays_off_stdout(covey: Callable[[str], Outcome], tmp_path: Path) -> None:
    """A reward may print as much as it likes, while it is imported and while it scores: stdout is one JSON object."""
    (tmp_path / "r.py").write_text(
        "print('imported')\ndef score(completion):\n    print('noise ' * 20000)\n    return 1.0\n"
    )
    done = covey(f"{ONE_STEP} reward=r.py:score --out out --json")
    assert done.code == 0
    assert json.loads(done.out)["steps_done"] == 1
    assert done.err.startswith("imported\nnoise noise")
    done = covey("eval tiny reward=r.py:score budget.eval_problems=1 --samples 1 --json")
    assert json.loads(done.out)["eval/accuracy"] == 1.0


def test_a_reward_cannot_change_the_data(covey: Callable[[str], Outcome], tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(
        "def score(completion, tests):\n    count = len(tests)\n    tests.clear()\n    return count\n"
    )
    (tmp_path / "rows.jsonl").write_text(rows(*({"prompt": f"{n}+1=", "tests": [1, 2]} for n in range(3))))
    done = covey(f"{ROWS} reward=r.py:score --out out")
    assert (done.code, done.err) == (0, "")
    assert {row["rewards"]["score"] for row in rollouts(tmp_path / "out")} == {2.0}
    assert all(row["problem"]["meta"] == {"tests": [1, 2]} for row in rollouts(tmp_path / "out") if "problem" in row)


REWARD_FILES = {
    "a column that is not there": (
        "def score(completion, topik): return 1.0\n",
        65,
        "reward score: the row has no column 'topik'. Did you mean 'topic'?",
    ),
    "a file that cannot be imported": (
        "import nothing_of_that_name\n",
        2,
        "r.py cannot be imported: ModuleNotFoundError",
    ),
    "a file with a slip": ("def score(completion:\n", 2, "r.py, line 1 cannot be imported: SyntaxError"),
    "another name": (
        "def scor(completion): return 1.0\n",
        2,
        "reward: r.py has no function 'score'. Did you mean 'scor'?",
    ),
    "a misnamed parameter": (
        "def score(completoin): return 1.0\n",
        2,
        "unknown parameter 'completoin'. Did you mean 'completion'?",
    ),
}


@pytest.mark.parametrize("name", REWARD_FILES)
@pytest.mark.parametrize("command", [ROWS, "eval tiny data=rows.jsonl task.held_share=0.5"])
def test_a_reward_that_cannot_work_is_found_before_the_run(
    covey: Callable[[str], Outcome], tmp_path: Path, name: str, command: str
) -> None:
    text, code, words = REWARD_FILES[name]
    (tmp_path / "r.py").write_text(text)
    (tmp_path / "rows.jsonl").write_text(rows(*({"prompt": f"{n}+1=", "topic": "sums"} for n in range(9))))
    before = contents(tmp_path)
    done = covey(f"{command} reward=r.py:score")
    assert words in done.line()
    assert (done.code, done.out) == (code, "")
    assert {name: sha for name, sha in contents(tmp_path).items() if "__pycache__" not in name} == before
    assert done.cpu_s < CPU_LIMIT_S


def test_no_space_for_the_next_save_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """107,520 weights of 4 bytes: three checkpoints of weights and two moments, and the model, are 4.3 MB."""
    import shutil
    from types import SimpleNamespace

    from covey.cli import main as cli_main

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4_200_000))
    assert cli_main(["train", "steps=1", "--out", str(tmp_path / "r")]) == 74
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "4.2 MB free, the checkpoints of this run take about 4.3 MB" in lines[0]
    assert "Make room" in lines[0]
    assert not (tmp_path / "r/metrics.jsonl").exists()
