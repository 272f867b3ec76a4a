"""What this machine can do, tried and not believed: processes, kernel, disk, network, and a few steps of learning."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from covey.types import Message, Prompt, Rollout, Score

LANDLOCK_VERSION = 444
"""landlock_create_ruleset has one number on every architecture; with flag 1 it only tells the version of its interface."""
PR_GET_SECCOMP = 21
HANGS_S = 0.5


def free_disk(folder: Path) -> int:
    """Bytes left on the disk of a folder."""
    return shutil.disk_usage(folder).free


def landlock_version() -> int:
    """The version of the kernel's Landlock interface; 0 where there is none. Reads only: no rule is made."""
    if not sys.platform.startswith("linux"):
        return 0
    found = int(
        ctypes.CDLL(None, use_errno=True).syscall(LANDLOCK_VERSION, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    )
    return max(found, 0)


def has_seccomp() -> bool:
    """Whether the kernel filters system calls. Reads only."""
    if not sys.platform.startswith("linux"):
        return False
    return int(ctypes.CDLL(None, use_errno=True).prctl(PR_GET_SECCOMP, 0, 0, 0, 0)) >= 0


@dataclass(frozen=True, slots=True)
class WorkerFinding:
    """Whether rewards can run in processes of their own, and how long one that hangs stays beyond its limit."""

    scores: bool
    killed: bool
    start_ms: float
    kill_ms: float
    reason: str = ""


def _one(completion: str) -> float:
    return 1.0


def _hang(completion: str) -> float:
    time.sleep(600)
    return 0.0


def probe_workers() -> WorkerFinding:
    """Start a scoring process, and end one that hangs."""
    from covey.rewards.functions import wrap_function
    from covey.rewards.pool import Isolated, Limits

    prompt = Prompt("doctor", (Message("user", "?"),), None, "doctor")

    def score(function: object, limit_s: float) -> tuple[Score, float]:
        from covey.collect.scoring import score_groups
        from covey.preflight.audit import group_of

        with Isolated(wrap_function(function), Limits(workers=1, timeout_s=limit_s)) as reward:  # type: ignore[arg-type]
            start = time.monotonic()
            found = asyncio.run(score_groups(reward, [group_of(prompt, "x", (1,))]))[0].rollouts[0]
            return Score(found.rewards, found.failures), 1000 * (time.monotonic() - start)

    try:
        good, start_ms = score(_one, 20.0)
        bad, took_ms = score(_hang, HANGS_S)
    except Exception as error:  # whatever stands in the way here stands in the way of every run
        return WorkerFinding(False, False, 0.0, 0.0, f"{type(error).__name__}: {error}")
    reason = next(iter((*good.failures.values(), *bad.failures.values())), "")
    return WorkerFinding(bool(good.values), bool(bad.failures), start_ms, took_ms - 1000 * HANGS_S, reason)


def hub_answers(timeout_s: float = 3.0) -> str:
    """`reachable`, `offline` as asked by HF_HUB_OFFLINE, or why the hub cannot be reached."""
    import socket
    import urllib.parse
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "offline, as HF_HUB_OFFLINE asks"
    address = urllib.parse.urlparse(constants.ENDPOINT)
    proxy = next(iter(urllib.request.getproxies().values()), "")
    host, port = (urllib.parse.urlparse(proxy).hostname, urllib.parse.urlparse(proxy).port) if proxy else (None, None)
    try:
        with socket.create_connection((host or address.hostname or "", port or address.port or 443), timeout=timeout_s):
            return "reachable" if not proxy else "a proxy answers"
    except OSError as error:
        return f"not reachable ({error.strerror or error})"


class _Letter:
    """The share of a response's letters that are the wanted one: any policy can learn it in a few steps."""

    weights: Mapping[str, float] = {"letter": 1.0}

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score({"letter": sum(letter in "abc" for letter in r.text) / max(len(r.text), 1)}) for r in rollouts]


class _Letters:
    """Prompts of the self-test."""

    size: int | None = 4
    main_set = "held_out"
    reward = _Letter()

    def train(self, seed: int, index: int) -> Prompt:
        text = ("C(abcd)=", "C(fedc)=", "C(bebe)=", "C(cafe)=")[index % 4]
        return Prompt(f"letters/{index % 4}", (Message("user", text),), None, "letters")

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        return {}


@dataclass(frozen=True, slots=True)
class LearningFinding:
    """Reward at the first and at the last of a few steps, and whether sampling is bitwise independent of the batch."""

    first: float
    last: float
    steps: int
    seconds: float
    batch: str
    exact: bool


def probe_learning(steps: int = 24) -> LearningFinding:
    """Teach the embedded model to write the letters a, b and c: sampler, learner and credit together, in memory."""
    from statistics import fmean

    from covey.assembly import assemble
    from covey.config import resolve
    from covey.engines.probe import probe_batch
    from covey.engines.world import World

    config = resolve(
        [
            "model=tiny", f"steps={steps}", "budget.prompts_per_step=4", "budget.samples_per_prompt=16",
            "budget.sampling.max_tokens=12", "budget.optimizer.lr=3e-3", "budget.optimizer.schedule=constant",
        ]
    ).config  # fmt: skip
    start = time.monotonic()
    parts = assemble(config, _Letters(), World.from_environment())
    finding = probe_batch(parts.sampler)
    rewards = []
    try:
        parts.cluster.publish(0)
        for step in range(steps):
            groups, _ = asyncio.run(parts.collector.take(config.budget.prompts_per_step))
            rewards.append(fmean(rollout.rewards["letter"] for group in groups for rollout in group.rollouts))
            parts.improver.improve(groups, step)
            parts.cluster.publish(step + 1)
    finally:
        parts.cluster.stop()
    return LearningFinding(
        rewards[0], fmean(rewards[-2:]), steps, time.monotonic() - start, str(finding), finding.exact
    )


def describe_python() -> str:
    """Interpreter and system in a few words."""
    return f"python {platform.python_version()} on {platform.system()} {platform.machine()}"


def writable(folder: Path) -> bool:
    """Whether a file can be made in a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
