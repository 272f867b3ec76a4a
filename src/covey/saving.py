"""What a run keeps: checkpoints of everything that is state, and its model as an ordinary transformers (or PEFT) folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from covey import checkpoint, files
from covey.config.paths import anchor
from covey.engines.loading import DTYPES
from covey.engines.peft_folder import read_adapter, write_adapter
from covey.observe.records import read_records
from covey.tasks.mixture import fingerprint

if TYPE_CHECKING:
    from covey.best import Best
    from covey.run import Run

END = "end.json"
"""How and why a run ended: outcome, reason, step. It is not there while the run goes on, nor after a kill."""


def save(run: Run) -> Path:
    """Save everything that is state; returns the checkpoint's folder."""
    record = {
        "states": run.improver.states,
        "optimizer_steps": run.improver.optimizer_steps,
        "cursor": run.collector.prompts.cursor,
        "offsets": run.sink.offsets(),
        "ledger": run.ledger.offset,
        "evaluated": run.evaluated,
        "best": run.best and run.best.record(),
        "config": anchor(run.config).plain(),
        "data": fingerprint(run.config.task),  # type: ignore[arg-type]
    }
    state = checkpoint.State(
        write_model=_model_writer(run),
        optimizer=run.parts.cluster.optimizer_state(),
        reference=run.parts.cluster.reference_state(),
        critic=run.parts.cluster.critic_weights(),
        critic_optimizer=run.parts.cluster.optimizer_state("critic"),
        record=record,
    )
    return checkpoint.save(run.folder, run.step, state, keep=run.config.budget.checkpoint_keep)


def restore(run: Run) -> None:
    """Go on from the newest whole checkpoint of the folder; later rows of the logs are cut off."""
    found = checkpoint.load(run.folder)
    record = found.record()
    adapted, dtype = run.parts.loaded.adapted, DTYPES[run.config.model.dtype]
    weights = read_adapter(found.model) if adapted else found.weights(dtype)
    run.parts.cluster.load(weights=weights, optimizer=found.optimizer())
    run.parts.cluster.load_reference(found.tensors("reference"), found.step)
    if run.config.recipe.critic is not None:
        critic, moments = found.tensors("critic"), found.tensors("critic_optimizer")
        run.parts.cluster.load(weights=critic, optimizer=moments, model="critic")
    run.improver.states = record["states"]
    run.improver.optimizer_steps = record["optimizer_steps"]
    run.collector.prompts.cursor = record["cursor"]
    run.sink.truncate(record["offsets"], found.step)
    run.ledger.truncate(record["ledger"])
    run.step, run.evaluated = found.step, record["evaluated"]
    run.best = run.best and run.best.resumed(record.get("best"))
    steps = [row for row in read_records(run.folder / "metrics.jsonl") if "reward/mean" in row]
    told = [(int(row["step"]), str(row["code"])) for row in read_records(run.folder / "health.jsonl")]
    run.watch.recall(steps, told)


def write_model(run: Run, folder: Path) -> None:
    """Write the current weights as an ordinary transformers folder (adapters as a PEFT folder), whole or not at all."""
    files.write_folder(folder, _model_writer(run))


def write_best(run: Run, best: Best) -> None:
    """Replace `best/` by the current model and what was found of it, whole or not at all."""
    write = _model_writer(run)

    def fill(folder: Path) -> None:
        write(folder / "model")
        told = {name: value for name, value in best.record().items() if name not in ("since", "min_change")}
        files.write_bytes(folder / "best.json", (json.dumps(told, indent=1) + "\n").encode())

    files.write_folder(run.folder / "best", fill)


def write_end(run: Run, outcome: str, reason: str) -> None:
    """Write why the run ended, for `covey show`."""
    told = {"outcome": outcome, "reason": reason, "step": run.step}
    files.write_atomic(run.folder / END, (json.dumps(told, indent=1) + "\n").encode())


def forget_end(run: Run) -> None:
    """A run that goes on has not ended."""
    with files.reported(run.folder / END):
        (run.folder / END).unlink(missing_ok=True)


def _model_writer(run: Run) -> Callable[[Path], None]:
    loaded, weights = run.parts.loaded, run.parts.cluster.weights()
    if loaded.adapted:
        return lambda folder: write_adapter(
            folder, model=loaded.model, tokenizer=loaded.tokenizer, weights=weights, base=loaded.base
        )
    return lambda folder: checkpoint.export(folder, model=loaded.model, tokenizer=loaded.tokenizer, weights=weights)
