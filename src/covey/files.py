"""Every write of covey goes through here: atomic files and folders, append-only logs, and one-line errors.

A file or folder appears under its name complete or not at all, whenever the process or the machine stops.
`COVEY_FAULT=op:n:kind` makes the n-th operation (open, write, fsync, rename, unlink; any: all of them) fail, in the code as it
ships: `kill` ends the process there, `short` writes half of the bytes and then reports a full disk, and every other kind is the
name of an operating-system error (ENOSPC, EIO, EROFS ...).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from covey.errors import DataError, OutputError, StorageError
from covey.types import Json

Operation = Literal["open", "write", "fsync", "rename", "unlink"]
MANIFEST = "manifest.json"
FORMAT = 1
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_counts: dict[str, int] = {}


def begin(operation: Operation) -> bool:
    """Count an operation and fail here if `COVEY_FAULT` asks for it. True: write only half, then the disk is full."""
    spec = os.environ.get("COVEY_FAULT")
    if not spec:
        return False
    name, number, kind = spec.split(":")
    if name not in ("any", operation):
        return False
    _counts[spec] = _counts.get(spec, 0) + 1
    if _counts[spec] != int(number):
        return False
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "short" and operation == "write":
        return True
    code = getattr(errno, "ENOSPC" if kind == "short" else kind)
    raise OSError(code, os.strerror(code))


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a write at `path` into one line: refused (OutputError) or failed (StorageError)."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _REFUSED:
            raise OutputError(
                str(path), f"cannot be written ({reason})", "Choose a folder you may write to."
            ) from error
        advice = (
            "Make room, then resume or start again."
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "Check the disk, then resume or start again."
        )
        raise StorageError(str(path), f"writing failed ({reason})", advice) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data`: readers and crashes see the old bytes or the new ones."""
    beside = path.with_name(f".tmp-{path.name}")
    with reported(path):
        try:
            write_bytes(beside, data)
            rename(beside, path)
        except OSError:
            with suppress(OSError):
                beside.unlink()
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a new file and bring it to the disk (not atomic by itself). Raises OSError."""
    begin("open")
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        _write_all(fd, data)
        begin("fsync")
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    if begin("write"):
        os.write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's list of names, to the disk. Raises OSError."""
    begin("fsync")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename(source: Path, target: Path) -> None:
    """Move `source` to `target` for good: the folder that holds the name is brought to the disk too. Raises OSError."""
    begin("rename")
    source.replace(target)
    sync(target.parent)


def write_folder(path: Path, fill: Callable[[Path], None], *, facts: Mapping[str, Json] | None = None) -> None:
    """Make the folder `path` out of what `fill(folder)` writes, complete and verifiable or not at all.

    `fill` writes into a temporary folder beside the target; everything is brought to the disk, `manifest.json` (size and
    SHA-256 of each file, and `facts`) is written last, then one rename makes it visible. A folder that is already there steps
    aside as `.old-NAME` until the new one stands; only a crash between the two renames leaves it under that name.
    """
    beside, old = path.with_name(f".tmp-{path.name}"), path.with_name(f".old-{path.name}")
    with reported(path):
        try:
            _make_empty(beside)
            fill(beside)
            _seal(beside, facts or {})
            if path.exists():
                remove_folder(old)
                rename(path, old)
            rename(beside, path)
            remove_folder(old)
        except BaseException:
            _step_back(beside, old, path)
            raise


def _make_empty(folder: Path) -> None:
    begin("open")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _step_back(beside: Path, old: Path, path: Path) -> None:
    """After a failure: nothing half-made stays, and what stepped aside comes back."""
    shutil.rmtree(beside, ignore_errors=True)
    if old.exists() and not path.exists():
        with suppress(OSError):
            old.replace(path)


def _seal(folder: Path, facts: Mapping[str, Json]) -> None:
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    listed = {str(f.relative_to(folder)): {"size": f.stat().st_size, "sha256": sha256(f)} for f in files}
    for file in files:
        sync(file)
    record = {"format": FORMAT, **facts, "files": listed}
    write_bytes(folder / MANIFEST, json.dumps({**record, "sha256": _digest(record)}, indent=1).encode())
    for inner in sorted(item for item in folder.rglob("*") if item.is_dir()):
        sync(inner)
    sync(folder)


def _digest(record: Mapping[str, Json]) -> str:
    """The SHA-256 of a manifest without this entry: a manifest must be able to say that it is damaged itself."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def fault(folder: Path) -> str:
    """Why a folder made by `write_folder` cannot be used; empty when every file has the size and SHA-256 of its manifest."""
    try:
        record = dict(json.loads((folder / MANIFEST).read_bytes()))
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} is torn"
    if record.pop("sha256", None) != _digest(record):
        return f"{MANIFEST} is not what was written (SHA-256)"
    version, listed = record["format"], record["files"]
    if version > FORMAT:
        raise DataError(str(folder), f"format {version}", f"This covey reads formats up to {FORMAT}: update it.")
    for name, expected in listed.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["size"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['size']}"
        if sha256(file) != expected["sha256"]:
            return f"{name} is not what was written (SHA-256)"
    return ""


def remove_folder(folder: Path) -> None:
    """Delete a folder, its manifest first, so that what a crash leaves behind never looks complete. Raises OSError."""
    if not folder.exists():
        return
    begin("unlink")
    (folder / MANIFEST).unlink(missing_ok=True)
    begin("unlink")
    shutil.rmtree(folder)


def encode(record: Mapping[str, Json]) -> bytes:
    """One line of strict JSON: numbers that are not finite become null."""
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _finite(value: Json) -> Json:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


class Appender:
    """An append-only JSONL file that knows how many bytes of it count.

    `start` is the offset that a checkpoint recorded: what was appended after it is cut off, so that resuming repeats no line.
    Without it a torn last line is cut off.
    """

    def __init__(self, path: Path, *, start: int | None = None) -> None:
        self.path = path
        with reported(path):
            begin("open")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.offset = os.fstat(self._fd).st_size
        if start is not None and start > self.offset:
            self.close()
            raise DataError(str(path), f"{self.offset} bytes, the checkpoint counted {start}", "Restore the file.")
        self.truncate(self._whole_lines() if start is None else start)

    def _whole_lines(self) -> int:
        end = self.offset
        while end > 0:
            start = max(0, end - 65536)
            position = os.pread(self._fd, end - start, start).rfind(b"\n")
            if position >= 0:
                return start + position + 1
            end = start
        return 0

    def append(self, record: Mapping[str, Json]) -> None:
        """Add one line. When that fails nothing of it stays."""
        line = encode(record)
        with reported(self.path):
            try:
                _write_all(self._fd, line)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._fd, self.offset)
                raise
        self.offset += len(line)

    def truncate(self, offset: int) -> None:
        """Forget every byte from `offset` on."""
        with reported(self.path):
            os.ftruncate(self._fd, offset)
        self.offset = offset

    def sync(self) -> None:
        """Bring all lines to the disk: to be called before a checkpoint records `offset`."""
        with reported(self.path):
            begin("fsync")
            os.fsync(self._fd)

    def close(self) -> None:
        """Let go of the file. Closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
