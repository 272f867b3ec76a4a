"""The batch words of a run, multiplied out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from covey.preflight.finding import Finding

if TYPE_CHECKING:
    from covey.config import RunConfig
    from covey.preflight.data import Rows


def check_batch(config: RunConfig, rows: Rows) -> Iterator[Finding]:
    """Rollouts and optimizer steps of a step, tokens at most, epochs of the run: what the numbers mean together."""
    budget = config.budget
    prompts, samples = budget.prompts_per_step, budget.samples_per_prompt
    rollouts, longest = prompts * samples, budget.sampling.max_tokens
    line = (
        f"{prompts} prompts x {samples} samples = {rollouts} rollouts a step, at most {rollouts * longest:,} new tokens"
    )
    yield Finding("batch", "ok", line)
    groups = prompts // budget.optimizer_steps_per_pass
    share = "all of them" if budget.optimizer_steps_per_pass == 1 else f"about {groups} prompts each"
    passes = "" if budget.passes_per_batch == 1 else f" x {budget.passes_per_batch} passes"
    each = f"{budget.optimizer_steps_per_pass} optimizer step{'s' * (budget.optimizer_steps_per_pass > 1)}{passes} over {share}"
    total = f"{budget.steps} steps = {budget.optimizer_steps} optimizer steps"
    if rows.endless:
        yield Finding("batch", "ok", f"{each}; {total}, every prompt a new one")
        return
    epochs = budget.steps * prompts / len(rows.train)
    yield Finding("batch", "ok", f"{each}; {total}; {epochs:.1f} times through {len(rows.train)} rows")
    if prompts > len(rows.train):
        found = (
            f"a step has more prompts ({prompts}) than there are rows to train on ({len(rows.train)}): some come twice"
        )
        yield Finding("batch", "warn", found, f"budget.prompts_per_step={len(rows.train)}")
    if epochs > MANY:
        found = f"every row is seen {epochs:.0f} times: watch eval/accuracy for memorising"
        yield Finding("batch", "warn", found, "More rows, or fewer steps.")


MANY = 100
"""Epochs that are worth a word."""
