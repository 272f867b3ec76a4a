"""`covey new`: the folder of a task of one's own."""

from __future__ import annotations

from typing import Annotated

import typer

from covey.cli.settings import AsJson, print_json


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Folder to make; its runs are runs/NAME-<n>/.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="Embedded model, folder, or hub id.")] = "tiny",
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Your own JSONL, CSV, Parquet, folder or hub id; settings follow its columns."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Begin a task of your own: data, a reward with tests, settings with comments.

    Without --data there are rows on which the embedded model learns something in seconds.
    """
    from covey.preflight.new import new_task

    made = new_task(name, model=model, data=data)
    if as_json:
        print_json({"folder": name, "files": [str(path) for path in made]})
        return
    typer.echo(f"made {', '.join(str(path) for path in made)}")
    typer.echo(f"next: covey check {name}   |   covey train {name}")
