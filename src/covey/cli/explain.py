"""`covey explain`: what a health line means."""

from __future__ import annotations

from typing import Annotated

import typer

from covey.cli.settings import AsJson, print_json


def explain(
    code: Annotated[
        str | None, typer.Argument(metavar="[CODE]", help="Code of a health line, such as no-signal.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain a health line: its cause, where the run shows it, what to turn. Without a code: all of them."""
    from dataclasses import asdict

    from covey.observe.pages import PAGES, find_page, list_codes, write_page

    if as_json:
        print_json([asdict(page) for page in PAGES] if code is None else asdict(find_page(code)))
    else:
        typer.echo(list_codes() if code is None else write_page(find_page(code)), nl=False)
