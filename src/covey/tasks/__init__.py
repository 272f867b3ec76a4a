"""Where prompts come from: each task is a registered component whose items are pure functions of (seed, index)."""

from __future__ import annotations

from covey.tasks.arithmetic import Arithmetic
from covey.tasks.compose import Compose
from covey.tasks.countdown import Countdown
from covey.tasks.mixture import Mixture
from covey.tasks.rows import Rows, from_rows

__all__ = ["Arithmetic", "Compose", "Countdown", "Mixture", "Rows", "from_rows"]
