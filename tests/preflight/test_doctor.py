"""The doctor: probes that try, and findings that turn bad where a probe fails."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from pathlib import Path

import pytest

from covey.models import find_model
from covey.preflight import doctor, probes
from covey.preflight.finding import Finding, worst


def lines(findings: object) -> str:
    return "\n".join(finding.line for finding in findings)  # type: ignore[attr-defined]


@pytest.mark.distributed
def test_a_hanging_worker_is_ended_soon_after_its_limit() -> None:
    start = time.monotonic()
    found = probes.probe_workers()
    assert (found.scores, found.killed) == (True, True), found.reason
    assert found.kill_ms < 2000
    assert time.monotonic() - start < 20
    assert "timeout" in found.reason


def test_learning_moves_the_reward() -> None:
    found = probes.probe_learning()
    assert found.last - found.first > doctor.MOVES
    assert found.exact


@pytest.mark.parametrize(
    ("last", "status"),
    [(0.9, "ok"), (0.42, "bad")],
)
def test_a_reward_that_stands_still_is_bad(monkeypatch: pytest.MonkeyPatch, last: float, status: str) -> None:
    monkeypatch.setattr(probes, "probe_learning", lambda: probes.LearningFinding(0.4, last, 24, 1.0, "same", True))
    assert worst(doctor.check_learning()) == status


def test_workers_that_do_not_work_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    for scores, killed, words in ((False, False, "does not score"), (True, False, "is not ended when it hangs")):
        found = probes.WorkerFinding(scores, killed, 1.0, 1.0, "no fork")
        monkeypatch.setattr(probes, "probe_workers", lambda found=found: found)
        (finding,) = doctor.check_workers()
        assert (finding.status, words in finding.line) == ("bad", True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's own interface")
def test_the_kernel_is_asked_and_left_as_it_is() -> None:
    assert 0 <= probes.landlock_version() < 100
    assert probes.has_seccomp() == ("Seccomp:" in Path("/proc/self/status").read_text())
    before = Path("/proc/self/status").read_text()
    assert "not needed yet" in doctor.check_sandbox().line
    after = Path("/proc/self/status").read_text()
    assert [line for line in before.splitlines() if line.startswith(("Seccomp", "NoNewPrivs"))] == [
        line for line in after.splitlines() if line.startswith(("Seccomp", "NoNewPrivs"))
    ]


def test_a_hub_that_does_not_answer_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    finding = doctor.check_hub()
    assert (finding.status, finding.line) == ("ok", "model hub not reachable (no route)")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in doctor.check_hub().line


def test_versions_are_compared_with_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst(doctor.check_packages()) == "ok"
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "4.9" if name == "transformers" else real(name))
    assert "transformers 4.9, needs >=5" in lines(f for f in doctor.check_packages() if f.status == "bad")
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name == "datasets" else real(name))
    assert "data" in next(f.line for f in doctor.check_packages() if "not installed" in f.line)
    monkeypatch.setattr(doctor, "_version", lambda name: "0.1" if name == "peft" else real(name))
    assert "peft 0.1, peft asks >=" in lines(f for f in doctor.check_packages() if f.status == "warn")


@pytest.mark.parametrize(
    ("own", "asked", "fits"),
    [("2.13.0+cpu", ">=2.11", True), ("2.9.1", ">=2.11", False), ("0.20", ">=0.19", True), ("5.0", "", True), ("", ">=1", False)],
)  # fmt: skip
def test_a_version_fits(monkeypatch: pytest.MonkeyPatch, own: str, asked: str, fits: bool) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: own)
    assert doctor._fits("any", asked) == fits


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst(doctor.check_machine()) == "ok"
    monkeypatch.setattr(probes, "free_disk", lambda folder: 10**6)
    assert worst(doctor.check_machine()) == "warn"
    monkeypatch.undo()
    monkeypatch.setattr(probes, "writable", lambda folder: False)
    assert "cannot be written" in lines(doctor.check_machine())


def test_a_model_is_reported_with_its_template(tmp_path: Path) -> None:
    found = list(doctor.check_model("tiny"))
    assert worst(found) == "ok"
    told = lines(found)
    for words in ("qwen3, 2 layers, width 64", "context 512", "<|end|> (1)", "no BOS", "conversations: append-only"):
        assert words in told
    folder = tmp_path / "model"
    shutil.copytree(find_model("tiny"), folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] if loop.last else m['content'] | upper }}{% endfor %}"
    )
    assert "not append-only, turn 1" in lines(doctor.check_model(str(folder)))
    (absent,) = doctor.check_model(str(tmp_path / "absent"))
    assert absent == Finding("model", "bad", absent.line)
