"""The learning rate as a pure function of the optimizer step, so that resuming has nothing to restore."""

from __future__ import annotations

import math
from typing import Literal

from covey.errors import ConfigError, did_you_mean

Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: tuple[Schedule, ...] = ("constant", "linear", "cosine")


def learning_rate(
    step: int, *, lr: float, schedule: Schedule = "constant", warmup_steps: int = 0, total_steps: int = 0
) -> float:
    """The learning rate of optimizer step `step` (the first is 0).

    During the first `warmup_steps` steps it rises as `lr (step + 1) / warmup_steps`. After them, with
    `u = (step - warmup_steps) / (total_steps - warmup_steps)` held at 1 from `total_steps` on:
    constant `lr`; linear `lr (1 - u)`; cosine `lr (1 + cos(pi u)) / 2` (arXiv 1608.03983, without restarts).
    So the first step after the warm-up has the full rate, and the last step of the budget is never 0.
    """
    if schedule not in SCHEDULES:
        raise ConfigError("schedule", f"there is no schedule '{schedule}'", did_you_mean(schedule, SCHEDULES))
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return lr
    if total_steps <= warmup_steps:
        raise ConfigError(
            "schedule",
            f"{total_steps} optimizer steps leave none after {warmup_steps} of warm-up",
            "Warm up for fewer.",
        )
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return lr * (1.0 - progress if schedule == "linear" else (1.0 + math.cos(math.pi * progress)) / 2)
