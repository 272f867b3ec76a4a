"""The loop: one screen, and it knows no method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from covey.metrics import merge

if TYPE_CHECKING:
    from covey.run import Run


async def train(run: Run) -> None:
    """Prompts -> rollouts -> rewards -> credit -> gradient -> new policy, step after step, from wherever the run stands."""
    await run.begin()
    for step in run.remaining():
        groups, collected = await run.collector.take(run.prompts_per_step)
        run.callbacks.on_rollouts(run, groups)
        update = run.improver.improve(groups, step)
        run.report(step, groups, merge([collected, update.metrics]), update.advantages)
        run.publish(step + 1)
        run.settle()
    await run.end()
