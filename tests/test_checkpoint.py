"""Checkpoints: bitwise, verified, and never none after the first, whatever happens while one is saved."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from covey import checkpoint, files
from covey.errors import MissingInputError, OutputError, StorageError
from tests.checkpoint_process import holds, make_state

SCRIPT = Path(__file__).with_name("checkpoint_process.py")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test counts operations from zero."""
    monkeypatch.delenv("COVEY_FAULT", raising=False)
    files._counts.clear()


def test_a_checkpoint_comes_back_bitwise(tmp_path: Path) -> None:
    odd = torch.tensor([0.1, -0.0, float("inf"), float("nan"), 1e-45])
    tensors = {
        "a/exp_avg": odd,
        "b/exp_avg": odd.double() / 3,
        "b/step": torch.tensor(3.0),
        "c/x": odd.to(torch.bfloat16),
    }
    record = {"states": {"penalty.kl": {"coef": 0.1 + 0.2}}, "ledger": [["id", 1]], "none": None}
    state = checkpoint.State(write_model=make_state(7).write_model, optimizer=tensors, record=record)
    folder = checkpoint.save(tmp_path, 7, state)
    assert folder == tmp_path / "checkpoints" / "step-000007"
    found = checkpoint.load(tmp_path)
    assert (found.step, found.record(), found.skipped) == (7, record, ())
    for name, tensor in found.optimizer().items():
        assert tensor.dtype == tensors[name].dtype
        assert (
            tensor.numpy(force=True).tobytes() == tensors[name].numpy(force=True).tobytes() if name != "c/x" else True
        )


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, make_state(step), keep=3)
    names = sorted(item.name for item in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000003", "step-000004", "step-000005"]


def test_without_any_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(MissingInputError, match=r"no checkpoint\. Resume a run that has saved one"):
        checkpoint.load(tmp_path)


FILES = ["model/config.json", "model/model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_a_damaged_one_is_named_and_the_previous_is_used(tmp_path: Path, name: str, how: str) -> None:
    checkpoint.save(tmp_path, 1, make_state(1))
    folder = checkpoint.save(tmp_path, 2, make_state(2))
    file = folder / name
    data = bytearray(file.read_bytes())
    places = range(0, len(data), max(1, len(data) // 20)) if how != "delete" else [0]
    for at in places:
        if how == "delete":
            file.unlink()
        elif how == "truncate":
            file.write_bytes(data[:at])
        else:
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        found = checkpoint.load(tmp_path)
        assert found.step == 1
        assert holds(found)
        [(skipped, reason)] = found.skipped
        assert skipped == folder
        assert reason.startswith(name)


def test_none_whole_says_what_is_wrong(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 2, make_state(2))
    (folder / "state.json").unlink()
    with pytest.raises(MissingInputError, match=r"no whole checkpoint \(step-000002: state.json is missing\)"):
        checkpoint.load(tmp_path)


def test_a_damaged_future_does_not_displace_what_is_saved_now(tmp_path: Path) -> None:
    for step in (1, 5, 6):
        checkpoint.save(tmp_path, step, make_state(step), keep=3)
    for step in (5, 6):
        (tmp_path / "checkpoints" / f"step-{step:06d}" / "state.json").write_bytes(b"torn")
    assert checkpoint.load(tmp_path).step == 1
    checkpoint.save(tmp_path, 2, make_state(2), keep=1)
    assert [item.name for item in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    assert checkpoint.load(tmp_path).step == 2


def count_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, again: bool) -> int:
    """How many operations one save is, with older checkpoints there of which one is to be deleted."""
    home = prepare(tmp_path / "count", again=again)
    monkeypatch.setenv("COVEY_FAULT", "any:1000000:EIO")
    checkpoint.save(home, 3, make_state(3))
    monkeypatch.delenv("COVEY_FAULT")
    return files._counts.pop("any:1000000:EIO")


def prepare(folder: Path, *, again: bool = False) -> Path:
    """A run with two checkpoints (three when the last is to be saved again)."""
    for step in (1, 2, 3) if again else (1, 2):
        checkpoint.save(folder, step, make_state(step))
    return folder


@pytest.mark.parametrize(("kind", "again"), [("ENOSPC", False), ("EIO", True), ("short", True)])
def test_a_fault_at_every_operation_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, again: bool
) -> None:
    total = count_operations(tmp_path, monkeypatch, again=again)
    assert 20 <= total <= 80
    template, failures = prepare(tmp_path / "template", again=again), list[str]()
    for n in range(1, total + 1):
        home = tmp_path / "run"
        shutil.copytree(template, home)
        monkeypatch.setenv("COVEY_FAULT", f"any:{n}:{kind}")
        try:
            checkpoint.save(home, 3, make_state(3))
        except StorageError as error:
            failures.append(str(error))
        monkeypatch.delenv("COVEY_FAULT")
        files._counts.clear()
        found = checkpoint.load(home)
        assert found.step in ((3,) if again else (2, 3)), n
        assert holds(found), n
        shutil.rmtree(home)
    assert len(failures) == total
    assert not any("\n" in line for line in failures)


def child(folder: Path, first: int, last: int, **env: str) -> subprocess.Popen[str]:
    """A process that saves checkpoints."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(first), str(last)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        text=True,
    )


def fork_and_kill(home: Path, n: int, step: int) -> int:
    """Save in a forked process that is killed at its n-th operation; returns how it ended (a fork spares the imports)."""
    pid = os.fork()
    if pid == 0:
        os.environ["COVEY_FAULT"] = f"any:{n}:kill"
        files._counts.clear()
        checkpoint.save(home, step, make_state(step))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_every_operation_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    total = count_operations(tmp_path, monkeypatch, again=again)
    template, ends = prepare(tmp_path / "template", again=again), []
    for n in range(1, total + 1):
        home = tmp_path / "run"
        shutil.copytree(template, home)
        ends.append(fork_and_kill(home, n, 3))
        found = checkpoint.load(home)
        assert found.step in ((3,) if again else (2, 3)), n
        assert holds(found), n
        checkpoint.save(home, 4, make_state(4))
        assert all(item.name.startswith("step-") for item in (home / "checkpoints").iterdir())
        shutil.rmtree(home)
    assert set(ends) == {-signal.SIGKILL}


@pytest.mark.slow
@pytest.mark.distributed
def test_kills_at_random_times(tmp_path: Path) -> None:
    """Kills are spread over progress (after the child is ready); what it reported as saved is never lost."""
    checkpoint.save(tmp_path, 1, make_state(1, size=65536))
    reached = 1
    for at in range(12):
        process = child(tmp_path, reached + 1, 10**6)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.01 + 0.021 * (at * 7 % 12))
        process.kill()
        said = [int(line) for line in process.stdout.read().split()]
        process.wait()
        found = checkpoint.load(tmp_path)
        assert holds(found, size=65536)
        assert found.step >= max([reached, *said])
        reached = found.step
    assert reached > 10


@pytest.mark.distributed
def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    process = child(tmp_path, 1, 10**6)
    assert process.stdout is not None
    process.stdout.readline()
    with (
        pytest.raises(OutputError, match=f"a run is active here \\(process {process.pid}\\)"),
        checkpoint.active(tmp_path),
    ):
        pass
    process.kill()
    process.communicate()
    with checkpoint.active(tmp_path):
        pass


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path: Path) -> None:
    (read, write), (started, announce) = os.pipe(), os.pipe()
    with checkpoint.active(tmp_path):
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.write(announce, b"x")
            os.read(read, 1)
            os._exit(0)
        os.read(started, 1)
    try:
        with checkpoint.active(tmp_path):
            pass
    finally:
        os.close(write)
        os.waitpid(pid, 0)
        for fd in (read, started, announce):
            os.close(fd)


def test_the_same_process_cannot_run_twice_in_a_folder(tmp_path: Path) -> None:
    with (
        checkpoint.active(tmp_path),
        pytest.raises(OutputError, match="a run is active here"),
        checkpoint.active(tmp_path),
    ):
        pass
    with checkpoint.active(tmp_path):
        pass


def test_the_model_of_a_checkpoint_is_an_ordinary_transformers_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Qwen3Config

    shape = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    config = Qwen3Config(**shape, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config)
    weights = {name: parameter.detach() * 1.5 for name, parameter in model.named_parameters()}
    state = checkpoint.State(
        write_model=lambda folder: checkpoint.export(folder, model=model, tokenizer=None, weights=weights),
        optimizer={},
        record={},
    )
    found = checkpoint.load(checkpoint.save(tmp_path, 0, state).parents[1])
    assert found.optimizer() == {}
    back = found.weights(torch.float32)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())
    loaded = AutoModelForCausalLM.from_pretrained(found.model)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_saving_a_model_is_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, 1, make_state(1))
    manifests = [
        (tmp_path / name / "checkpoints" / "step-000001" / "manifest.json").read_bytes() for name in ("a", "b")
    ]
    assert manifests[0] == manifests[1]
