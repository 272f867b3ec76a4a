"""Telling trackers what `metrics.jsonl` says: in a thread of their own, so that a slow or absent service never stops training.

Each tracker mirrors the run's records. On resume the rows that it lacks are sent again from the files and those that it has are
left out, so its curves have every step once.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from covey import files
from covey.errors import ConfigError, CoveyError, MissingInputError, OutputError, did_you_mean
from covey.observe.clients import CLIENTS, CLOSE_S, Card, Client
from covey.observe.names import CLOCKS
from covey.observe.records import read_records

WAITING = 20_000
"""Records that may wait for a tracker; what comes while so many wait is left out, and counted."""
STATE = "trackers.json"
"""The trackers' own ids of the run, by kind of record the last step that each was told, and whether it ended in order."""


def check(names: Sequence[str]) -> None:
    """Refuse a tracker that nobody knows, whose client is not installed, or that would ask for a password."""
    for name in names:
        if name not in CLIENTS:
            raise ConfigError("report.to", f"there is no tracker {name!r}", did_you_mean(name, CLIENTS))
        if importlib.util.find_spec(CLIENTS[name].library) is None:
            raise MissingInputError("report.to", f"{name} needs `pip install covey[{name}]` ({name})")
        CLIENTS[name].check()


@dataclass(frozen=True, slots=True)
class _Row:
    kind: str
    step: int
    numbers: Mapping[str, float]


class Trackers:
    """All trackers of a run: a sink that never waits and never fails."""

    def __init__(self, mirrors: Sequence[Mirror] = ()) -> None:
        self.mirrors = list(mirrors)
        self.failed = False

    def write(self, kind: str, record: Mapping[str, Any]) -> None:
        """Hand a record that holds its `step` to all trackers."""
        row = _Row(kind, int(record["step"]), {name: value for name, value in record.items() if name != "step"})
        for mirror in self.mirrors:
            mirror.put(row)

    def complaints(self) -> list[str]:
        """What went wrong since the last call, one line each."""
        return [line for mirror in self.mirrors for line in mirror.complaints()]

    def close(self) -> None:
        """Send what waits and end the trackers' runs; after `CLOSE_S` seconds in all the rest is given up."""
        deadline = time.monotonic() + CLOSE_S
        for mirror in self.mirrors:
            mirror.finish(failed=self.failed)
        for mirror in self.mirrors:
            mirror.wait(max(0.0, deadline - time.monotonic()))


def open_trackers(names: Sequence[str], card: Card) -> Trackers:
    """Start each tracker's run, or go on with it. Raises OutputError for a tracker that cannot start."""
    state = _read_state(card.folder)
    mirrors: list[Mirror] = []
    try:
        for name in names:
            mirrors.append(_begin(name, card, state.get(name, {})))
    except CoveyError:
        for mirror in mirrors:
            with suppress(Exception):  # the first mistake is what has to be said
                mirror.client.close(failed=True)
        raise
    for mirror in mirrors:
        mirror.start(_rows(card.folder))
    return Trackers(mirrors)


def _begin(name: str, card: Card, before: Mapping[str, Any]) -> Mirror:
    """A tracker's run, or the one that it had `before`; after a kill its store is asked what it really kept."""
    try:
        client = CLIENTS[name](replace(card, id=before.get("id"), told=before.get("told", {})))
        told = dict(before["told"]) if before.get("id") == client.id else {}
        return Mirror(name, client, card.folder, told if told and before["ended"] else told | client.told())
    except CoveyError:
        raise
    except Exception as error:
        found = f"could not start ({type(error).__name__}: {error!s:.200})"
        raise OutputError(f"tracker {name}", found, "Mend it, or leave it out of report.to.") from error


def _read_state(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(json.loads((folder / STATE).read_bytes()))
    return {}


def _rows(folder: Path) -> Iterator[_Row]:
    """The records of a run folder as they were written, with their clocks, in order."""
    clocks: dict[tuple[str, int], dict[str, float]] = {}
    if not (folder / "metrics.jsonl").is_file():
        return
    for record in read_records(folder / "timings.jsonl"):
        kind, step = str(record.pop("kind", "step")), int(record.pop("step"))
        clocks[kind, step] = record
    for record in read_records(folder / "metrics.jsonl"):
        step = int(record.pop("step"))
        kind = (
            "evaluation" if all(name.startswith("eval/") for name in record if not name.startswith(CLOCKS)) else "step"
        )
        yield _Row(kind, step, record | clocks.get((kind, step), {}))


class Mirror:
    """One tracker and the thread that speaks to it; `told` is the last step of each kind that it knows."""

    def __init__(self, name: str, client: Client, folder: Path, told: Mapping[str, int]) -> None:
        self.name, self.client, self.folder = name, client, folder
        self.told, self.ended = dict(told), False
        self.lost = 0
        self._failed = False
        self._said: list[str] = []
        self._queue: queue.Queue[_Row | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._serve, name=f"tracker {name}", daemon=True)

    def start(self, before: Iterable[_Row]) -> None:
        """Begin to speak; first come the rows of the run so far that the tracker lacks."""
        self._remember()
        for row in before:
            self._log(row)
        self._thread.start()

    def put(self, row: _Row) -> None:
        """Leave a row for the thread."""
        try:
            self._queue.put_nowait(row)
        except queue.Full:
            self._lose("it is too slow")

    def complaints(self) -> list[str]:
        """Lines that nobody has seen yet."""
        said, self._said = self._said, []
        return said

    def finish(self, *, failed: bool) -> None:
        """Ask for the end; `failed` is what the tracker files the run under."""
        self._failed = failed
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    def wait(self, timeout_s: float) -> None:
        """Wait for the end that was asked for, and say what did not arrive."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._said.append(f"tracker {self.name} did not end in time; metrics.jsonl has everything")
        elif self.lost > 1:
            self._said.append(f"tracker {self.name} missed {self.lost} records; metrics.jsonl has them")

    def _serve(self) -> None:
        while (row := self._queue.get()) is not None:
            self._log(row)
        try:
            self.client.close(failed=self._failed)
            self.ended = True
            self._remember()
        except Exception as error:
            self._lose(f"{type(error).__name__}: {error!s:.160}")

    def _log(self, row: _Row) -> None:
        """Tell one row, unless the tracker has it."""
        if row.step <= self.told.get(row.kind, -1):
            return
        try:
            self.client.log(row.kind, row.step, row.numbers)
            self.told[row.kind] = row.step
            self._remember()
        except Exception as error:  # whatever a client raises: training goes on
            self._lose(f"{type(error).__name__}: {error!s:.160}")

    def _lose(self, reason: str) -> None:
        self.lost += 1
        if self.lost == 1:
            reason = " ".join(reason.split())
            self._said.append(f"tracker {self.name} failed ({reason}); training goes on, metrics.jsonl has everything")

    def _remember(self) -> None:
        """Note id and progress beside the run."""
        with _writing:
            state = _read_state(self.folder) | {
                self.name: {"id": self.client.id, "told": self.told, "ended": self.ended}
            }
            files.write_atomic(self.folder / STATE, (json.dumps(state, indent=1, sort_keys=True) + "\n").encode())


_writing = threading.Lock()
