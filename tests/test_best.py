"""The best evaluation: how it is judged, kept and remembered, and how a run ends when no better one comes."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import time

import pytest

from covey.best import Best
from covey.config import resolve
from covey.errors import ConfigError, DataError
from tests import test_run

ROWS = {"eval/accuracy": 0.5, "eval/low": 0.4, "eval/high": 0.6, "eval/length": 7.0, "eval/accuracy_hard": 0.2}


def follow(values, **options):
    """The best after each of several evaluations, every tenth step."""
    best = Best(metric="eval/accuracy", **options)
    for place, value in enumerate(values):
        best = best.after({"eval/accuracy": value}, 10 * place)
    return best


def oracle(values, mode="max", min_change=0.0):
    """Step and value of the best and evaluations since, by looking at all of them again and again."""
    at = None
    for place, value in enumerate(values):
        if not math.isfinite(value):
            continue
        if at is None or (value > values[at] + min_change if mode == "max" else value < values[at] - min_change):
            at = place
    return (None, None, len(values)) if at is None else (10 * at, values[at], len(values) - 1 - at)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("min_change", [0.0, 0.25])
@pytest.mark.parametrize(
    "values",
    [[], [1.0], [1.0, 1.0], [0.0, 1.0, 0.5], [3.0, 2.0, 1.0, 2.0], [math.nan, 1.0, math.nan, 1.25, 1.5], [math.nan]],
)
def test_the_best_is_that_of_the_oracle(values, mode, min_change):
    best = follow(values, mode=mode, min_change=min_change)
    assert (best.step, best.value, best.since) == oracle(values, mode, min_change)


def test_it_has_the_interval_of_its_own_set():
    best = Best(metric="eval/accuracy").after(ROWS, 3)
    assert (best.value, best.low, best.high) == (0.5, 0.4, 0.6)
    assert str(best) == "eval/accuracy 0.5 after step 3"
    hard = Best(metric="eval/accuracy_hard").after(ROWS | {"eval/low_hard": 0.1, "eval/high_hard": 0.3}, 3)
    assert (hard.low, hard.high) == (0.1, 0.3)
    short = Best(metric="eval/length", mode="min").after(ROWS, 3)
    assert (short.value, short.low, short.high) == (7.0, None, None)


def test_a_metric_that_evaluations_lack_is_told_with_those_they_have():
    with pytest.raises(DataError) as caught:
        Best(metric="reward/mean").after(ROWS, 0)
    line = str(caught.value)
    assert line.startswith("budget.best.metric: an evaluation has no metric 'reward/mean'. Known: eval/accuracy, ")
    with pytest.raises(DataError, match=r"Did you mean 'eval/accuracy'\? Known: eval/accuracy, eval/accuracy_hard"):
        Best(metric="eval/acuracy").after(ROWS, 0)


def test_a_run_without_held_out_problems_has_no_best():
    with pytest.raises(DataError, match=r"^budget\.best: there is no evaluation: no problems are held out"):
        Best(metric="eval/accuracy").after({}, 0)


def test_patience_counts_evaluations_in_a_row():
    assert not follow([1.0, 0.5, 0.5]).spent(3)
    assert follow([1.0, 0.5, 0.5, 1.0]).spent(3)
    assert not follow([1.0, 0.5, 0.5, 1.1]).spent(3)
    assert not follow([1.0] * 50).spent(None)


def test_a_checkpoint_remembers_it_and_another_metric_begins_anew():
    best = follow([0.1, 0.7, 0.3])
    record = json.loads(json.dumps(best.record()))
    assert Best(metric="eval/accuracy").resumed(record) == best
    assert Best(metric="eval/accuracy", min_change=0.1).resumed(record).min_change == 0.1
    for other in (Best(metric="eval/length"), Best(metric="eval/accuracy", mode="min")):
        assert other.resumed(record) == other
    assert Best(metric="eval/accuracy").resumed(None).step is None


def test_patience_without_evaluations_is_refused():
    with pytest.raises(ConfigError, match=r"^budget\.best\.patience: without budget\.eval_every"):
        resolve(["budget.best.patience=3", "budget.eval_every=null"])
    assert resolve(["budget.best={}", "budget.eval_every=null"]).config.budget.best.metric == "eval/accuracy"


# Whole runs

SMALL = [*test_run.SMALL, "reward=slow.py:score"]


def covey(*arguments, cwd, expect=0, **extra):
    done = subprocess.run(
        test_run.command(*arguments),
        cwd=cwd,
        env=test_run.ENVIRONMENT | extra,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "slow.py").write_text(test_run.SLOW_REWARD)
    return folder


def prints(run):
    """What has to be equal: metrics, the model at the end, and the best one with what was found of it."""
    names = (
        "metrics.jsonl",
        "ledger.jsonl",
        "model/model.safetensors",
        "best/model/model.safetensors",
        "best/best.json",
    )
    found = {name: test_run.sha(run / name) for name in names}
    [last] = sorted((run / "checkpoints").glob("step-*"))[-1:]
    return found | {"best": json.loads((last / "state.json").read_text())["record"]["best"]}


EIGHT = ["train", "steps=8", "budget.checkpoint_every=3", "budget.eval_every=2", "budget.best={}", *SMALL]


@pytest.fixture(scope="module")
def undisturbed(home):
    covey(*EIGHT, "--out", "whole", cwd=home)
    return prints(home / "whole")


@pytest.mark.slow
def test_best_holds_the_model_of_the_best_evaluation(home, undisturbed):
    run = home / "whole"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["eval/accuracy"] for row in rows if "eval/accuracy" in row}
    assert list(found) == [0, 2, 4, 6, 8]
    step = max(found, key=lambda step: (found[step], -step))
    told = json.loads((run / "best/best.json").read_text())
    assert (told["step"], told["value"], told["metric"]) == (step, found[step], "eval/accuracy")
    assert json.loads((run / "end.json").read_text()) == {"outcome": "done", "reason": "", "step": 8}
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(run / "best/model")
    AutoTokenizer.from_pretrained(run / "best/model")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("operation", [20, 27, 33, 45, 60])
def test_a_run_killed_while_it_evaluates_keeps_or_saves_has_the_same_best(home, undisturbed, operation):
    """File operations of an evaluation's best model, of a checkpoint, and between the two."""
    name = f"fault-{operation}"
    covey(*EIGHT, "--out", name, cwd=home, expect=-signal.SIGKILL, COVEY_FAULT=f"fsync:{operation}:kill")
    if list((home / name / "checkpoints").glob("step-*")):
        covey("train", "--resume", name, cwd=home)
        assert prints(home / name) == undisturbed


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_best(home, undisturbed):
    run = home / "killed"
    with subprocess.Popen(test_run.command(*EIGHT, "--out", "killed"), cwd=home, env=test_run.ENVIRONMENT) as process:
        deadline = time.monotonic() + 120
        while '"step": 7' not in (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else True:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    covey("train", "--resume", "killed", cwd=home)
    assert prints(home / "killed") == undisturbed


@pytest.mark.slow
@pytest.mark.long
def test_a_run_ends_when_no_better_evaluation_comes_and_goes_on_with_more_patience(home):
    """The answers are never right, so the first evaluation stays the best."""
    (home / "never.py").write_text("def score(completion, answer):\n    return 0.0 * len(completion)\n")
    options = [
        item for item in SMALL if not item.startswith("reward")
    ] + ["reward=never.py:score", "budget.eval_every=1", "budget.best.patience=2"]  # fmt: skip
    said = covey("train", "steps=9", *options, "--out", "early", cwd=home)
    assert "stopped early, saved early/model after 2 steps" in said
    assert "no better eval/accuracy in 2 evaluations" in said
    assert "best eval/accuracy 0 after step 0" in said
    run = home / "early"
    assert (run / "model/config.json").exists()
    ended = json.loads((run / "end.json").read_text())
    assert ended == {"outcome": "stopped early", "reason": "no better eval/accuracy in 2 evaluations", "step": 2}
    told = json.loads(covey("show", "early", "--json", cwd=home))
    assert told["end"] == ended
    assert told["best"]["step"] == 0
    shown = covey("show", "early", cwd=home)
    assert "stopped early after step 2: no better eval/accuracy" in shown
    before = (run / "metrics.jsonl").read_bytes()
    covey("train", "--resume", "early", cwd=home)
    assert (run / "metrics.jsonl").read_bytes() == before  # it has nothing left to do
    covey("train", "--resume", "early", "budget.best.patience=4", cwd=home)
    assert json.loads((run / "end.json").read_text())["step"] == 4
    covey("train", "--resume", "early", "budget.best=null", cwd=home)
    assert json.loads((run / "end.json").read_text()) == {"outcome": "done", "reason": "", "step": 9}


@pytest.mark.slow
def test_a_wrong_metric_ends_the_run_at_its_first_evaluation(home):
    said = covey(
        "train", "steps=2", "budget.best.metric=eval/acc", *SMALL, "--out", "wrong", cwd=home, expect=65
    )  # fmt: skip
    assert "error: budget.best.metric: an evaluation has no metric 'eval/acc'" in said
    assert "eval/accuracy" in said
