"""Callbacks: what is refused, when each event comes, what a callback may do to a run, and what its error does."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

import covey
from covey.callbacks import EVENTS, Callback, CallbackError, Callbacks
from covey.errors import ConfigError, StorageError

SMALL = {
    "model": "tiny",
    "quiet": True,
    "budget.prompts_per_step": 2,
    "budget.samples_per_prompt": 2,
    "budget.eval_problems": 2,
    "budget.eval_samples": 1,
    "budget.sampling.max_tokens": 8,
    "engines.threads": 1,
}


def train(out, *callbacks, **more):
    return covey.train(
        out=out, callbacks=callbacks, **(SMALL | {name.replace("__", "."): v for name, v in more.items()})
    )


class Diary(Callback):
    """Writes down every event."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, run):
        self.seen.append(("train_begin", run.step))

    def on_step_begin(self, run):
        self.seen.append(("step_begin", run.step))

    def on_rollouts(self, run, groups):
        self.seen.append(("rollouts", run.step, [len(group.rollouts) for group in groups]))

    def on_log(self, run, logs):
        self.seen.append(("log", run.step, logs))

    def on_step_end(self, run):
        self.seen.append(("step_end", run.step))

    def on_evaluate(self, run, metrics):
        self.seen.append(("evaluate", run.step, metrics["eval/accuracy"]))

    def on_save(self, run, folder):
        self.seen.append(("save", run.step, folder.name, (folder / "manifest.json").exists()))

    def on_train_end(self, run):
        self.seen.append(("train_end", run.step, run.model.exists()))

    @property
    def names(self):
        return [entry[:2] for entry in self.seen]


# What is refused


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (Callback, r"callbacks\[0\]: Callback is a class\. Give an instance: Callback\(\)\."),
        (print, r"callbacks\[0\]: a builtin_function_or_method is no callback\. Derive from covey\.Callback\."),
        (
            type("Slip", (Callback,), {"on_step_ended": lambda self, run: None})(),
            r"callbacks\[0\]\.on_step_ended: there is no such event\. Did you mean 'on_step_end'\?",
        ),
        (
            type("Epochs", (Callback,), {"on_epoch_begin": lambda self, run: None})(),
            r"callbacks\[0\]\.on_epoch_begin: there is no such event\.",
        ),
    ],
)
def test_what_would_never_be_called_is_refused(wrong, line):
    with pytest.raises(ConfigError, match=f"^{line}"):
        Callbacks([wrong])


def test_a_callback_of_transformers_is_told_what_to_derive_from():
    from transformers import TrainerCallback

    class Mine(TrainerCallback):
        pass

    with pytest.raises(ConfigError, match=r"Mine is a callback of transformers.*covey\.Callback: same events"):
        Callbacks([Diary(), Mine()])


def test_a_refusal_comes_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError):
        train(tmp_path / "run", Diary)
    assert not (tmp_path / "run").exists()


def test_names_are_those_of_hugging_face_where_they_mean_the_same():
    from transformers import TrainerCallback

    own = {"on_rollouts"}
    assert own < set(EVENTS)
    assert set(EVENTS) - own <= {name for name in dir(TrainerCallback) if name.startswith("on_")}
    assert covey.Callback is Callback


# Dispatch, without a run


class Raises(Callback):
    def __init__(self, error):
        self.error, self.calls = error, 0

    def on_step_end(self, run):
        self.calls += 1
        raise self.error


def test_one_that_raises_is_named_and_not_called_again_and_the_others_are():
    bad, diary = Raises(ValueError("it is\nTuesday")), Diary()
    run = type("Run", (), {"step": 3})()
    all_ = Callbacks([bad, diary])
    all_.on_step_end(run)
    all_.on_step_end(run)
    assert bad.calls == 1
    assert diary.names == [("step_end", 3)] * 2
    with pytest.raises(CallbackError) as caught:
        all_.raise_failure()
    assert str(caught.value) == "callback Raises.on_step_end: raised ValueError: it is Tuesday. The run ends here."
    assert caught.value.__cause__ is bad.error


def test_mistakes_that_say_themselves_what_is_wrong_and_interrupts_pass():
    for error in (StorageError("disk", "full"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            Callbacks([Raises(error)]).on_step_end(None)


def test_each_gets_numbers_of_its_own():
    class Greedy(Callback):
        def on_log(self, run, logs):
            logs.clear()

    diary, numbers = Diary(), {"step": 1.0}
    Callbacks([Greedy(), diary]).on_log(type("Run", (), {"step": 1})(), numbers)
    assert diary.seen == [("log", 1, {"step": 1.0})]
    assert numbers == {"step": 1.0}


# Whole runs


@pytest.mark.slow
def test_events_come_in_order_with_what_they_are_about(tmp_path):
    diary = Diary()
    run = train(tmp_path / "run", diary, steps=2, budget__eval_every=1, budget__checkpoint_every=1)
    step = ["step_begin", "rollouts", "log", "step_end", "evaluate", "save"]
    assert [name for name, *_ in diary.seen] == ["train_begin", "evaluate", *step, *step, "train_end"]
    assert [at for _, at, *_ in diary.seen] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    rows = [row for row in run.metrics() if "reward/mean" in row]
    logs = [entry[2] for entry in diary.seen if entry[0] == "log"]
    for row, log in zip(rows, logs, strict=True):
        assert row.items() <= log.items()
        assert log["time/step_s"] > 0
    assert ("rollouts", 0, [2, 2]) in diary.seen
    assert ("save", 1, "step-000001", True) in diary.seen
    assert diary.seen[-1] == ("train_end", 2, True)


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_callbacks_and_trackers_do_not_change_a_run(tmp_path):
    plain = train(tmp_path / "plain", steps=3)
    told = train(tmp_path / "told", Diary(), steps=3, report_to="tensorboard")
    for name in ("metrics.jsonl", "ledger.jsonl", "model/model.safetensors"):
        assert sha(plain.folder / name) == sha(told.folder / name)
    assert list((told.folder / "tensorboard").iterdir())


class Stop(Callback):
    def __init__(self, at):
        self.at = at

    def on_step_end(self, run):
        if run.step == self.at:
            run.stop("seen\nenough")


@pytest.mark.slow
def test_a_callback_can_end_a_run_which_has_a_model_and_can_go_on(tmp_path):
    whole = train(tmp_path / "whole", steps=4)
    run = train(tmp_path / "run", Stop(2), steps=4)
    assert (run.step, run.stopped, run.interrupted) == (2, "seen enough", False)
    assert json.loads((run.folder / "end.json").read_text()) == {
        "outcome": "stopped early",
        "reason": "seen enough",
        "step": 2,
    }
    assert (run.model / "config.json").exists()
    assert run.metrics()[-1]["step"] == 2
    assert "eval/accuracy" in run.metrics()[-1]
    diary = Diary()
    again = covey.train(resume=run.folder, quiet=True, callbacks=[diary])
    assert diary.names[:2] == [("train_begin", 2), ("step_begin", 2)]
    assert again.step == 4
    assert sha(again.model / "model.safetensors") == sha(whole.model / "model.safetensors")
    steps = [row for row in again.metrics() if "reward/mean" in row]
    assert steps == [row for row in whole.metrics() if "reward/mean" in row]


class Breaks(Callback):
    def __init__(self, event, at):
        self.at = at
        setattr(self, event, self._break)

    def _break(self, run, *_):
        if run.step == self.at:
            raise RuntimeError("planted")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "at", "saved"),
    [("on_step_begin", 1, 1), ("on_rollouts", 1, 2), ("on_log", 2, 2), ("on_step_end", 2, 2), ("on_evaluate", 0, 0)],
)
def test_an_error_in_a_callback_ends_the_run_after_the_step_was_saved(tmp_path, event, at, saved):
    folder = tmp_path / "run"
    with pytest.raises(CallbackError, match=rf"^callback Breaks\.{event}: raised RuntimeError: planted") as caught:
        train(folder, Breaks(event, at), steps=3)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{saved:06d}"]
    assert json.loads((folder / "end.json").read_text())["outcome"] == "failed"
    assert not (folder / "model").exists()
    assert covey.train(resume=folder, quiet=True).step == 3
    assert json.loads((folder / "end.json").read_text()) == {"outcome": "done", "reason": "", "step": 3}


@pytest.mark.slow
def test_an_error_at_the_beginning_ends_the_run_before_it_costs_anything(tmp_path):
    with pytest.raises(CallbackError, match="on_train_begin"):
        train(tmp_path / "run", Breaks("on_train_begin", 0), steps=3)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == b""


@pytest.mark.slow
def test_an_error_at_the_end_does_not_cost_the_model(tmp_path):
    with pytest.raises(CallbackError, match="on_train_end"):
        train(tmp_path / "run", Breaks("on_train_end", 1), steps=1)
    assert (tmp_path / "run/model/config.json").exists()


@pytest.mark.slow
def test_a_callback_evaluates_and_saves_out_of_turn(tmp_path):
    class Often(Callback):
        def on_step_end(self, run):
            run.evaluate()
            run.save()

    run = train(tmp_path / "run", Often(), steps=2, budget__eval_every=1)
    assert [row["step"] for row in run.metrics() if "eval/accuracy" in row] == [0, 1, 2]
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == ["step-000001", "step-000002"]


@pytest.mark.slow
def test_an_interrupt_is_told_to_callbacks_too(tmp_path):
    class Interrupts(Diary):
        def on_log(self, run, logs):
            super().on_log(run, logs)
            os.kill(os.getpid(), signal.SIGINT)

    diary = Interrupts()
    run = train(Path(tmp_path / "run"), diary, steps=5)
    assert run.interrupted
    assert diary.names[-3:] == [("step_end", 1), ("save", 1), ("train_end", 1)]
    assert json.loads((run.folder / "end.json").read_text())["outcome"] == "interrupted"
