"""A run folder is summed up from its files, whole or torn, and shown."""

import hashlib
import io
import json
import re

import pytest
from rich.console import Console as Terminal

from covey.config.text import write
from covey.errors import MissingInputError
from covey.observe.show import render, summary, write_curve
from covey.observe.sinks import RunSink

CONFIG = {
    "name": "dr_grpo-compose",
    "recipe": {"name": "dr_grpo", "admit": []},
    "model": {"path": "tiny", "dtype": "float32"},
    "task": {"kind": "compose", "variant": "tiny"},
    "budget": {"steps": 3, "seed": 7, "optimizer": {"lr": 1e-3}},
}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "dr_grpo-compose-1"
    place.mkdir()
    (place / "run.yaml").write_text(write(CONFIG))
    sink = RunSink(place)
    sink.write("eval", evaluation(0, 0.3))
    for step in range(3):
        sink.write(
            "step", {"step": step, "reward/mean": 0.3 + step / 10, "grad/norm": float("nan"), "time/step_s": 2.0}
        )
    sink.write("eval", evaluation(3, 0.8))
    (place / "model").mkdir()
    (place / "model" / "weights").write_bytes(b"x" * 2000)
    return place


def evaluation(step, value):
    found = {"step": step}
    for end in ("", "_L2", "_L2_newpairs"):
        found |= {f"eval/accuracy{end}": value, f"eval/low{end}": value - 0.05, f"eval/high{end}": value + 0.05}
    return found


def test_the_summary_is_plain_data(folder):
    told = summary(folder)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    expected = hashlib.sha256(json.dumps(CONFIG, sort_keys=True).encode()).hexdigest()
    assert told["config_sha256"] == expected
    assert (told["recipe"], told["task"], told["model"], told["seed"]) == ("dr_grpo", "compose", "tiny", 7)
    assert (told["steps"], told["steps_done"], told["seconds"]) == (3, 3, 6.0)
    assert [item["step"] for item in told["evaluations"]] == [0, 3]
    assert told["evaluations"][1]["sets"]["L2_newpairs"] == {"accuracy": 0.8, "low": 0.75, "high": pytest.approx(0.85)}
    assert told["last"]["reward/mean"] == 0.5
    assert told["last"]["grad/norm"] is None
    assert told["files"]["model/"] == 2000
    assert set(told["files"]) == {"run.yaml", "metrics.jsonl", "timings.jsonl", "health.jsonl", "model/"}


def shown(told, **options):
    terminal = Terminal(file=io.StringIO(), width=120, color_system=None)
    terminal.print(render(told, **options))
    return terminal.file.getvalue()


def test_it_is_shown_with_before_and_after(folder):
    text = shown(summary(folder), chart="the chart")
    assert "3 of 3 in 6 s" in text
    assert "L2_newpairs │  0.300 │ 0.800 │ +0.500 │ 0.750 to 0.850" in text
    assert "reward/mean 0.5" in text
    assert "model/ 2 kB" in text
    assert text.rstrip().endswith("the chart")


def test_the_curve_is_written_and_drawn(folder):
    text = write_curve(folder)
    assert "◆" in text
    assert "dr_grpo on compose" in (folder / "curve.svg").read_text()


def test_a_run_that_was_killed_at_once_is_shown_too(tmp_path):
    (tmp_path / "run.yaml").write_text('recipe: dr_grpo\nname: "\\e[31mx"\n')
    (tmp_path / "metrics.jsonl").write_text('{"step":0,"rew')
    told = summary(tmp_path)
    assert (told["steps_done"], told["evaluations"], told["last"]) == (0, [], {})
    assert "\x1b" not in shown(told)
    assert "no steps yet" in write_curve(tmp_path)


def test_a_run_with_only_the_main_sets_accuracy(tmp_path):
    (tmp_path / "run.yaml").write_text("recipe: dr_grpo\n")
    (tmp_path / "metrics.jsonl").write_text('{"step":0,"eval/accuracy":0.5}\n')
    assert "main" in shown(summary(tmp_path))


def test_one_evaluation_is_no_before_and_after(folder):
    lines = [json.dumps(evaluation(0, 0.3))]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    text = shown(summary(folder))
    assert "accuracy on unseen problems, step 0\n" in re.sub(" +\n", "\n", text)
    assert "L2_newpairs │    0.300 │ 0.250 to 0.350" in text
    assert "before" not in text


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(MissingInputError, match=r"has no run\.yaml"):
        summary(tmp_path)
    with pytest.raises(MissingInputError, match="is no folder"):
        summary(tmp_path / "none")
