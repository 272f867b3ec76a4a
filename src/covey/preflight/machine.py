"""How much memory this machine can give to a run, and how much this process has already."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the machine or of the container it is; None where the system does not say. `limit` names what binds."""

    total: int | None
    available: int | None
    limit: str = "machine"


def measure_memory(root: Path = Path("/")) -> Memory:
    """What could be taken now, this process's own included: it ends before the run, or is the run.

    The least of MemAvailable and what control groups leave (v2 and v1; file pages that can be dropped count as free).
    """
    if sys.platform == "darwin":
        return _measure_darwin()
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return Memory(None, None)
    facts = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    total, available = facts.get("MemTotal"), facts.get("MemAvailable")
    own = resident_bytes(root) or 0
    if total is None or available is None:
        return Memory(total, None)
    found = Memory(total, min(total, available + own))
    for group in _groups(root):
        limit, used = group
        free = max(0, limit - used) + own
        if found.available is not None and free < found.available:
            found = Memory(min(total, limit), min(free, limit), "container")
    return found


def _groups(root: Path) -> list[tuple[int, int]]:
    """(limit, used) of the control groups that bind this process."""
    pairs = [
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat"),
        (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "sys/fs/cgroup/memory/memory.usage_in_bytes",
            "sys/fs/cgroup/memory/memory.stat",
        ),
    ]
    found = []
    for most, now, stat in pairs:
        limit, used = _number(root / most), _number(root / now)
        if limit is not None and used is not None and limit < _UNLIMITED:
            found.append((limit, max(0, used - _droppable(root / stat))))
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or the word "max"
        return None


def _droppable(path: Path) -> int:
    """File pages that the system drops before it refuses memory."""
    try:
        match = re.search(r"^(?:total_)?inactive_file (\d+)$", path.read_text(), re.M)
    except OSError:
        return 0
    return int(match[1]) if match else 0


def _measure_darwin() -> Memory:
    """macOS says how much there is; what is free it does not say in one number."""
    try:
        text = subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, text=True, check=True).stdout
        return Memory(int(text), None)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return Memory(None, None)


def resident_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process has now; None where the system does not say."""
    try:
        pages = int((root / "proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def gib(count: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
