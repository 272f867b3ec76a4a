"""What a run writes while it runs: metrics, clocks and every rollout, as JSON lines that end at a known byte."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covey.files import Appender
from covey.observe.health import Finding
from covey.observe.names import split_clocks
from covey.observe.records import Advantages, plain, rollout_rows
from covey.types import Group

_STEP_FILE = re.compile(r"step-(\d{6,})\.jsonl")


class JsonlSink:
    """A file of JSON records, one a line with sorted keys, that can be cut back to where it was at a checkpoint.

    `start` is the offset to go on from; without it a torn last line is cut off.
    """

    def __init__(self, path: Path, *, start: int | None = None) -> None:
        self.path, self._file = path, Appender(path, start=start)

    @property
    def offset(self) -> int:
        """Length of the file in bytes: what a checkpoint stores."""
        return self._file.offset

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        self._file.append(plain(record))

    def truncate(self, offset: int) -> None:
        """Forget what was written after `offset`."""
        self._file.truncate(offset)

    def sync(self) -> None:
        """Bring all records to the disk: before a checkpoint stores `offset`."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RolloutSink:
    """Every rollout of every step: `step-000012.jsonl`, one JSON object per rollout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, step: int, groups: Sequence[Group], advantages: Advantages | None = None) -> Path:
        """Write the rollouts of one step, over whatever an interrupted run left there."""
        path = self.folder / f"step-{step:06d}.jsonl"
        with Appender(path, start=0) as file:
            for row in rollout_rows(groups, advantages or {}):
                file.append(plain(row))
        return path

    def truncate(self, step: int) -> None:
        """Keep the steps up to `step` and forget later ones."""
        for number, path in self.steps().items():
            if number > step:
                path.unlink()

    def steps(self) -> dict[int, Path]:
        """The files that are there by step, in order."""
        found = {path: _STEP_FILE.fullmatch(path.name) for path in self.folder.glob("step-*.jsonl")}
        return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


class RunSink:
    """The sinks of a run folder: `metrics.jsonl` and `health.jsonl` (functions of the seed), `timings.jsonl`, `rollouts/`."""

    def __init__(self, folder: Path) -> None:
        self.metrics = JsonlSink(folder / "metrics.jsonl")
        self.timings = JsonlSink(folder / "timings.jsonl")
        self.health = JsonlSink(folder / "health.jsonl")
        self.rollouts = RolloutSink(folder / "rollouts")

    def write(self, kind: str, record: Mapping[str, Any]) -> None:
        """Write a record that holds its `step`; clocks and memory go to the timings, with its `kind`."""
        metrics, clocks = split_clocks(record)
        if set(metrics) - {"step"}:
            self.metrics.append(metrics)
        if clocks:
            self.timings.append({"step": record.get("step"), "kind": kind, **clocks})

    def write_rollouts(self, step: int, groups: Sequence[Group], advantages: Advantages | None = None) -> None:
        """Write every rollout of a step."""
        self.rollouts.write(step, groups, advantages)

    def write_findings(self, step: int, findings: Sequence[Finding]) -> None:
        """Write what was off after a step."""
        for finding in findings:
            self.health.append({"step": step, "code": finding.code, "seen": finding.seen, "knob": finding.knob})

    def offsets(self) -> dict[str, int]:
        """What a checkpoint stores: the bytes of the files, which are brought to the disk first."""
        named = {"metrics": self.metrics, "timings": self.timings, "health": self.health}
        for sink in named.values():
            sink.sync()
        return {name: sink.offset for name, sink in named.items()}

    def truncate(self, offsets: Mapping[str, int], step: int) -> None:
        """Go back to a checkpoint made after step `step`: cut the files, remove rollouts of later steps."""
        self.metrics.truncate(offsets["metrics"])
        self.timings.truncate(offsets["timings"])
        self.health.truncate(offsets.get("health", 0))
        self.rollouts.truncate(step)

    def close(self) -> None:
        """Close the files."""
        self.metrics.close()
        self.timings.close()
        self.health.close()
