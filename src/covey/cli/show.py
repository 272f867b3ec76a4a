"""`covey show`: what a run folder tells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covey.cli.settings import AsJson, print_json, print_rich, read_run_config


def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, such as runs/NAME-1.")],
    as_json: AsJson = False,
) -> None:
    """Show a run: accuracy before and after, curve, files."""
    from covey.observe.curve import draw, read_curve
    from covey.observe.show import render, summary

    read_run_config(run)
    told = summary(run)
    if as_json:
        print_json(told)
        return
    metrics = run / "metrics.jsonl"
    print_rich(render(told, chart=draw(read_curve(metrics)) if metrics.is_file() else ""))
