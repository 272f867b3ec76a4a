"""Files appear complete or not at all, logs lose nothing that counts, and errors are one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from covey import files
from covey.errors import DataError, OutputError, StorageError


@pytest.fixture(autouse=True)
def no_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test counts operations from zero."""
    monkeypatch.delenv("COVEY_FAULT", raising=False)
    files._counts.clear()


def fill(folder: Path) -> None:
    """Two files, one of them deeper."""
    (folder / "inner").mkdir()
    files.write_bytes(folder / "inner" / "a.bin", bytes(range(256)) * 8)
    files.write_bytes(folder / "b.txt", b"hello")


def test_a_folder_knows_its_files(tmp_path: Path) -> None:
    target = tmp_path / "out"
    files.write_folder(target, fill, facts={"step": 3})
    record = json.loads((target / "manifest.json").read_text())
    assert record["step"] == 3
    assert record["files"]["b.txt"] == {
        "size": 5,
        "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    }
    assert files.fault(target) == ""
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_replacing_a_folder_leaves_only_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    files.write_folder(target, fill)
    files.write_folder(target, lambda folder: files.write_bytes(folder / "new", b"1"))
    assert sorted(item.name for item in target.iterdir()) == ["manifest.json", "new"]
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["inner/a.bin", "b.txt", "manifest.json"])
@pytest.mark.parametrize("how", ["delete", "truncate", "flip first", "flip last", "grow", "empty"])
def test_damage_is_found(tmp_path: Path, name: str, how: str) -> None:
    target = tmp_path / "out"
    files.write_folder(target, fill)
    file = target / name
    data = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
    else:
        at = 0 if how == "flip first" else -1
        data[at] ^= 0x20
        changed = {"truncate": data[:-1], "grow": data + b"x", "empty": b""}.get(how, data)
        file.write_bytes(changed)
    assert files.fault(target).startswith(name)


def test_a_newer_format_is_not_damage(tmp_path: Path) -> None:
    target = tmp_path / "out"
    files.write_folder(target, fill)
    record = json.loads((target / "manifest.json").read_text())
    newer = {**{name: value for name, value in record.items() if name != "sha256"}, "format": 99}
    (target / "manifest.json").write_text(json.dumps({**newer, "sha256": files._digest(newer)}))
    with pytest.raises(DataError, match=r"format 99\. This covey reads formats up to 1: update it"):
        files.fault(target)


@pytest.mark.parametrize("kind", ["ENOSPC", "EIO", "short"])
@pytest.mark.parametrize("operation", ["open", "write", "fsync", "rename"])
def test_an_atomic_write_that_fails_leaves_the_old_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, kind: str
) -> None:
    target = tmp_path / "value.json"
    files.write_atomic(target, b"old")
    monkeypatch.setenv("COVEY_FAULT", f"{operation}:1:{kind}")
    with pytest.raises(StorageError) as caught:
        files.write_atomic(target, b"new and longer")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{target}: writing failed (")
    assert caught.value.exit_code == 74
    assert target.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["value.json"]
    files.write_atomic(target, b"new and longer")
    assert target.read_bytes() == b"new and longer"


@pytest.mark.parametrize("kind", ["EROFS", "EACCES"])
def test_a_place_that_refuses_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("COVEY_FAULT", f"open:1:{kind}")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        files.write_folder(tmp_path / "out", fill)
    assert caught.value.exit_code == 73


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        files.write_atomic(tmp_path / "file" / "inner.json", b"")
    assert (tmp_path / "file").read_text() == "mine"


def test_lines_are_strict_json(tmp_path: Path) -> None:
    record = {"a": math.nan, "b": [math.inf, 0.1], "c": {"d": -math.inf, "e": "ü"}}
    assert files.encode(record) == '{"a": null, "b": [null, 0.1], "c": {"d": null, "e": "ü"}}\n'.encode()


def test_a_log_knows_its_offset_and_forgets_what_came_after(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with files.Appender(path) as log:
        log.append({"step": 1})
        log.append({"step": 2})
        log.sync()
        counted = log.offset
        log.append({"step": 3})
    assert path.stat().st_size > counted == len(b'{"step": 1}\n{"step": 2}\n')
    with files.Appender(path, start=counted) as log:
        assert log.offset == counted
        log.append({"step": 3, "again": True})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 200_000)
    with files.Appender(path) as log:
        assert log.offset == 9
    path.write_bytes(b'{"a')
    with files.Appender(path) as log:
        log.append({"c": 3})
    assert path.read_bytes() == b'{"c": 3}\n'


def test_a_log_shorter_than_its_checkpoint_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"{}\n")
    with pytest.raises(DataError, match="3 bytes, the checkpoint counted 10"):
        files.Appender(path, start=10)
    assert path.read_bytes() == b"{}\n"


@pytest.mark.parametrize("kind", ["ENOSPC", "short"])
def test_an_append_that_fails_leaves_no_part_of_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with files.Appender(tmp_path / "log.jsonl") as log:
        log.append({"a": 1})
        monkeypatch.setenv("COVEY_FAULT", f"write:1:{kind}")
        with pytest.raises(StorageError, match="Make room"):
            log.append({"b": "x" * 100})
        log.append({"c": 3})
    assert (tmp_path / "log.jsonl").read_bytes() == b'{"a": 1}\n{"c": 3}\n'
