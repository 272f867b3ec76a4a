"""`covey config`: every key, and where the value of each comes from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from covey.cli.settings import AsJson, ConfigFile, Settings, print_json, print_rich, resolve_settings
from covey.errors import ConfigError

group = typer.Typer(help="Show settings and their origin; describe every key.", rich_markup_mode=None)


@group.callback(invoke_without_command=True)
def config_(context: typer.Context) -> None:
    """Show settings and their origin; describe every key."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@group.command("show", epilog="\b\nExample:\n  covey config show --config mine.yaml steps=50")
def show(settings: Settings = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Every value of a run and where it comes from: default, model, file and line, or flag."""
    from covey.config.changes import leaves

    resolved = resolve_settings(settings, config)
    rows = [(path, value, resolved.origin(path)) for path, value in leaves(resolved.config.plain())]
    if as_json:
        print_json({path: {"value": value, "origin": origin} for path, value, origin in rows})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("key", "value", "from"):
        table.add_column(head, overflow="fold")
    for path, value, origin in rows:
        style = "dim" if origin == "default" else ""
        table.add_row(*(Text(cell, style=style) for cell in (path, brief(value), origin)))
    print_rich(table)


@group.command("schema", epilog="\b\nExample:\n  covey config schema budget.optimizer")
def schema(
    under: Annotated[str | None, typer.Argument(metavar="[KEY]", help="Only this key and those below it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every key: type, unit, range, default and what it says. With --json, the JSON schema of the YAML, or the rows of KEY."""
    from covey.config.schema import json_schema, list_options, list_rows

    if as_json and under is None:
        print_json(json_schema())
        return
    rows = [row for row in (*list_rows(), *list_options()) if under is None or f"{row.path}.".startswith(f"{under}.")]
    if not rows:
        from covey.config.layers import list_keys
        from covey.config.nearest import suggest

        raise ConfigError(str(under), "there is no such key", suggest(str(under), list_keys()))
    if as_json:
        print_json([row.plain() for row in rows])
        return
    for row in rows:
        facts = [row.type, row.unit, row.range, f"default {brief(row.default)}", row.kind and f"of {row.kind}"]
        typer.echo(f"{row.path}\n    {'; '.join(fact for fact in facts if fact)}\n    {row.description}")


def brief(value: Any) -> str:
    """A value as it is written in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(brief(item) for item in value)}]"
    if isinstance(value, dict) and set(value) == {"kind"}:
        return str(value["kind"])
    return str(value)
