"""Rewards in processes that can be killed: limits on time and memory, and a typed failure for all that goes wrong."""

from __future__ import annotations

import asyncio
import queue
import re
import secrets
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from covey.errors import DataError
from covey.rewards import wire
from covey.rewards.failures import fail
from covey.rewards.functions import FunctionReward
from covey.rewards.mix import Mix
from covey.rewards.nursery import Nursery, WorkerHandle, raise_error
from covey.types import Prompt, Rollout, Score

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a call may use: seconds, MiB beyond what its process starts with, and how many processes work side by side."""

    workers: int = 2
    timeout_s: float = 10.0
    memory_mb: int = 2048


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the run is: what a reward can ask for."""

    step: int = 0
    steps: int = 0


@dataclass(slots=True)
class Job:
    """Rollouts of a prompt that are being scored: `units` are still to do, each by one call."""

    prompt: str
    names: Sequence[str]
    units: deque[list[int]]
    scores: dict[int, Score] = field(default_factory=dict)

    def take(self, result: Mapping[str, Any]) -> None:
        """Note the result of the first unit. A call for several responses that raised is repeated for each of them alone."""
        if "error" in result:
            raise_error(result["error"])
        unit = self.units.popleft()
        if result.get("raised") and len(unit) > 1:
            self.units.extend([place] for place in unit)
            return
        scores = [wire.read_score(item) for item in result["scores"]]
        if len(scores) != len(unit):
            found = f"{len(scores)} scores for the {len(unit)} rollouts of prompt {self.prompt}"
            raise DataError("reward", found, "Return one score per rollout, in order.")
        self.scores.update(zip(unit, scores, strict=True))

    def fail(self, reason: str) -> None:
        """The process ended during the first unit: of several responses each is tried alone, a single one has failed."""
        unit = self.units.popleft()
        if len(unit) > 1:
            self.units.extend([place] for place in unit)
        else:
            self.scores[unit[0]] = fail(self.names, reason)


class Isolated:
    """A reward that runs in a pool of processes of its own. Close it, or use it as a context.

    It can be asked from any event loop and thread. A process is forked when there is work for it and stays until it fails.
    """

    def __init__(self, reward: Any, limits: Limits) -> None:
        self.reward, self.limits, self.progress = reward, limits, Progress()
        self.weights: Mapping[str, float] = getattr(reward, "weights", {})
        self._names = tuple(self.weights) or ("reward",)
        self._nursery = Nursery(reward, limits.memory_mb)
        self._threads = ThreadPoolExecutor(limits.workers, thread_name_prefix="covey-scoring")
        self._slots: queue.LifoQueue[WorkerHandle | None] = queue.LifoQueue()
        self._workers: set[WorkerHandle] = set()
        self._lock = threading.Lock()
        self._closed = False
        for _ in range(limits.workers):
            self._slots.put(None)

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def check(self, prompt: Prompt) -> None:
        """Raises DataError where the reward cannot read the prompt's row."""
        if hasattr(self.reward, "check"):
            self.reward.check(prompt)

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, in order; what the reward printed goes to stderr, cut."""
        loop = asyncio.get_running_loop()
        scores, said = await loop.run_in_executor(self._threads, self._score, prompt, rollouts)
        if said:
            print(said, end="" if said.endswith("\n") else "\n", file=sys.stderr)
        return scores

    def close(self) -> None:
        """End all processes; calls under way come back as failures."""
        self._closed = True
        with self._lock:
            for worker in self._workers:
                worker.kill()
        self._nursery.close()
        self._threads.shutdown()
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    def _score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> tuple[list[Score], str]:
        request = self._request(prompt, rollouts)
        together = getattr(self.reward, "together", True)
        places = range(len(rollouts))
        job = Job(prompt.id, self._names, deque([list(places)] if together else [[place] for place in places]))
        if not rollouts:
            return [], ""
        said: list[str] = []
        with self._slot() as slot:
            while job.units and not self._closed:
                said.append(self._attempt(slot, job, request))
        while job.units:
            job.fail("crash: the run ended")
        return [self._settle(*pair) for pair in zip(rollouts, map(job.scores.get, places), strict=True)], _clean(
            "".join(said)
        )

    def _settle(self, rollout: Rollout, score: Score | None) -> Score:
        """The score of a response; where it failed, what the reward's `settle` makes of that, if it has one."""
        settle = getattr(self.reward, "settle", None)
        scored = score or fail(self._names, "crash: the process ended")
        return settle(rollout, scored) if settle is not None and scored.failures and not self._closed else scored

    def _attempt(self, slot: list[WorkerHandle | None], job: Job, request: dict[str, Any]) -> str:
        """Let a worker do what it can of a job. If its process does not survive that, the next attempt has a new one."""
        worker = slot[0]
        if worker is None or worker.ended:
            if worker is not None:
                self._bury(worker)
            worker = slot[0] = self._birth()
        reason = worker.run(
            {**request, "units": list(job.units)}, secrets.token_bytes(8), job.take, self.limits.timeout_s
        )
        if reason is not None or worker.tired:
            slot[0] = None
            status = self._bury(worker)
            if reason is not None:
                job.fail(reason or describe_end(status))
        return worker.said()

    def _birth(self) -> WorkerHandle:
        worker = self._nursery.fork()
        with self._lock:
            self._workers.add(worker)
        return worker

    def _bury(self, worker: WorkerHandle) -> int | None:
        worker.kill()
        status = self._nursery.bury(worker.pid)
        with self._lock:
            self._workers.discard(worker)
        worker.drain()
        worker.close()
        return status

    @contextmanager
    def _slot(self) -> Iterator[list[WorkerHandle | None]]:
        slot = [self._slots.get()]
        try:
            yield slot
        except BaseException:
            if slot[0] is not None:  # it may have more to say of what nobody waits for any longer
                self._bury(slot[0])
                slot[0] = None
            raise
        finally:
            self._slots.put(slot[0])

    def _request(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        own = not isinstance(self.reward, FunctionReward)
        tokens = own or self.reward.reads("completion_ids")
        return {
            "prompt": wire.write_prompt(prompt, self.reward.row(prompt) if not own else prompt.meta),
            "rollouts": [wire.write_rollout(rollout, tokens=tokens, logps=own) for rollout in rollouts],
            "state": {"global_step": self.progress.step, "max_steps": self.progress.steps},
            "limit_s": self.limits.timeout_s,
        }


def describe_end(status: int | None) -> str:
    """The failure that a process's end means."""
    if status is None:
        return "crash: the process ended"
    if (status & 0x7F) == signal.SIGXCPU:
        return "timeout: the processor time was used up"
    if status & 0x7F:
        return f"crash: {signal.Signals(status & 0x7F).name}"
    return f"crash: it left with exit code {status >> 8}"


def _clean(text: str) -> str:
    """What a function printed, which may hold a model's text: without what a terminal would obey."""
    return _CONTROL.sub("", text)


def isolate(reward: Any, limits: Limits) -> Any:
    """The reward in processes of its own, unless its class says `isolated = False`; of several rewards each by itself."""
    parts = members(reward)
    if parts is not None:
        apart = {name: isolate(part, limits) for name, part in parts.items()}
        return reward if all(apart[name] is parts[name] for name in parts) else _replace_members(reward, apart)
    if isinstance(reward, Isolated) or not getattr(reward, "isolated", True):
        return reward
    return Isolated(reward, limits)


def members(reward: Any) -> Mapping[Any, Any] | None:
    """The rewards that a reward of several asks, by place or name; None for a single one."""
    if isinstance(reward, Mix):
        return dict(enumerate(reward.rewards))
    inner = getattr(reward, "rewards", None)
    return inner if isinstance(inner, Mapping) and is_dataclass(reward) else None


def _replace_members(reward: Any, parts: Mapping[Any, Any]) -> Any:
    if isinstance(reward, Mix):
        return reward.model_copy(update={"rewards": tuple(parts.values())})
    return replace(reward, rewards=parts)


def pools(reward: Any) -> list[Isolated]:
    """The pools of processes that a reward has."""
    if isinstance(reward, Isolated):
        return [reward]
    return [pool for part in (members(reward) or {}).values() for pool in pools(part)]


def advance(reward: Any, *, step: int, steps: int) -> None:
    """Tell rewards in processes of their own how far the run is."""
    for pool in pools(reward):
        pool.progress = Progress(step, steps)
