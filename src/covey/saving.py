"""What a run keeps: checkpoints of everything that is state, and its model as an ordinary transformers folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from covey import checkpoint, files
from covey.engines.loading import DTYPES

if TYPE_CHECKING:
    from covey.run import Run


def save(run: Run) -> Path:
    """Save everything that is state; returns the checkpoint's folder."""
    record = {
        "states": run.improver.states,
        "optimizer_steps": run.improver.optimizer_steps,
        "cursor": run.collector.prompts.cursor,
        "offsets": run.sink.offsets(),
        "ledger": run.ledger.offset,
        "evaluated": run.evaluated,
        "config": run.config.plain(),
    }
    state = checkpoint.State(
        write_model=_model_writer(run),
        optimizer=run.parts.cluster.optimizer_state(),
        record=record,
    )
    return checkpoint.save(run.folder, run.step, state, keep=run.config.budget.checkpoint_keep)


def restore(run: Run) -> None:
    """Go on from the newest whole checkpoint of the folder; later rows of the logs are cut off."""
    found = checkpoint.load(run.folder)
    record = found.record()
    run.parts.cluster.load(weights=found.weights(DTYPES[run.config.model.dtype]), optimizer=found.optimizer())
    run.improver.states = record["states"]
    run.improver.optimizer_steps = record["optimizer_steps"]
    run.collector.prompts.cursor = record["cursor"]
    run.sink.truncate(record["offsets"], found.step)
    run.ledger.truncate(record["ledger"])
    run.step, run.evaluated = found.step, record["evaluated"]


def write_model(run: Run, folder: Path) -> None:
    """Write the current weights as an ordinary transformers folder, whole or not at all."""
    files.write_folder(folder, _model_writer(run))


def _model_writer(run: Run) -> Callable[[Path], None]:
    loaded, weights = run.parts.loaded, run.parts.cluster.weights()
    return lambda folder: checkpoint.export(folder, model=loaded.model, tokenizer=loaded.tokenizer, weights=weights)
