"""What an embedded model can do: its accuracy on the held-out problems of the tasks that it was prepared for."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

from covey import tasks as _tasks  # noqa: F401  (registers the tasks that ship)
from covey.evaluate.evaluate import Plan, SetResult, evaluate
from covey.registry import build
from covey.types import Sampling

if TYPE_CHECKING:
    from covey.protocols import Task

TASKS = {name: cast("Task", build("task", name, "task")) for name in ("compose", "arithmetic", "countdown")}
SAMPLES = 8
MAX_TOKENS = 48
Figures = dict[str, dict[str, float]]
"""By set, `compose/L2`: accuracy, its standard error, the share of mixed groups of 8, and how many problems there were."""


def measure(model: Any, tokenizer: Any, *, sets: Sequence[str] | None = None, problems: int | None = None) -> Figures:
    """Sample every held-out problem 8 times at temperature 1 and count; `sets` (`compose/L2`) leaves the others out.

    Problems and noise belong to seed 0, so two models are compared on the same draws. The model itself is left as it is.
    """
    from covey.engines.loading import render
    from covey.engines.sampler import HFSampler

    sampler = HFSampler(deepcopy(model))
    sampling = Sampling(max_tokens=MAX_TOKENS, stop_ids=(tokenizer.eos_token_id,))
    figures: Figures = {}
    for name, task in TASKS.items():
        wanted = None if sets is None else tuple(s.partition("/")[2] for s in sets if s.startswith(f"{name}/"))
        if wanted == ():
            continue
        found = evaluate(
            sampler,
            task,
            Plan(seed=0, samples=SAMPLES, problems=problems, sets=wanted),
            sampling=sampling,
            render=lambda messages: render(tokenizer, messages),
            decode=lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)),
        )
        figures |= {f"{name}/{key}": summarise(result) for key, result in found.sets.items()}
    return figures


def summarise(result: SetResult) -> dict[str, float]:
    """The figures of one set, rounded to what a card shows."""
    accuracy = result.accuracy
    numbers = {"accuracy": accuracy.mean, "se": accuracy.se, "mixed": result.mixed}
    return {**{name: round(value, 4) for name, value in numbers.items()}, "problems": result.problems}
