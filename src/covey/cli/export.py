"""`covey export`: a run's model as a folder that other libraries load, with a card; to the hub if asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covey.cli.settings import AsJson, print_json
from covey.target import find_target

Source = Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="Folder of a run, or a model as in model=.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder.", show_default=False)]
Merge = typer.Option("--merge", help="Make an adapter part of its base.")
Dtype = typer.Option(metavar="FORMAT", help="float32, bfloat16, float16; else as it is. An adapter needs --merge.")
Push = typer.Option(metavar="OWNER/NAME", help="Upload it to the hub too, into a private repository.")
Licence = typer.Option("--license", metavar="ID", help="What the card says; else that none is stated.")


def export(
    source: Source,
    out: Out,
    merge: Annotated[bool, Merge] = False,
    best: Annotated[bool, typer.Option("--best", help="The run's best model.")] = False,
    step: Annotated[int | None, typer.Option(metavar="N", min=0, help="The run's checkpoint of this step.")] = None,
    dtype: Annotated[str | None, Dtype] = None,
    licence: Annotated[str | None, Licence] = None,
    push: Annotated[str | None, Push] = None,
    public: Annotated[bool, typer.Option("--public", help="A repository that --push makes is public.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model folder that transformers, peft and vLLM load.

    Tokenizer, chat template and a card with what is known of the training are in it. An adapter stays one unless --merge.
    """
    from dataclasses import replace

    from covey import export as exporting
    from covey.errors import ConfigError

    if public and push is None:
        raise ConfigError("--public", "given without --push", "Add --push OWNER/NAME.")
    target = find_target(source, best=best, step=step)
    token = exporting.check_push(push, target, merge=merge) if push is not None else None
    made = exporting.export(target, out, merge=merge, dtype=dtype, licence=licence, repository=push)
    if push is not None and token is not None:
        made = replace(made, url=exporting.push(out, push, token=token, private=not public))
    if as_json:
        print_json({"folder": str(made.folder), "form": made.form, "base": made.base, "url": made.url})
        return
    kind = f"an adapter on {made.base}" if made.form == "adapter" else "a whole model"
    typer.echo(f"saved {made.folder}: {kind}, with {exporting.CARD}")
    if made.url is not None:
        typer.echo(f"uploaded {made.url}")
