"""The processes that score: a *nursery* loads a reward once and forks workers from itself.

A worker runs the reward in its main thread, in a session of its own, with limits on memory and processor time; the run kills
it when its time is up, and the nursery has the next one in milliseconds. Neither outlives the run.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import inspect
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from covey.errors import CoveyError
from covey.rewards import wire
from covey.rewards.failures import ScoringError, explain, fail
from covey.rewards.functions import FunctionReward
from covey.rewards.signatures import TrainerState
from covey.types import Prompt, Rollout, Score

PARENT_DEATH_SIGNAL, SUBREAPER = 1, 36
"""Numbers of prctl(2)."""
FAR = 200
"""Own channels get numbers from here on, away from those that code likes to close."""
MOST_CORES = 64


def control_process(option: int, value: int) -> None:
    """prctl(2), where there is one."""
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def main(arguments: Sequence[str]) -> NoReturn:
    """A nursery of a reward that is plain data: the first frame on the channel says which."""
    channel = socket.socket(fileno=int(arguments[0]))
    if arguments[1] == "tied":
        control_process(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    frame = wire.receive(channel)
    if frame is None:
        os._exit(0)
    sys.path[:] = frame[1]["path"]
    try:
        reward = load(frame[1]["reward"])
    except CoveyError as error:
        channel.sendall(wire.pack({"error": describe(error)}))
        os._exit(1)
    except BaseException as error:
        channel.sendall(wire.pack({"error": {"type": "DataError", "line": ["reward", explain(error), ""]}}))
        os._exit(1)
    serve(channel, reward)


def load(plain: Mapping[str, Any]) -> Any:
    """The reward of its dump; its module is imported first, as a kind is known by then only."""
    from covey.rewards.kinds import build_reward

    importlib.import_module(plain["module"])
    reward: Any = build_reward(plain["value"])
    if hasattr(reward, "prepare"):  # what every worker would have to load is loaded once
        reward.prepare()
    return reward


def describe(error: CoveyError) -> dict[str, Any]:
    """An error of the user's as JSON."""
    return {"type": type(error).__name__, "line": [error.where, error.found, error.right]}


def keep_only(*wanted: int) -> None:
    """Close what was inherited, but for standard channels and these: nothing of the run can be written to by accident."""
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(folder):
        if int(name) > 2 and int(name) not in wanted:
            with suppress(OSError):
                os.close(int(name))


def serve(channel: socket.socket, reward: Any) -> NoReturn:
    """Fork workers on demand and bury them, until the channel ends; then everything that is left is killed."""
    children: set[int] = set()
    try:
        control_process(
            PARENT_DEATH_SIGNAL, 0
        )  # from here on the channel tells the end of the run, which leaves time to clean up
        control_process(SUBREAPER, 1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.disable()
        silence()
        gc.freeze()
        channel.sendall(wire.pack({"ready": True}))
        while (frame := wire.receive(channel)) is not None:
            request = frame[1]
            if "bury" in request:
                children.discard(request["bury"])
                answer = {"status": bury(request["bury"], children)}
            else:
                _, ends, _, _ = socket.recv_fds(channel, 1, 2)
                answer = {"pid": fork_worker(channel, reward, ends, request)}
                children.add(answer["pid"])
            channel.sendall(wire.pack(answer))
    finally:
        for child in list(children):
            with suppress(OSError):
                bury(child, children)
        os._exit(0)


def silence() -> None:
    """Nothing is read from or written to the standard channels of the run."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), _open_text(1), _open_text(2)  # noqa: SIM115


def _open_text(channel: int) -> Any:
    return open(channel, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def bury(pid: int, others: set[int]) -> int:
    """End a worker with all it started; how it ended, as os.waitpid has it."""
    with suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    kill_orphans(others)
    return status


def kill_orphans(workers: set[int]) -> None:
    """What a dead worker left behind, even in sessions of its own, is now a child of the nursery; so is what that leaves."""
    while orphans := list_children() - workers:
        for orphan in orphans:
            with suppress(OSError):
                os.kill(orphan, signal.SIGKILL)
                os.waitpid(orphan, 0)


def list_children() -> set[int]:
    """The processes whose parent this one is, where the system tells."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return {int(word) for word in file.read().split()}
    except OSError:
        return set()


def fork_worker(channel: socket.socket, reward: Any, ends: Sequence[int], request: Mapping[str, Any]) -> int:
    """Start a worker that talks over `ends` (results, output); its process id."""
    nursery = os.getpid()
    pid = os.fork()
    if pid:
        for end in ends:
            os.close(end)
        return pid
    try:
        os.setsid()
        control_process(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        channel.close()
        if os.getppid() == nursery:
            Worker(reward, ends, memory_mb=request["memory_mb"]).work()
    finally:
        os._exit(0)


class Worker:
    """Scores what comes in over a channel until it ends."""

    def __init__(self, reward: Any, ends: Sequence[int], *, memory_mb: int) -> None:
        import fcntl

        self.reward, self.pid, self.folder = reward, os.getpid(), os.getcwd()
        results, self.output = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, FAR) for end in ends)
        for end in ends:
            os.close(end)
        self.channel = socket.socket(fileno=results)
        self.channel.setblocking(True)
        self.runner = asyncio.Runner()
        self._stream: Any = None
        self.names = tuple(getattr(reward, "weights", {})) or ("reward",)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit_memory(memory_mb)
        self.restore()

    def work(self) -> None:
        """Requests in, results out, one frame for each unit of rollouts that is scored by one call."""
        while (frame := wire.receive(self.channel)) is not None:
            number, request = frame
            for unit in request["units"]:
                data = self.score(request, unit, number)
                if os.getpid() != self.pid:  # a copy of this process that the reward made and let go on
                    os._exit(0)
                self.restore()
                self.channel.sendall(data)

    def score(self, request: Mapping[str, Any], unit: Sequence[int], number: bytes) -> bytes:
        """The result of one call as a frame."""
        prompt = wire.read_prompt(request["prompt"])
        rollouts = [wire.read_rollout(request["rollouts"][place]) for place in unit]
        limit_time(request["limit_s"])
        result: dict[str, Any] = {}
        try:
            scores = self.call(prompt, rollouts, TrainerState(**request["state"]))
            result["scores"] = [wire.write_score(score) for score in scores]
            return wire.pack_result(result, number)
        except ScoringError as error:
            result["raised"], reason = True, str(error)
        except CoveyError as error:
            return wire.pack({"error": describe(error)}, number)
        except BaseException as error:  # whatever the reward raises is data about these rollouts
            result["raised"] = True
            result["retire"] = isinstance(error, MemoryError)
            reason = explain(error)
        result["scores"] = [wire.write_score(fail(self.names, reason))] * len(unit)
        return wire.pack(result, number)

    def call(self, prompt: Prompt, rollouts: Sequence[Rollout], state: TrainerState) -> Sequence[Score]:
        """Run the reward: a plain function outside of any event loop, everything asynchronous in the worker's own."""
        if isinstance(self.reward, FunctionReward):
            scores = self.reward.begin(prompt, rollouts, state, catch=False)
        else:
            scores = self.reward.score(prompt, rollouts)
        if not inspect.isawaitable(scores):
            return scores

        async def wait() -> Any:
            return await scores

        found: Sequence[Score] = self.runner.run(wait())
        return found

    def restore(self) -> None:
        """Put back what a reward may have changed: standard channels, timers, the folder."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        if nothing:
            os.close(nothing)
        os.dup2(self.output, 1)
        os.dup2(self.output, 2)
        if sys.stdout is not self._out():
            sys.stdout = sys.stderr = self._out()
        with suppress(OSError):
            os.chdir(self.folder)

    def _out(self) -> Any:
        if self._stream is None or self._stream.closed:
            self._stream = _open_text(1)
        return self._stream


def limit_memory(memory_mb: int) -> None:
    """Let the address space grow by so much from here; where it cannot be measured there is no limit."""
    with suppress(OSError, ValueError), open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory_mb * 2**20,) * 2)


def limit_time(limit_s: float) -> None:
    """A backstop to the run's own clock: processor time of all threads, should nobody be there to kill."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cores = min(os.cpu_count() or 1, MOST_CORES)
    most = int(used.ru_utime + used.ru_stime + limit_s * cores) + 10
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
