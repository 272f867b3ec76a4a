"""Trackers get every record once, under covey's and TRL's names, through their own clients; they never stop a run."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp())  # trackio reads it when it is imported

import pytest

from covey.errors import ConfigError, MissingInputError, OutputError
from covey.observe import clients, trackers
from covey.observe.clients import CLIENTS, Card, flat, named
from covey.observe.offline import read_log
from covey.observe.sinks import RunSink
from covey.observe.trackers import Trackers, check, open_trackers

CONFIG = {"name": "r", "budget": {"steps": 9, "best": None}, "report": {"to": ["mlflow"]}}
REAL = ["tensorboard", "wandb", "trackio", pytest.param("mlflow", marks=[pytest.mark.slow, pytest.mark.long])]


def step_record(step, **more):
    return {"step": step, "reward/mean": step / 8, "reward/correct": step / 16, "lr": 1e-3, "time/step_s": 0.5} | more


def eval_record(step):
    return {"step": step, "eval/accuracy": step / 10, "eval/pass@1": step / 10, "eval/problems": 20.0}


def card(folder, step=0, project="covey"):
    return Card(project=project, name=folder.name, folder=folder, config=CONFIG, step=step)


def write(sink, found, kind, record):
    sink.write(kind, record)
    found.write(kind, record)


def play(folder, name, first, last, *, done=0, project="covey"):
    """Steps `first` to `last` of a run of which `done` steps stand in the folder; an evaluation after every second one."""
    sink = RunSink(folder)
    told = open_trackers([name], card(folder, done, project))
    if first == 1:
        write(sink, told, "evaluation", eval_record(0))
    for step in range(first, last + 1):
        write(sink, told, "step", step_record(step))
        if step % 2 == 0:
            write(sink, told, "evaluation", eval_record(step))
    told.close()
    offsets = sink.offsets()
    sink.close()
    assert told.complaints() == []
    return offsets


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)


# What is in the stores, read back by other code than wrote it


def read_tensorboard(folder, project):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_wandb(folder, project):
    """The rows of all offline files, merged by step as the server does."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = defaultdict(list)
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in leveldb_records(path.read_bytes()[7:]):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                row = {item.key or ".".join(item.nested_key): float(item.value_json) for item in record.history.item}
                for name, value in row.items():
                    found[name].append((int(row["_step"]), value))
    return {name: points for name, points in found.items() if not name.startswith("_")}


def leveldb_records(data, start=7):
    """The records of a log of blocks of 32 KiB: crc, length, type (whole, first, middle, last), bytes; 7 bytes stand before."""
    out, part = [], b""
    while start - 7 < len(data):
        left = 32768 - start % 32768
        if left < 7:
            start += left
            continue
        _, length, kind = struct.unpack("<IHB", data[start - 7 : start])
        part += data[start : start + length]
        if kind in (1, 4):
            out.append(part)
            part = b""
        start += length + 7
    return out


def read_trackio(folder, project):
    from trackio.sqlite_storage import SQLiteStorage

    found = defaultdict(list)
    for run in SQLiteStorage.get_runs(project):
        for row in SQLiteStorage.get_logs(project, run):
            for name, value in row.items():
                if "/" in name or name == "lr":
                    found[name].append((row["step"], value))
    return found


def read_mlflow(folder, project):
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name(project).experiment_id])
    assert len(runs) == 1
    names = runs[0].data.metrics
    return {name: [(p.step, p.value) for p in client.get_metric_history(runs[0].info.run_id, name)] for name in names}


READ = {"tensorboard": read_tensorboard, "wandb": read_wandb, "trackio": read_trackio, "mlflow": read_mlflow}


@pytest.mark.parametrize("name", REAL)
def test_a_tracker_has_every_record_under_both_names(name, tmp_path, capfd):
    folder = tmp_path / "first-1"
    play(folder, name, 1, 5, project=f"{name}-whole")
    found = READ[name](folder, f"{name}-whole")
    prefix = "" if name == "mlflow" else "train/"
    for own, alias in (("reward/mean", "reward"), ("reward/correct", "rewards/correct/mean"), ("lr", "learning_rate")):
        want = [(step, pytest.approx(step_record(step)[own])) for step in range(1, 6)]
        assert sorted(found[own]) == want
        assert sorted(found[prefix + alias]) == want
    assert sorted(found["time/step_s"]) == [(step, 0.5) for step in range(1, 6)]
    assert sorted(found["eval/accuracy"]) == [(step, pytest.approx(step / 10)) for step in (0, 2, 4)]
    assert "eval/pass_at_1" in found if name == "mlflow" else "eval/pass@1" in found
    assert capfd.readouterr() == ("", "")  # no banner


@pytest.mark.parametrize("name", REAL)
def test_a_resumed_run_goes_on_in_the_same_run_with_every_step_once(name, tmp_path):
    """Steps 1 to 3 were saved, the run was killed after step 5: steps 4 and 5 come again from the resumed run."""
    folder, project = tmp_path / "again-1", f"{name}-resumed"
    saved = play(folder, name, 1, 3, project=project)
    play(folder, name, 4, 5, done=3, project=project)
    sink = RunSink(folder)
    sink.truncate(saved, 3)
    sink.close()
    play(folder, name, 4, 8, done=3, project=project)
    found = READ[name](folder, project)
    assert sorted(found["reward/mean"]) == [(step, pytest.approx(step / 8)) for step in range(1, 9)]
    assert [step for step, _ in sorted(found["eval/accuracy"])] == [0, 2, 4, 6, 8]
    assert max(Counter(step for step, _ in found["lr"]).values()) == 1


@pytest.mark.parametrize("name", REAL)
def test_what_a_kill_kept_from_a_tracker_comes_from_the_files(name, tmp_path):
    """The tracker was told of two steps of five when the machine went down, or it is named for the first time on resume."""
    folder, project = tmp_path / "gap-1", f"{name}-gap"
    play(folder, name, 1, 2, project=project)
    state = json.loads((folder / "trackers.json").read_text())
    state[name] |= {"told": {"step": 2, "evaluation": 2}, "ended": False}
    (folder / "trackers.json").write_text(json.dumps(state))
    sink = RunSink(folder)
    for step in (3, 4, 5):
        sink.write("step", step_record(step))
        if step == 4:
            sink.write("evaluation", eval_record(step))
    sink.close()
    play(folder, name, 6, 6, done=5, project=project)
    found = READ[name](folder, project)
    assert sorted(found["reward/mean"]) == [(step, pytest.approx(step / 8)) for step in range(1, 7)]
    assert sorted(found["time/step_s"]) == [(step, 0.5) for step in range(1, 7)]
    assert [step for step, _ in sorted(found["eval/accuracy"])] == [0, 2, 4, 6]


def test_a_log_of_wandb_is_read_up_to_where_it_is_torn():
    """Against the other reader of this file, with records that fill blocks, cross them and end just before their end."""
    records = [bytes([n % 251]) * size for n, size in enumerate((1, 32_747, 5, 40_000, 0, 65_501, 70_000, 3), 1)]
    data = b":W&B\0\0\0"
    for record in records:
        first = True
        while True:
            left = 32768 - len(data) % 32768
            if left < 7:
                data += b"\0" * left
                continue
            part, record = record[: left - 7], record[left - 7 :]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            data += struct.pack("<IHB", 0, len(part), kind) + part
            first = False
            if not record:
                break
    want = [bytes([n % 251]) * size for n, size in enumerate((1, 32_747, 5, 40_000, 0, 65_501, 70_000, 3), 1)]
    assert list(read_log(data)) == want
    assert list(read_log(data[:-1])) == want[:-1]
    assert list(read_log(data[:30])) == want[:1]
    assert list(read_log(b"")) == []


def test_two_runs_of_one_name_stay_apart_in_trackio(tmp_path):
    for home in ("a", "b"):
        play(tmp_path / home / "same-1", "trackio", 1, 2, project="shared")
    from trackio.sqlite_storage import SQLiteStorage

    runs = SQLiteStorage.get_runs("shared")
    assert len(set(runs)) == 2
    assert all(len(SQLiteStorage.get_logs("shared", run)) == 4 for run in runs)
    play(tmp_path / "a" / "same-1", "trackio", 3, 3, done=2, project="shared")
    assert sorted(len(SQLiteStorage.get_logs("shared", run)) for run in runs) == [4, 5]


def test_the_configuration_is_filed(tmp_path):
    play(tmp_path / "c-1", "trackio", 1, 1, project="configs")
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_run_config("configs", "c-1")["budget.steps"] == 9
    assert flat(CONFIG) == {"name": "r", "budget.steps": 9, "budget.best": None, "report.to": ["mlflow"]}


@pytest.mark.slow
@pytest.mark.long
def test_mlflow_knows_the_configuration_and_how_it_ended(tmp_path):
    from mlflow.tracking import MlflowClient

    for failed, status in ((False, "FINISHED"), (True, "FAILED")):
        folder = tmp_path / status
        told = open_trackers(["mlflow"], card(folder, project=status))
        told.failed = failed
        told.close()
        client = MlflowClient()
        [run] = client.search_runs([client.get_experiment_by_name(status).experiment_id])
        assert run.info.status == status
        assert run.info.run_name == status
        assert run.data.params["budget.steps"] == "9"


# What cannot work is said before a model is loaded


def test_an_unknown_tracker_has_a_neighbour():
    with pytest.raises(ConfigError, match=r"report\.to: there is no tracker 'wnadb'\. Did you mean 'wandb'\?"):
        check(["tensorboard", "wnadb"])


def test_an_absent_client_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingInputError) as caught:
        check(["mlflow"])
    assert str(caught.value) == "report.to: mlflow needs `pip install covey[mlflow]` (mlflow)"


def test_wandb_without_a_key_is_one_line_and_no_question(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"wandb has no key for api\.wandb\.ai\. Run `wandb login`"):
        check(["wandb"])
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789\n")
    check(["wandb"])
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(ConfigError, match=r"wandb\.example\.org"):
        check(["wandb"])
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/settings").write_text("[default]\nmode = offline\n")
    check(["wandb"])


@pytest.mark.slow
@pytest.mark.long
def test_a_store_that_cannot_be_reached_stops_the_start(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/x.db")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"^tracker mlflow: could not start \("):
        open_trackers(["mlflow"], card(tmp_path / "run"))


def test_a_service_that_is_not_there_is_said_soon(monkeypatch, tmp_path):
    """The client's own patience of minutes is for the run, not for its start; what the user set stays."""
    with clients._variable("COVEY_TEST_RETRIES", "3"):
        assert os.environ["COVEY_TEST_RETRIES"] == "3"
    assert "COVEY_TEST_RETRIES" not in os.environ
    monkeypatch.setenv("COVEY_TEST_RETRIES", "9")
    with clients._variable("COVEY_TEST_RETRIES", "3"):
        assert os.environ["COVEY_TEST_RETRIES"] == "9"
    assert os.environ["COVEY_TEST_RETRIES"] == "9"


def test_one_that_cannot_start_ends_those_that_could(monkeypatch, tmp_path):
    closed = []

    class Good(Fake):
        def close(self, *, failed):
            closed.append(failed)

    class Bad(Fake):
        def told(self):
            raise ConnectionError("no route")

    monkeypatch.setitem(CLIENTS, "good", Good)
    monkeypatch.setitem(CLIENTS, "bad", Bad)
    with pytest.raises(OutputError, match=r"^tracker bad: could not start \(ConnectionError: no route\)\. Mend it"):
        open_trackers(["good", "bad"], card(tmp_path / "run"))
    assert closed == [True]


# A whole run that is killed

SLOW_REWARD = (
    "import time\n\ndef score(completion, answer):\n    time.sleep(0.03)\n    return float(len(completion) % 2)\n"
)
OPTIONS = [
    "steps=6", "budget.checkpoint_every=2", "budget.eval_every=2", "budget.prompts_per_step=4", "budget.samples_per_prompt=4",
    "budget.eval_problems=2", "budget.eval_samples=2", "budget.sampling.max_tokens=16", "reward=slow.py:score",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.distributed
def test_a_killed_run_goes_on_in_all_trackers_and_its_metrics_are_those_of_a_run_without(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv(
        "WANDB_SERVICE", raising=False
    )  # of the tests before: a process of its own remembers killed runs
    (tmp_path / "slow.py").write_text(SLOW_REWARD)
    base = [sys.executable, "-m", "covey", "train"]
    subprocess.run([*base, *OPTIONS, "--out", "plain"], cwd=tmp_path, check=True, capture_output=True, timeout=240)
    told = ["report_to=[tensorboard, wandb, trackio, mlflow]", "report.project=killed"]
    run = tmp_path / "told"
    with subprocess.Popen(
        [*base, *OPTIONS, *told, "--out", "told"], cwd=tmp_path, stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() or b'"step": 5' not in (run / "metrics.jsonl").read_bytes():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
    done = subprocess.run([*base, "--resume", "told"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "tracker" not in done.stdout
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "plain/metrics.jsonl").read_bytes()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name, read in READ.items():
        found = read(run, "killed")
        for metric in ("reward/mean", "entropy/sampled", "grad/norm", "eval/accuracy"):
            want = [(row["step"], pytest.approx(row[metric], rel=1e-6)) for row in rows if row.get(metric) is not None]
            assert sorted(found[metric]) == want, (name, metric)


# What fails or waits while the run goes on


class Fake:
    """A client that does what a test wants."""

    library = "json"

    def __init__(self, card):
        self.id = "fake"
        self.rows = []

    @staticmethod
    def check():
        pass

    def told(self):
        return {}

    def log(self, kind, step, numbers):
        self.rows.append((kind, step))

    def close(self, *, failed):
        self.rows.append("closed")


def with_fake(monkeypatch, tmp_path, **methods):
    client = type("Client", (Fake,), methods)
    monkeypatch.setitem(CLIENTS, "fake", client)
    return open_trackers(["fake"], card(tmp_path / "run"))


def test_a_tracker_that_fails_is_told_once_and_counted(monkeypatch, tmp_path):
    def log(self, kind, step, numbers):
        if step in (2, 3):
            raise ConnectionError("no route\nto host")
        self.rows.append(step)

    told = with_fake(monkeypatch, tmp_path, log=log)
    for step in range(1, 5):
        told.write("step", step_record(step))
    told.close()
    first, last = told.complaints()
    assert first == (
        "tracker fake failed (ConnectionError: no route to host); training goes on, metrics.jsonl has everything"
    )
    assert last == "tracker fake missed 2 records; metrics.jsonl has them"
    assert told.mirrors[0].client.rows == [1, 4, "closed"]


def test_a_tracker_that_hangs_holds_up_neither_the_run_nor_its_end(monkeypatch, tmp_path):
    release = threading.Event()
    monkeypatch.setattr(trackers, "CLOSE_S", 0.3)
    monkeypatch.setattr(trackers, "WAITING", 3)
    told = with_fake(monkeypatch, tmp_path, log=lambda *_: release.wait(60))
    start = time.monotonic()
    for step in range(1, 20):
        told.write("step", step_record(step))
    told.close()
    assert time.monotonic() - start < 5
    lines = told.complaints()
    release.set()
    assert lines == [
        "tracker fake failed (it is too slow); training goes on, metrics.jsonl has everything",
        "tracker fake did not end in time; metrics.jsonl has everything",
    ]


def test_a_client_that_cannot_end_is_a_line(monkeypatch, tmp_path):
    def close(self, *, failed):
        raise OSError("upload failed")

    told = with_fake(monkeypatch, tmp_path, close=close)
    told.close()
    [line] = told.complaints()
    assert "OSError: upload failed" in line


@pytest.mark.slow
@pytest.mark.long
def test_a_store_that_breaks_while_the_run_goes_on_is_a_line(tmp_path):
    told = open_trackers(["mlflow"], card(tmp_path / "run"))
    told.write("step", step_record(1))
    while told.mirrors[0].told.get("step") != 1:
        time.sleep(0.01)
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    told.write("step", step_record(2))
    told.close()
    first, last = told.complaints()
    assert first.startswith("tracker mlflow failed (MlflowException: ")
    assert last == "tracker mlflow missed 2 records; metrics.jsonl has them"  # the step, and that the run ended


def test_nothing_is_imported_or_done_without_trackers(tmp_path):
    told = Trackers()
    told.write("step", step_record(1))
    told.close()
    assert told.complaints() == []
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_left_out():
    found = named("step", {"reward/mean": float("nan"), "lr": 0.5, "length/mean": 3.0, "loss/value": None})
    assert found == {"lr": 0.5, "train/learning_rate": 0.5, "length/mean": 3.0, "train/completions/mean_length": 3.0}
    assert named("evaluation", {"eval/accuracy": 0.5}) == {"eval/accuracy": 0.5}


def test_every_tracker_has_an_extra_of_its_name():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert all(f"\n{name} = [" in text for name in CLIENTS)
    assert all(client.library == name for name, client in CLIENTS.items())
    assert clients.CLOSE_S < 60
