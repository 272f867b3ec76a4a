"""Ctrl-C and SIGTERM: the first asks for an orderly end after the step at hand, the second ends at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType

ECHO_S = 2.0
"""Under a launcher one Ctrl-C arrives twice, from it and from the terminal: what follows this soon is no second wish."""


class Interrupt:
    """While entered, `asked` turns True at the first SIGINT or SIGTERM; a second one acts as it would without us."""

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._before: dict[signal.Signals, object] = {}

    @property
    def asked(self) -> bool:
        """Whether the run shall end after the step at hand."""
        return self._first_s is not None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._before[name] = signal.signal(name, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        echo = ECHO_S if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0.0
        if self._first_s is None:
            self._first_s = now
        elif now - self._first_s >= echo:
            self._restore()
            signal.raise_signal(signal.Signals(number))

    def _restore(self) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)  # type: ignore[arg-type]
        self._before = {}
