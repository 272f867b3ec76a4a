"""Interleaved timing: A B A B ..., after a warm-up of each, by processor time of this process."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def compare(work: Mapping[str, Callable[[], int]], *, rounds: int = 5) -> dict[str, float]:
    """Tokens per processor second of each piece of work (median over rounds); every call returns the tokens it made."""
    torch.set_num_threads(1)
    for call in work.values():
        call()
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            start = time.process_time()
            tokens = call()
            rates[name].append(tokens / (time.process_time() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def report(title: str, rates: Mapping[str, float], ours: str, peer: str) -> None:
    """One line of JSON: rates and the ratio of ours to the peer."""
    ratio = rates[ours] / rates[peer]
    print(
        json.dumps({"benchmark": title, "ratio": round(ratio, 2), **{k: round(v) for k, v in rates.items()}}),
        flush=True,
    )
