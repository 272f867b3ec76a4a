"""`covey train`: reinforcement learning as configured, in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covey.cli.settings import (
    AsJson,
    ConfigFile,
    TaskSettings,
    print_json,
    read_run_config,
    resolve_settings,
    split_task,
)
from covey.errors import ConfigError, CoveyError, MissingInputError

if TYPE_CHECKING:
    from covey.config import RunConfig


def train(
    settings: TaskSettings = None,
    config: ConfigFile = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder; else runs/<name>-<n>/.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[DIR]", help="Go on from the newest checkpoint of a run; of TASK's newest run without DIR."
        ),
    ] = None,
    as_json: AsJson = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the YAML, train nothing.")
    ] = False,
) -> None:
    """Train a model with reinforcement learning.

    Layers, later wins: defaults, the model's own covey.yaml, TASK or --config, KEY=VALUE.
    """
    from covey.folder import check_free

    if resume is not None and (out is not None or config is not None):
        other = "--out" if out is not None else "--config"
        raise CoveyError("covey train", f"{other} beside --resume", "A resumed run has its own folder and settings.")
    if resume is None:
        refuse_run(settings)
        folder, chosen = None, resolve_settings(settings, config).config
    else:
        folder, flags = find_run(resume, settings)
        chosen = settle_resume(folder, flags)
        tell_changes(resume or (settings or [""])[0], folder, chosen)
    chosen.check_training()
    check_free(out)
    if dry_run:
        describe(chosen, as_json)
        return
    from covey.observe.show import summary
    from covey.preflight.shortage import check_memory, explained
    from covey.start import start

    if warning := check_memory(chosen):
        typer.echo(warning, err=True)
    with explained(chosen):
        run = start(chosen, out=out, resume=folder, quiet=as_json)
    if as_json:
        print_json(summary(run.folder))
    if run.interrupted:
        raise typer.Exit(130)


def describe(config: RunConfig, as_json: bool) -> None:
    """The resolved configuration on stdout; on stderr what a check finds and how much memory the run takes."""
    from covey.cli.check import print_findings
    from covey.preflight.check import check_run
    from covey.preflight.finding import worst

    findings = check_run(config)
    print_findings(findings, to_stderr=True)
    print_json(config.plain()) if as_json else typer.echo(config.write_yaml(), nl=False)
    if worst(findings) == "bad":
        raise typer.Exit(65)


def refuse_run(settings: Sequence[str] | None) -> None:
    """Refuse the folder of a run in the place of a task: its name would say what it does not do."""
    file, _ = split_task(settings)
    if file is not None and is_run(file.parent):
        run = file.parent
        raise ConfigError(
            str(run), "is a run already", f"Go on with `--resume {run}`, or start another with `--config {file}`."
        )


def find_run(resume: str, settings: Sequence[str] | None) -> tuple[Path, list[str]]:
    """The run to go on with, and the settings given beside it: a run's folder, or the newest run of a task.

    `--resume RUN`, `--resume TASK` and `TASK --resume` are understood; the newest run of a task has the highest number.
    """
    if resume == "":
        file, flags = split_task(settings)
        if file is None:
            raise CoveyError(
                "--resume", "no run is named", "Write `--resume runs/NAME-1`, or `covey train TASK --resume`."
            )
        return newest_run(file), flags
    folder = Path(resume)
    if (folder / "run.yaml").is_file() and not is_run(folder):
        return newest_run(folder / "run.yaml"), list(settings or ())
    return folder, list(settings or ())


def is_run(folder: Path) -> bool:
    """Whether a folder with a `run.yaml` is that of a run, and not that of a task."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "machine.json", "checkpoints"))


def newest_run(file: Path, home: Path = Path("runs")) -> Path:
    """The run of a task's YAML with the highest number; the folder itself if the file is that of a run."""
    from covey.config import resolve

    if is_run(file.parent):
        return file.parent
    name = resolve(file=file).config.name
    numbered = re.compile(rf"{re.escape(name)}-([0-9]+)")
    found = {int(hit[1]): path for path in home.glob("*") if (hit := numbered.fullmatch(path.name)) and path.is_dir()}
    if not found:
        raise MissingInputError(
            f"{home / name}-1", "there is no such run to go on with", f"Start one: covey train {file.parent}."
        )
    return found[max(found)]


def tell_changes(named: str, folder: Path, chosen: RunConfig) -> None:
    """Say on stderr what the YAML of a task says by now, where the run that goes on says something else."""
    from covey.config import resolve
    from covey.config.changes import leaves
    from covey.config.paths import same

    file, _ = split_task([named])
    if file is None or file.parent == folder:
        return
    now, own = dict(leaves(resolve(file=file).config.plain())), dict(leaves(chosen.plain()))
    told = [f"{key} {now.get(key)!r:.40} ({own[key]!r:.40})" for key in own if not same(now.get(key), own[key])]
    if told:
        typer.echo(f"note: {folder} keeps its own settings; {file} says (the run): {', '.join(told)}", err=True)


def settle_resume(folder: Path, settings: Sequence[str]) -> RunConfig:
    """The stored configuration with harmless changes; any other change is refused, with old and new value."""
    from covey.config import resolve
    from covey.config.changes import refuse_changes

    file = read_run_config(folder)
    stored, wanted = resolve(file=file).config, resolve(settings, file=file).config
    refuse_changes(folder, stored.plain(), wanted.plain())
    return wanted
