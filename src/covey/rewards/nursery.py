"""The run's side of the processes that score: the nursery that has workers, and the handle of one worker."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import covey
import covey.errors
from covey.errors import CoveyError, DataError
from covey.registry import Component, dump
from covey.rewards import wire

START_S = 120.0
"""Longest time that loading a reward may take."""
MOST_SAID = 4096
"""Bytes that are kept of what a reward prints during one prompt; the rest is read and dropped."""
LEAVE_S = 2.0
_BEGIN = "import sys; sys.path.append(sys.argv[1]); from covey.rewards.worker import main; main(sys.argv[2:])"


class Nursery:
    """A process that holds a loaded reward and forks workers from itself.

    A reward that is plain data (`FILE.py:function`, a kind of covey's own) is loaded by a fresh interpreter; one that exists in
    this process alone is copied with it by fork, once, now. Started at once and waited for when the first worker is needed.
    """

    def __init__(self, reward: Any, memory_mb: int) -> None:
        self._reward, self._memory_mb = reward, memory_mb
        self._lock = threading.Lock()
        self._ready = False
        self._closed = False
        self._plain = describe(reward)
        self._start()

    def fork(self) -> WorkerHandle:
        """A new worker. A nursery that died is replaced where that is possible. Raises CoveyError."""
        with self._lock:
            self._wait_until_ready()
            try:
                return self._fork()
            except OSError:
                self._restart()
                self._wait_until_ready()
                return self._fork()

    def _fork(self) -> WorkerHandle:
        mine, results = socket.socketpair()
        said, output = os.pipe()
        try:
            self._channel.sendall(wire.pack({"memory_mb": self._memory_mb}))
            socket.send_fds(self._channel, [b"w"], [results.fileno(), output])
            pid = self._answer()["pid"]
        except OSError:
            mine.close()
            os.close(said)
            raise
        finally:
            results.close()
            os.close(output)
        return WorkerHandle(pid, mine, said)

    def bury(self, pid: int) -> int | None:
        """Make sure that a worker and all it started are gone; how it ended, None if nobody knows."""
        with self._lock:
            try:
                self._channel.sendall(wire.pack({"bury": pid}))
                return int(self._answer()["status"])
            except OSError:
                return None

    def close(self) -> None:
        """End the nursery, which ends its workers; one that still loads has none, and is not waited for."""
        if not (self._ready or self._closed):
            with suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)
        with self._lock:
            self._closed = True
            self._end()

    def _answer(self) -> Any:
        frame = wire.receive(self._channel)
        if frame is None:
            raise ConnectionResetError
        return frame[1]

    def _start(self) -> None:
        self._channel, child = socket.socketpair()
        self._process: subprocess.Popen[bytes] | None = None
        if self._plain is None:
            self._pid = fork_copy(child, self._reward)
        else:
            self._process = start_interpreter(child)
            self._pid = self._process.pid
            self._channel.sendall(wire.pack({"path": sys.path, "reward": self._plain}))
        child.close()

    def _wait_until_ready(self) -> None:
        if self._ready:
            return
        self._channel.settimeout(START_S)
        try:
            answer = self._answer()
        except TimeoutError:
            raise DataError("reward", f"it was not loaded in {START_S:g} s", "Make its import faster.") from None
        except OSError:
            raise DataError("reward", "its process ended while it was loaded", "Try to import it in Python.") from None
        self._channel.settimeout(None)
        if "error" in answer:
            raise_error(answer["error"])
        self._ready = True

    def _restart(self) -> None:
        if self._plain is None or self._closed:
            name = type(self._reward).__name__
            raise DataError("reward", f"the process of {name} was killed", "Look for what killed it; memory?")
        self._end()
        self._start()
        self._ready = False

    def _end(self) -> None:
        self._channel.close()
        deadline = time.monotonic() + LEAVE_S
        while not self._gone():
            if time.monotonic() > deadline:
                with suppress(OSError):
                    os.kill(self._pid, signal.SIGKILL)
            time.sleep(0.001)

    def _gone(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True


def describe(reward: Any) -> dict[str, Any] | None:
    """What a fresh interpreter needs to have the same reward; None for one that exists in this process alone."""
    if not isinstance(reward, Component) or getattr(reward, "given", False):
        return None
    module = type(reward).__module__
    return {"module": module, "value": dump(reward)} if module.partition(".")[0] == "covey" else None


def raise_error(error: Mapping[str, Any]) -> NoReturn:
    """Raise here what the user has to mend."""
    cls = getattr(covey.errors, str(error["type"]), DataError)
    raise (cls if issubclass(cls, CoveyError) else DataError)(*error["line"])


def start_interpreter(channel: socket.socket) -> subprocess.Popen[bytes]:
    """A fresh interpreter that becomes a nursery."""
    main = threading.current_thread() is threading.main_thread()  # the death signal comes with the thread's end already
    root = str(Path(covey.__file__).parent.parent)
    words = [sys.executable, "-P", "-c", _BEGIN, root, str(channel.fileno()), "tied" if main else "free"]
    return subprocess.Popen(
        words,
        pass_fds=[channel.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def fork_copy(channel: socket.socket, reward: Any) -> int:
    """A copy of this process that becomes a nursery."""
    from covey.rewards import worker

    sys.stdout.flush()
    sys.stderr.flush()
    main = threading.current_thread() is threading.main_thread()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        if main:
            worker.control_process(worker.PARENT_DEATH_SIGNAL, signal.SIGKILL)
        worker.keep_only(channel.fileno())
        torch = sys.modules.get("torch")
        if torch is not None:  # threads do not survive a fork, and a pool of them would be waited for
            torch.set_num_threads(1)
        worker.serve(channel, reward)
    finally:
        os._exit(1)


class WorkerHandle:
    """One worker as the run sees it: a channel for requests and results, what it says, and whether it lives."""

    def __init__(self, pid: int, channel: socket.socket, output: int) -> None:
        self.pid, self.tired = pid, False
        self._channel, self._output = channel, output
        self._channel.setblocking(False)
        os.set_blocking(output, False)
        self._alive = open_pid(pid)
        self._said, self._dropped, self._pending = bytearray(), 0, memoryview(b"")

    @property
    def ended(self) -> bool:
        """Whether the process is gone, or has closed its channel."""
        if self._alive is not None and select.select([self._alive], [], [], 0)[0]:
            return True
        try:
            return not self._channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def kill(self) -> None:
        """End the process and its group at once. Its number stays taken until it is buried."""
        for kill in (os.killpg, os.kill):
            with suppress(OSError):
                kill(self.pid, signal.SIGKILL)

    def run(
        self, request: Mapping[str, Any], number: bytes, take: Callable[[Mapping[str, Any]], None], limit_s: float
    ) -> str | None:
        """Have the units of a request scored, `limit_s` seconds for each. None if all were, else why the worker has to end:
        the reason of a failure, or nothing if that is for the process's end to say.
        """
        self._said.clear()
        self._dropped = 0
        self._pending = memoryview(wire.pack(request, number))
        incoming = bytearray()
        for _ in request["units"]:
            try:
                result = self._await(incoming, number, time.monotonic() + limit_s)
            except TimeoutError:
                return f"timeout: no score within {limit_s:g} s"
            except wire.GarbledError:
                return "crash: it wrote to the channel of its results"
            except EOFError as error:
                return str(error)
            self.tired = self.tired or bool(result.get("retire"))
            take(result)
        self.drain()
        return None

    def _await(self, incoming: bytearray, number: bytes, deadline: float) -> dict[str, Any]:
        """The next result. Raises TimeoutError, GarbledError, or EOFError when the worker is gone."""
        while (result := wire.unpack(incoming, number, 2 * wire.LONGEST_RESULT)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._exchange(incoming, left)
        found: dict[str, Any] = result
        return found

    def _exchange(self, incoming: bytearray, left_s: float) -> None:
        """Send what can be sent, read what has come. Raises EOFError when the worker is gone."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._pending else 0))
        if self._output >= 0:
            poll.register(self._output, select.POLLIN)
        if self._alive is not None:
            poll.register(self._alive, select.POLLIN)
        events = dict(poll.poll(max(1, left_s * 1000)))
        if self._output in events:
            self.drain()
        state = events.get(self._channel.fileno(), 0)
        if state & select.POLLOUT:
            with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                self._pending = self._pending[self._channel.send(self._pending) :]
        if state & (select.POLLIN | select.POLLHUP | select.POLLERR) and self._receive(incoming):
            return
        if self._alive in events:
            raise EOFError
        if state & (select.POLLHUP | select.POLLERR):
            self._wait_for_end()

    def _receive(self, incoming: bytearray) -> bool:
        try:
            part = self._channel.recv(1 << 20)
        except OSError:
            return False
        incoming += part
        return bool(part)

    def _wait_for_end(self) -> NoReturn:
        """The channel is closed: soon the process should be gone."""
        if self._alive is not None and select.select([self._alive], [], [], 0.5)[0]:
            raise EOFError
        raise EOFError("crash: it closed the channel of its results")

    def drain(self) -> None:
        """Read what the worker said, and keep the start of it."""
        while self._output >= 0:
            try:
                part = os.read(self._output, 1 << 16)
            except BlockingIOError:
                return
            except OSError:
                part = b""
            if not part:
                os.close(self._output)
                self._output = -1
                return
            room = MOST_SAID - len(self._said)
            self._said += part[:room]
            self._dropped += max(0, len(part) - room)

    def said(self) -> str:
        """What it said during the last request."""
        text = self._said.decode("utf-8", "replace")
        return f"{text} ... ({self._dropped} bytes more)\n" if self._dropped else text

    def close(self) -> None:
        """Let go of the channels."""
        self._channel.close()
        if self._output >= 0:
            os.close(self._output)
            self._output = -1
        if self._alive is not None:
            os.close(self._alive)
            self._alive = None


def open_pid(pid: int) -> int | None:
    """A channel that becomes readable when the process ends, where the system has such."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
