"""Look at the machine before a run: does a sample depend on its batch, and how many threads pay?"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from covey.engines.sampler import HFSampler
from covey.errors import ConfigError
from covey.types import Request, Sampling

ONE_THREAD_HIDDEN = 512
"""Models up to this hidden size run on one thread: waiting for each other costs threads more than they bring."""


@dataclass(frozen=True, slots=True)
class BatchFinding:
    """Whether the same request gave the same tokens and bitwise the same log-probabilities alone and among 16."""

    exact: bool
    same_tokens: bool
    largest_difference: float

    def __str__(self) -> str:
        if self.exact:
            return "samples do not depend on their batch (bitwise, batch 1 and 16)"
        what = "same tokens, " if self.same_tokens else "tokens differ, "
        return f"samples depend on their batch up to near-ties ({what}logp differs by {self.largest_difference:.1e})"


def probe_batch(sampler: HFSampler, *, max_tokens: int = 8) -> BatchFinding:
    """Sample one request alone, and again as the last of sixteen with other lengths."""
    config: Any = sampler.model.config.get_text_config()  # type: ignore[union-attr, operator]

    def request(at: int) -> Request:
        length = 5 + 3 * at
        return Request(str(at), tuple((7 * i + 11 * at + 1) % config.vocab_size for i in range(length)), (at,))

    sampling = Sampling(max_tokens=max_tokens)
    among = sampler.sample([request(at) for at in range(16)], sampling)
    alone = [sampler.sample([request(at)], sampling)[0] for at in (0, 7, 15)]
    pairs = [(a[0].turn, b[0].turn) for a, b in zip(alone, (among[0], among[7], among[15]), strict=True)]
    difference = max(
        abs(x - y) for a, b in pairs for x, y in zip(a.sampled_logp or (), b.sampled_logp or (), strict=False)
    )
    same = all(a.tokens == b.tokens for a, b in pairs)
    return BatchFinding(same and difference == 0.0, same, difference)


def choose_threads(model: nn.Module, threads: int | str | None = None) -> int:
    """Threads for this model: as asked, else one for a small model, else what a short chain of products finds faster."""
    if threads not in (None, "auto"):
        if int(threads) < 1:
            raise ConfigError("engines.threads", f"got {threads}", "At least 1, or 'auto'.")
        return int(threads)
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # the ranks of a machine share it
    if config.hidden_size <= ONE_THREAD_HIDDEN or cores == 1:
        return 1
    return cores if _time_products(config.hidden_size, cores) < 0.8 * _time_products(config.hidden_size, 1) else 1


def _time_products(size: int, threads: int) -> float:
    """Median seconds of a chain of matrix products with this many threads; other processes of the machine count too."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight = torch.ones(256, size), torch.full((size, size), 1.0 / size)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            for _ in range(4):
                x = x @ weight
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]
    finally:
        torch.set_num_threads(before)
