"""The ways into a run: from a configuration, from Python, or from where an earlier one stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from covey import checkpoint, files, saving
from covey.assembly import Parts, assemble, isolated, with_reward
from covey.callbacks import Callback, Callbacks
from covey.config import RunConfig, resolve
from covey.config.changes import refuse_changes
from covey.config.paths import anchor
from covey.engines.adapters import exact_dtype
from covey.engines.loading import DTYPES
from covey.engines.probe import BatchFinding, probe_batch
from covey.engines.world import World
from covey.errors import ConfigError, CoveyError, DataError
from covey.folder import check_free, check_space, describe_machine, new_folder
from covey.loop import train as loop
from covey.observe.clients import Card
from covey.observe.console import Console, Rhythm
from covey.observe.trackers import open_trackers
from covey.rewards.mix import weigh
from covey.run import Run
from covey.tasks.mixture import fingerprint
from covey.tasks.sources import hand_over


def start(
    config: RunConfig,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    quiet: bool = False,
    callbacks: Iterable[Callback] = (),
) -> Run:
    """Train as configured, in a new folder or from the newest checkpoint of `resume`.

    Under torchrun every rank calls it; the other ranks serve rank 0 and leave with SystemExit when it is done.
    """
    called = Callbacks(callbacks)
    config.check_training()
    world = World.from_environment()
    if world.leads:
        check_free(out) if resume is None else _check_resume(config, resume)
    task = with_reward(config.task, config.reward)
    if not world.leads:
        assemble(config, task, world).cluster.serve()
        raise SystemExit(0)
    with ExitStack() as stack:
        parts = assemble(config, stack.enter_context(isolated(task, config)), world)
        stack.callback(parts.cluster.stop)
        folder = new_folder(out, config.name) if resume is None else resume
        stack.enter_context(checkpoint.active(folder))
        check_space(folder, _checkpoint_bytes(config, parts))
        console = Console(quiet=quiet, rhythm=Rhythm(completions=config.report.completions_every))
        run = Run(config, folder, parts, stack.enter_context(console), callbacks=called)
        stack.callback(run.close)
        for note in config.task.notes() if hasattr(config.task, "notes") else ():
            console.note(note)
        if resume is not None:
            run.restore()
        _describe(run, probe_batch(parts.sampler))
        run.trackers = open_trackers(config.report.to, _card(run))
        stack.enter_context(run.interrupt)
        try:
            asyncio.run(loop(run))
        except Exception as error:
            run.trackers.failed = True
            run.console.finish(step=run.step, outcome="failed")
            with suppress(CoveyError):  # a full disk has no room for the reason
                saving.write_end(run, "failed", str(error) if isinstance(error, CoveyError) else type(error).__name__)
            raise
        return run


def _card(run: Run) -> Card:
    """What trackers file the run under."""
    name = run.folder.resolve().name
    return Card(
        project=run.config.report.project, name=name, folder=run.folder, config=run.config.plain(), step=run.step
    )


def _check_resume(config: RunConfig, folder: Path) -> None:
    """Refuse a folder without a whole checkpoint, or with one that was made with other settings that matter, or other data."""
    record = checkpoint.load(folder).record()
    refuse_changes(folder, record["config"], config.plain())
    before, now = record.get("data"), fingerprint(config.task)  # type: ignore[arg-type]
    changed = [name for name in now if before is not None and before.get(name) != now[name]]
    if changed:
        right = "Bring the rows back that it was begun with, or start a new run."
        raise DataError(str(folder), f"the rows of {', '.join(changed)} have changed since its last checkpoint", right)


def _describe(run: Run, finding: BatchFinding) -> None:
    """Write what the run is (`run.yaml`) and what its bytes depend on (`machine.json`); say where a promise does not hold."""
    if not finding.exact:
        run.console.note(str(finding))
    files.write_atomic(run.folder / "run.yaml", anchor(run.config).write_yaml().encode())
    parts = run.parts
    facts = {
        **describe_machine(parts.threads, parts.world.size),
        "batch_probe": str(finding),
        "stop_ids": list(parts.sampling.stop_ids),
        "recipe": run.config.recipe.digest,
        "config": run.config.digest,
    }
    files.write_atomic(run.folder / "machine.json", (json.dumps(facts, indent=1) + "\n").encode())


def _checkpoint_bytes(config: RunConfig, parts: Parts) -> int:
    """What checkpoints and models will take on the disk.

    Trained weights, two moments and a moving reference in every checkpoint that stays, one more while it is written; the model
    at the end; and the best one, which is there twice while it is replaced.
    """
    size = (
        exact_dtype(DTYPES[config.model.dtype]).itemsize
        if parts.loaded.adapted
        else DTYPES[config.model.dtype].itemsize
    )
    best = 0 if config.budget.best is None else 2
    copies = 3 + (config.recipe.reference.kind != "initial")
    return size * parts.trained * (copies * (config.budget.checkpoint_keep + 1) + 1 + best)


def train(
    *,
    data: Any = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    quiet: bool = False,
    callbacks: Iterable[Callback] = (),
    **settings: Any,
) -> Run:
    """Train from Python: `covey.train(model="tiny", data=rows, reward=f, recipe=NAME, steps=100)`.

    `data` is a file, folder or hub id, an iterable of dicts with `prompt` and `answer`, or several of them by name;
    `reward` a function `f(completion, answer)`, a kind, a value or a list of them with `reward_weights`; `recipe` a name or
    a Recipe. All other settings are configuration keys; dotted ones are given as `**{"budget.optimizer.lr": 1e-3}`. With
    `resume` the settings are those of that run; rows that it was given in Python are given again.
    """
    data, _rows = hand_over(data)
    if resume is not None:
        if settings or (data is not None and not _rows) or out is not None:
            raise ConfigError(
                "resume",
                "settings beside it",
                "A resumed run has its own; `covey train --resume` takes those that may change.",
            )
        folder = Path(resume)
        return start(resolve(file=folder / "run.yaml").config, resume=folder, quiet=quiet, callbacks=callbacks)
    if data is not None:
        settings["data"] = data
    if "reward_weights" in settings:
        settings["reward"] = weigh(settings.get("reward"), settings.pop("reward_weights"))
    return start(
        resolve(values=settings).config, out=None if out is None else Path(out), quiet=quiet, callbacks=callbacks
    )
