"""What a process takes from the system while tensors come and go, found out by asking the system's own `malloc` for them.

Living tensors are not all: blocks below 32 MiB come from a heap with gaps, which glibc's aligned allocation leaves behind
wherever a small object takes the rest of a freed block. How large the gaps become depends on sizes and order, so a fresh process
asks for the same blocks in the same order, with small objects as they come with a tensor, and writes nothing into them: it
takes address space and next to no memory. Run as a program it reads a script of blocks and prints the highest mark.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

STEPS = 3
"""Steps of a run that are replayed; the gaps hardly grow after them."""
SLICES = 4
"""Slices of a step that are replayed at most."""
OBJECTS = (32, 64, 96)
"""Bytes of small objects that come and go with a tensor; chosen on the calibration runs of `benchmarks.memory`."""
MARKED = 1 << 20
"""The mark is read after blocks of this size and more."""

Event = tuple[int, int]
"""(number of a block, its bytes when it is made; 0 when it is let go)."""


@dataclass(frozen=True, slots=True)
class Script:
    """A slice as blocks that come and go. `kept` are gradients, which stay until the optimizer's step; `moments` come with it.

    From the second slice of a step on a gradient is added to the one that is there, and let go.
    """

    events: tuple[Event, ...]
    kept: tuple[int, ...]
    moments: tuple[int, ...]
    slices: int


@dataclass(frozen=True, slots=True)
class Mark:
    """The highest mark: bytes taken from the system, and what of them was living: in all, gradients, moments."""

    taken: int
    living: int
    gradients: int
    moments: int


class Living:
    """Counts the bytes of blocks; the base of a heap, and all there is where the system's cannot be asked."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.living = 0
        self.gradients = self.moments = 0
        self.best = Mark(0, 0, 0, 0)

    def make(self, number: int, size: int) -> None:
        """A block comes."""
        self.sizes[number] = size
        self.living += size
        if size >= MARKED or self.living > self.best.living:
            self._look()

    def _look(self) -> None:
        taken = self.taken()
        if taken > self.best.taken:
            self.best = Mark(taken, self.living, self.gradients, self.moments)

    def taken(self) -> int:
        """Bytes taken from the system."""
        return self.living

    def drop(self, number: int) -> None:
        """A block goes."""
        self.living -= self.sizes.pop(number, 0)


class _Info(ctypes.Structure):
    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in names]


class Heap(Living):
    """The heap of this process, from what it has now on. Raises AttributeError where the C library is not glibc."""

    def __init__(self) -> None:
        super().__init__()
        library = ctypes.CDLL(None)
        self._info, self._aligned, self._malloc, self._free = (
            getattr(library, name) for name in ("mallinfo2", "posix_memalign", "malloc", "free")
        )
        self._info.restype = _Info
        self._aligned.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
        self._malloc.restype, self._malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        self._free.argtypes = [ctypes.c_void_p]
        self._blocks: dict[int, list[int | None]] = {}
        self._base = 0
        self._base = self.taken()

    def taken(self) -> int:
        """What the heap has grown by, and mappings."""
        info = self._info()
        return int(info.arena + info.hblkhd) - self._base

    def make(self, number: int, size: int) -> None:
        """A block comes, and the small objects that hold it."""
        block = ctypes.c_void_p()
        self._aligned(ctypes.byref(block), 64, size)
        self._blocks[number] = [block.value, *(self._malloc(count) for count in OBJECTS)]
        super().make(number, size)

    def drop(self, number: int) -> None:
        """A block goes, with them."""
        for block in self._blocks.pop(number, ()):
            self._free(block)
        super().drop(number)


def play(script: Script, heap: Living) -> Mark:
    """Some steps of a run in a heap; their highest mark."""
    kept, sizes = set(script.kept), dict(event for event in script.events if event[1])
    far = max(sizes, default=0) + 1
    for step in range(STEPS):
        _slice(script.events, kept, heap)
        for at in range(1, min(script.slices, SLICES)):
            _slice(
                ((number + at * far, size) for number, size in script.events),
                {},
                heap,
                ends={n + at * far for n in kept},
            )
        if step == 0:
            for at, size in enumerate(script.moments):
                heap.moments += size
                heap.make(-1 - at, size)
        for number in script.kept:
            heap.drop(number)
        heap.gradients = 0
    return heap.best


def _slice(events: Iterable[Event], kept: Iterable[int], heap: Living, ends: Iterable[int] = ()) -> None:
    """One slice; blocks of `kept` stay as gradients, those of `ends` go as soon as they have come."""
    for number, size in events:
        if not size:
            heap.drop(number)
            continue
        if number in kept:
            heap.gradients += size
        heap.make(number, size)
        if number in ends:
            heap.drop(number)


def replay(script: Script) -> Mark:
    """The highest mark of a script in a fresh process; where its heap cannot be asked, of the living blocks alone."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(Path(__file__))],
            input=json.dumps(asdict(script)),
            capture_output=True,
            text=True,
            check=True,
        )
        return Mark(**json.loads(done.stdout))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return play(script, Living())


def main() -> None:
    """Read a script, print its mark."""
    data = json.load(sys.stdin)
    script = Script(tuple(map(tuple, data["events"])), tuple(data["kept"]), tuple(data["moments"]), data["slices"])
    print(json.dumps(asdict(play(script, Heap()))))


if __name__ == "__main__":
    main()
