"""The parts of a check: data, template and batch in words; each complaint on a run made for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from covey.config import resolve
from covey.engines.loading import load_model
from covey.errors import CoveyError, MissingInputError
from covey.models import find_model
from covey.preflight.check import check_run, judge_template, name_reward
from covey.preflight.data import gather
from covey.preflight.finding import Finding, verdict, worst
from covey.preflight.template import TemplateReport
from covey.preflight.words import open_words

STRANGE = {"prompt": "é?", "answer": "ß"}
ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(6) for b in range(6)]


def write(folder: Path, rows: Sequence[Mapping[str, Any]] = ROWS) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def checked(folder: Path, rows: Sequence[Mapping[str, Any]] = ROWS, *settings: str) -> list[Finding]:
    if not any(text.startswith("budget.prompts_per_step=") for text in settings):
        settings = (*settings, "budget.prompts_per_step=4")
    flags = [f"data={write(folder, rows)}", "model=tiny", *settings]
    return check_run(resolve(flags).config)


def lines(findings: Sequence[Finding], name: str, status: str = "") -> str:
    return "\n".join(f"{f.line} {f.knob}" for f in findings if f.name == name and status in ("", f.status))


def test_a_run_in_order(tmp_path: Path) -> None:
    findings = checked(tmp_path, ROWS, "task.held_share=0.25", "steps=9")
    assert worst(findings) == "ok", [finding for finding in findings if finding.status != "ok"]
    assert [*dict.fromkeys(finding.name for finding in findings)] == [
        "data", "template", "reward", "recipe", "batch", "plan",
    ]  # fmt: skip
    task = resolve([f"data={tmp_path / 'rows.jsonl'}", "task.held_share=0.25"]).config.task
    train, held = task.size, len(task.held_out(0)["held_out"])  # type: ignore[attr-defined]
    assert train + held == len(ROWS)
    assert f"{train} rows to train on, {held} held out; columns prompt answer" in lines(findings, "data")
    assert "longest prompt 6 tokens of 512" in lines(findings, "data")  # <|user|>a+b=<|assistant|>
    assert "4 prompts x 8 samples = 32 rollouts a step, at most 1,536 new tokens" in lines(findings, "batch")
    assert f"9 steps = 9 optimizer steps; {9 * 4 / train:.1f} times through {train} rows" in lines(findings, "batch")
    assert verdict(findings) == "all good"


@pytest.mark.parametrize(
    ("rows", "settings", "name", "status", "words"),
    [
        ([*ROWS, STRANGE], (), "data", "warn", "1 of 37 prompts hold what the tokenizer does not know: 'é'"),
        ([*ROWS, STRANGE], (), "data", "warn", "1 of 37 answers hold what the tokenizer does not know: 'ß'"),
        ([*ROWS, {"prompt": "x" * 500, "answer": "1"}], (), "data", "bad", "budget.sampling.max_tokens=10"),
        ([*ROWS, {"prompt": "x" * 600, "answer": "1"}], (), "data", "bad", "Shorten"),
        ([*ROWS, {"prompt": "x", "answer": "1" * 60}], (), "data", "warn", "budget.sampling.max_tokens=120"),
        (ROWS, ("task.held_share=0",), "data", "warn", "no rows are held out"),
        ([*ROWS, ROWS[0]], ("task.held_share=0",), "data", "warn", "1 rows repeat the prompt of another one"),
        ([*ROWS, {**ROWS[0], "answer": "9"}], (), "data", "warn", "1 prompts stand there with different answers"),
        ([*ROWS, {"prompt": "x"}], ("reward=rewards.py:score",), "data", "warn", "1 rows without an answer"),
        (ROWS, ("budget.prompts_per_step=64",), "batch", "warn", "some come twice"),
        (ROWS, ("steps=100000",), "batch", "warn", "every row is seen"),
        (ROWS, ("recipe.waivers=[group_of_one]",), "recipe", "warn", "group_of_one"),
        (ROWS, ("recipe=gspo",), "recipe", "warn", "all ratios are 1"),
        (ROWS, ("recipe=gmpo",), "recipe", "warn", "budget.optimizer_steps_per_pass=4"),
        (ROWS, ("recipe=gfpo", "budget.samples_per_prompt=8"), "recipe", "warn", "filter k_best keeps them all"),
    ],
)  # fmt: skip
def test_what_is_off_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    rows: list[dict[str, Any]], settings: tuple[str, ...], name: str, status: str, words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").write_text("def score(completion, answer):\n    return float(completion == answer)\n")
    findings = checked(tmp_path, rows, *settings)
    assert words in lines(findings, name, status)


def test_optimizer_steps_and_passes_are_multiplied_out(tmp_path: Path) -> None:
    flags = ("budget.optimizer_steps_per_pass=2", "budget.passes_per_batch=3", "steps=5", "recipe=grpo")
    told = lines(checked(tmp_path, ROWS, *flags), "batch")
    assert "2 optimizer steps x 3 passes over about 2 prompts each; 5 steps = 30 optimizer steps" in told
    for recipe, steps in (("gspo", 2), ("grpo", 1), ("gfpo_adaptive", 2)):
        findings = checked(tmp_path, ROWS, f"recipe={recipe}", f"budget.optimizer_steps_per_pass={steps}")
        assert not lines(findings, "recipe", "warn")


def test_no_weights_are_read(tmp_path: Path) -> None:
    """A folder whose only weight belongs to no model is looked at as any other; loading it fails."""
    folder = tmp_path / "model"
    shutil.copytree(find_model("tiny"), folder)
    save_file({"stray": torch.zeros(1)}, folder / "model.safetensors")
    words = open_words(str(folder))
    assert (words.context, words.stop_ids) == (512, (1,))
    assert words.encode("ab") == (*words.encode("a"), *words.encode("b"))
    with pytest.raises(CoveyError):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingInputError, match="no weights"):
        open_words(str(folder))


HISTORY = [
    {
        "prompt": [
            {"role": "user", "content": "1+1="},
            {"role": "assistant", "content": "2."},
            {"role": "user", "content": f"{a}+1="},
        ],
        "answer": str(a + 1),
    }
    for a in range(4)
]


@pytest.mark.parametrize(
    ("report", "rows", "settings", "words"),
    [
        (TemplateReport(True, diverges="turn 1: here", generation_prompt="x"), HISTORY, (), "past is rewritten: turn 1: here"),
        (TemplateReport(True, diverges="turn 1: here", generation_prompt="x"), ROWS, (), ""),
        (TemplateReport(True, system="left out", generation_prompt="x"), ROWS, ("model.system=Hi",), "no place for a system"),
        (TemplateReport(True, system="left out", generation_prompt="x"), ROWS, (), ""),
        (TemplateReport(True), ROWS, (), "nothing opens the model's turn"),
        (TemplateReport(True, generation_prompt="x", closes=False, closed_by="<|eot|>"), ROWS, (), "'<|eot|>'"),
        (TemplateReport(True, generation_prompt="x", bos=2, bos_written=3), ROWS, (), "3 BOS tokens"),
        (TemplateReport(True, generation_prompt="x", bos=1, bos_written=2), ROWS, (), ""),
        (TemplateReport(False), HISTORY, (), ""),
    ],
)  # fmt: skip
def test_of_a_template_only_what_matters_to_the_run_is_held_against_it(
    tmp_path: Path, report: TemplateReport, rows: list[dict[str, Any]], settings: tuple[str, ...], words: str
) -> None:
    config = resolve([f"data={write(tmp_path, rows)}", "task.held_share=0", *settings]).config
    found = list(judge_template(report, open_words("tiny"), config, gather(config.task, 0)))  # type: ignore[arg-type]
    off = [finding for finding in found if finding.status != "ok"]
    assert bool(off) == bool(words)
    assert words in "".join(finding.line for finding in off)


def test_a_reward_is_called_by_its_file_and_function(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def good(completion):\n    return 1.0\n")
    data = f"data={write(tmp_path)}"
    assert name_reward(resolve([data, f"reward={file}:good"]).config) == "mine.py:good"
    assert name_reward(resolve([data, "reward=number"]).config) == "number"
    assert name_reward(resolve(["task=compose"]).config) == "compose_tiny"


def test_rows_that_are_no_rows_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CoveyError, match=r"rows\.jsonl line 2"):
        checked(tmp_path, [{"prompt": "a", "answer": "1"}, {"prompt": 3, "answer": "1"}])
