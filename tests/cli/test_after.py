"""After a run: `covey eval` in its forms, `covey chat`, `covey export`; each mistake is one line with its exit code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from covey.cli.evaluate import read_ks
from covey.cli.scores import change_table
from covey.engines.loading import load_model
from covey.errors import ConfigError
from covey.start import train
from covey.target import find_target, split_words
from tests.engines.served import Served, serve

torch.set_num_threads(1)
pytestmark = pytest.mark.slow
Result = tuple[int, str, str]
FEW = ("budget.eval_problems=3", "engines.threads=1")
SMALL: dict[str, Any] = {
    "steps": 2,
    "budget.prompts_per_step": 2,
    "budget.samples_per_prompt": 4,
    "budget.eval_problems": 3,
    "budget.eval_samples": 2,
    "budget.checkpoint_every": 1,
    "budget.sampling.max_tokens": 24,
    "budget.optimizer.lr": 1e-2,
    "engines.threads": 1,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of all weights, one of adapters, and one of another seed."""
    home = tmp_path_factory.mktemp("runs")
    train(model="tiny", out=home / "full", **SMALL)
    train(model="tiny", out=home / "lora", **SMALL, **{"model.lora.rank": 4})
    train(model="tiny", out=home / "other", **SMALL, seed=1)
    return home


@pytest.fixture
def covey_(covey_: Callable[..., Result], runs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command beside the runs: exit code, stdout, stderr."""
    monkeypatch.chdir(runs)
    return covey_


# covey eval


def test_two_halves_of_the_samples_are_the_whole(covey_: Callable[..., Result], tmp_path: Path) -> None:
    whole, first, second, both = (str(tmp_path / f"{name}.jsonl") for name in ("whole", "first", "second", "both"))
    table = covey_("eval", "full", "--samples", "8", "--table", whole, *FEW)
    covey_("eval", "full", "--samples", "4", "--table", first, *FEW)
    covey_("eval", "full", "--samples", "4", "--first", "4", "--table", second, *FEW)
    merged = covey_("eval", "--merge", first, second, "--table", both)
    assert (table[0], merged[0]) == (0, 0)
    assert Path(both).read_bytes() == Path(whole).read_bytes()
    assert merged[1].replace("merged tables", "full") == table[1]
    code, out, err = covey_("eval", "--merge", first, whole)
    assert (code, out) == (65, "")
    assert "sample 0 is counted twice" in err
    assert json.loads(covey_("eval", whole, "--json", "--k", "8")[1])["eval/pass^8"] <= 1


def test_the_statistics_of_chosen_ks_are_shown(covey_: Callable[..., Result]) -> None:
    code, out, _ = covey_("eval", "full", "--samples", "4", "--k", "1,3", *FEW)
    assert code == 0
    assert "pass^k all right" in out
    assert "maj@k majority right" in out
    assert [line.split()[1] for line in out.splitlines() if line.lstrip().startswith("L3")] == ["3", "1"]
    record = json.loads(covey_("eval", "full", "--samples", "4", "--k", "1,3", *FEW, "--json")[1])
    assert record["eval/pass^3"] <= record["eval/accuracy"] <= record["eval/pass@3"]
    assert record["eval/maj@1"] == pytest.approx(record["eval/accuracy"])
    assert (record["model"], record["task"]) == ("full", "compose")


def test_samples_are_kept_with_their_text(covey_: Callable[..., Result], tmp_path: Path) -> None:
    covey_("eval", "full", "--rollouts", str(tmp_path / "r.jsonl"), "--first", "5", *FEW)
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert {row["index"] for row in rows} == {5, 6}
    assert all(set(row) >= {"text", "rewards", "facts", "tokens"} for row in rows)
    assert sum("problem" in row for row in rows) == len(rows) // 2


def test_a_checkpoint_of_a_run_is_asked(covey_: Callable[..., Result], tmp_path: Path) -> None:
    def accuracy(*arguments: str) -> float:
        return float(json.loads(covey_("eval", *arguments, *FEW, "--json")[1])["eval/length"])

    assert accuracy("full", "--step", "2") == accuracy("full")
    assert accuracy("full", "--step", "1") != accuracy("full")


def test_two_models_are_compared_on_the_same_problems(covey_: Callable[..., Result], tmp_path: Path) -> None:
    tables = [str(tmp_path / f"{name}.jsonl") for name in ("a", "b")]
    for name, path in zip(("tiny", "full"), tables, strict=True):
        settings = (*FEW, "budget.sampling.max_tokens=24")
        covey_("eval", name, "--samples", "2", "--table", path, *settings)
    code, out, err = covey_("eval", "tiny", "full", *FEW, "--json")
    assert (code, err) == (0, "")
    asked, tabled = json.loads(out), json.loads(covey_("eval", *tables, "--json")[1])
    assert asked["changes"] == tabled["changes"]
    assert asked["models"] == ["tiny", "full"]
    same = covey_("eval", "full", "full/model", *FEW, "--k", "2")
    assert "not sure" in same[1]
    assert "better" not in same[1]
    assert "pass^2" in same[1]


def test_an_adapter_is_compared_with_its_base(covey_: Callable[..., Result]) -> None:
    changes = json.loads(covey_("eval", "tiny", "lora", *FEW, "--json")[1])["changes"]
    assert any(change["change"] != 0 for change in changes)


def test_a_server_is_asked_instead(covey_: Callable[..., Result]) -> None:
    greedy = ("--temperature", "0", *FEW, "--json")
    here = json.loads(covey_("eval", "full", *greedy)[1])
    with serve(Served(load_model("full/model"))) as url:
        assert json.loads(covey_("eval", "full", *greedy, f"engines.server.url={url}")[1]) == here
    code, out, err = covey_("eval", "full", *FEW, "engines.server.url=http://127.0.0.1:9/v1")
    assert (code, out, err.count("\n")) == (69, "", 1)


# covey chat


def test_one_message_one_answer(covey_: Callable[..., Result]) -> None:
    code, out, err = covey_("chat", "tiny", "--message", "A(abc)=", "temperature=0", "max_tokens=16")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    assert covey_("chat", "tiny", "--message", "A(abc)=", "temperature=0", "max_tokens=16")[1] == out
    assert covey_("chat", "lora", "--message", "A(abc)=", "--step", "1")[0] == 0


def test_lines_of_a_pipe_are_messages(covey_: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("A(abc)=\n\n/reset\nA(abc)=\n/quit\nnever\n"))
    code, out, _ = covey_("chat", "tiny", "temperature=0", "max_tokens=16")
    assert code == 0
    first, second = out.splitlines()
    assert first == second


def test_a_held_out_problem_with_its_score(covey_: Callable[..., Result]) -> None:
    code, out, _ = covey_("chat", "full", "--problem")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} >= {"problem", "user", "model", "answer", "score"}
    assert "compose/tiny/L1" in covey_("chat", "full", "--problem", "L1:2")[1]


# covey export


def test_an_exported_adapter_and_its_merged_model_answer_alike(covey_: Callable[..., Result], tmp_path: Path) -> None:
    told = json.loads(covey_("export", "lora", "--out", str(tmp_path / "whole"), "--merge", "--json")[1])
    assert (told["form"], told["base"], told["url"]) == ("model", "tiny", None)
    code, out, _ = covey_("export", "lora", "--out", str(tmp_path / "part"))
    assert (code, out) == (0, f"saved {tmp_path / 'part'}: an adapter on tiny, with README.md\n")
    answers = {
        covey_("chat", str(tmp_path / name), "--message", "A(abc)=", "temperature=0", "max_tokens=16")[1]
        for name in ("whole", "part")
    }
    assert len(answers) == 1


# Mistakes

MISTAKES: dict[tuple[str, ...], tuple[int, str]] = {
    ("eval", "full", "tiny", "lora"): (2, "3 models. Give one to evaluate, or two to compare."),
    ("eval", "full", "--k", "1,x"): (2, "--k: got '1,x'"),
    ("eval", "full", "--k", "4"): (2, "k = 4 of 2 samples per problem. Ask with --samples 4 or more"),
    ("eval", "full", "--best"): (66, "has no best model"),
    ("eval", "full", "--step", "9"): (66, "keeps no checkpoint of step 9. It keeps 1, 2."),
    ("eval", "tiny", "--step", "9"): (2, "tiny is no run"),
    ("eval", "full", "--best", "--step", "1"): (2, "given beside --step"),
    ("eval", "full", "other"): (2, "budget.seed: full has 0, other has 1. Say which: budget.seed=VALUE."),
    ("eval", "full", "tiny", "--table", "t.jsonl"): (2, "Evaluate each, then compare their tables"),
    ("eval", "full", "--table", "full/run.yaml"): (73, "is there already"),
    ("eval", "full", "--table", "nowhere/t.jsonl"): (73, "cannot be written"),
    ("eval", "--merge"): (2, ""),
    ("eval", "--merge", "nope.jsonl"): (66, "nope.jsonl: cannot be read"),
    ("eval", "--merge", "full/metrics.jsonl"): (65, "full/metrics.jsonl:1: is no row of an evaluation table"),
    ("eval", "--merge", "nope.jsonl", "--samples", "3"): (2, "--merge: given beside options that ask a model"),
    ("eval", "nope.jsonl", "full"): (2, "a table beside a model"),
    ("eval", "nope.jsonl", "seed=1"): (2, "options that ask a model beside the table"),
    ("eval", "full", "task.kidn=x"): (2, "task"),
    ("chat", "full", "tiny"): (2, "2 models. Give one."),
    ("chat", "full", "--message", "a", "--problem", "L1"): (2, "--message: given beside --problem"),
    ("chat", "full", "--message", "a", "temprature=1"): (2, "Did you mean 'temperature'?"),
    ("chat", "full", "--message", "a", "temperature=-1"): (2, "temperature"),
    ("chat", "full", "--message", "a", "steps=3"): (2, "steps: a chat does not read it"),
    ("chat", "full", "--problem", "L9"): (2, "there is no evaluation set 'L9'"),
    ("chat", "full", "--message", "a" * 600): (65, "the model's context 512"),
    ("chat", "nope", "--message", "a"): (66, "model nope"),
    ("export", "full"): (2, "--out"),
    ("export", "full", "--out", "other"): (73, "other: is not empty. Choose another folder."),
    ("export", "full", "--out", "new", "--merge"): (2, "--merge: full has no adapter"),
    ("export", "full", "--out", "new", "--dtype", "bfloat"): (2, "Did you mean 'bfloat16'?"),
    ("export", "lora", "--out", "new", "--push", "a/b"): (2, "is on this machine only. Add --merge"),
    ("export", "full", "--out", "new", "--push", "a"): (2, "--push: got 'a'. Write OWNER/NAME."),
    ("export", "full", "--out", "new", "--public"): (2, "--public: given without --push"),
    ("export", "nope", "--out", "new"): (66, "model nope"),
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=lambda words: " ".join(words)[:60])
def test_a_mistake_is_one_line_with_its_exit_code(covey_: Callable[..., Result], arguments: tuple[str, ...]) -> None:
    before = sorted(str(path) for path in Path().rglob("*"))
    code, words = MISTAKES[arguments]
    found, out, err = covey_(*arguments)
    assert (found, out) == (code, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert sorted(str(path) for path in Path().rglob("*")) == before


@pytest.mark.parametrize("command", ["chat", "export", "eval"])
def test_help_fits_one_screen_and_has_an_example(covey_: Callable[..., Result], command: str) -> None:
    code, out, _ = covey_(command, "--help")
    assert code == 0
    assert len(out.splitlines()) <= 40
    assert f"covey {command}" in out.partition("Example")[2]


def test_a_file_with_an_equals_sign_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    assert split_words(["lr=3", "seed=1", "tiny"]) == (["lr=3", "tiny"], ["seed=1"])
    assert find_target("lr=3").model == "lr=3"


def test_ks() -> None:
    assert read_ks(None) is None
    assert read_ks("4,1,4") == (1, 4)
    for text in ("", "0", "1,,2", "-1"):
        with pytest.raises(ConfigError, match="--k: got"):
            read_ks(text)


def test_names_in_tables_are_harmless() -> None:
    assert "\x1b" not in str(change_table([], ["a\x1b[31m", "b"], None).title)
