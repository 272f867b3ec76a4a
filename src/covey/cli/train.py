"""`covey train`: reinforcement learning as configured, in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covey.cli.settings import AsJson, ConfigFile, Settings, print_json, read_run_config, resolve_settings
from covey.errors import CoveyError

if TYPE_CHECKING:
    from covey.config import RunConfig


def train(
    settings: Settings = None,
    config: ConfigFile = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder; else runs/<name>-<n>/.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on from the newest checkpoint of a run.")
    ] = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check settings and data, print the YAML, stop.")] = False,
) -> None:
    """Train a model with reinforcement learning.

    Layers, later wins: defaults, the model's own covey.yaml, --config, KEY=VALUE.
    """
    from covey.folder import check_free

    if resume is not None and (out is not None or config is not None):
        other = "--out" if out is not None else "--config"
        raise CoveyError("covey train", f"{other} beside --resume", "A resumed run has its own folder and settings.")
    chosen = resolve_settings(settings, config).config if resume is None else settle_resume(resume, settings or ())
    chosen.check_data()
    check_free(out)
    if dry_run:
        print_json(chosen.plain()) if as_json else typer.echo(chosen.write_yaml(), nl=False)
        return
    from covey.observe.show import summary
    from covey.start import start

    run = start(chosen, out=out, resume=resume, quiet=as_json)
    if as_json:
        print_json(summary(run.folder))
    if run.interrupted:
        raise typer.Exit(130)


def settle_resume(folder: Path, settings: Sequence[str]) -> RunConfig:
    """The stored configuration with harmless changes; any other change is refused, with old and new value."""
    from covey.config import resolve
    from covey.config.changes import refuse_changes

    file = read_run_config(folder)
    stored, wanted = resolve(file=file).config, resolve(settings, file=file).config
    refuse_changes(folder, stored.plain(), wanted.plain())
    return wanted
