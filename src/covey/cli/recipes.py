"""`covey recipes`: the methods there are, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covey.cli.settings import AsJson, print_json, print_rich

if TYPE_CHECKING:
    from covey.registry import Component

group = typer.Typer(help="List recipes, or show one stage by stage.", rich_markup_mode=None, no_args_is_help=False)


@group.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List recipes, or show one stage by stage."""
    if context.invoked_subcommand is None:
        list_(as_json=False)


@group.command("list", epilog="\b\nExample:\n  covey recipes list --json")
def list_(as_json: AsJson = False) -> None:
    """All recipes, with the kind of component in every stage that some recipe uses."""
    from covey import recipes as known

    found = {name: known.get(name) for name in known.names()}
    if as_json:
        print_json([{**recipe.plain(), "digest": recipe.digest} for recipe in found.values()])
        return
    from rich.table import Table
    from rich.text import Text

    from covey.recipes.recipe import STAGES

    kinds = {name: {field: _kinds(recipe.parts(field)) for field in STAGES} for name, recipe in found.items()}
    used = [field for field in STAGES if any(row[field] for row in kinds.values())]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("recipe", *used):
        table.add_column(head, overflow="fold")
    for name, row in kinds.items():
        mark = f"{name}*" if name == known.DEFAULT else name
        table.add_row(Text(mark), *(Text(row[field] or "-") for field in used))
    print_rich(table, Text("* the default.  covey recipes show NAME says what it does."))


@group.command("show", epilog="\b\nExample:\n  covey recipes show NAME --json")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe's name, as `covey recipes list` prints it.")],
    as_json: AsJson = False,
) -> None:
    """One recipe: paper, formula, and the component and options of every stage."""
    from covey import recipes as known

    recipe = known.get(name)
    if as_json:
        print_json({**recipe.plain(), "digest": recipe.digest, "description": known.describe(name)})
        return
    from rich.table import Table
    from rich.text import Text

    from covey.recipes.recipe import STAGES
    from covey.registry import plain

    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("stage", "component", "options", "effect"):
        table.add_column(head)
    for field in STAGES:
        for part in recipe.parts(field):
            options = ", ".join(f"{key}={_brief(item)}" for key, item in plain(part).items() if key != "kind")
            effect = (type(part).__doc__ or "").strip().splitlines()[0]
            table.add_row(*(Text(cell) for cell in (field, part.kind, options or "-", effect)))
    print_rich(Text(known.describe(name)), "", table, Text(f"\ndigest {recipe.digest[:16]}"))


def _kinds(parts: Sequence[Component]) -> str:
    return ", ".join(part.kind for part in parts)


def _brief(item: Any) -> str:
    if isinstance(item, dict) and "kind" in item:
        return str(item["kind"])
    if isinstance(item, list):
        return f"[{', '.join(_brief(member) for member in item)}]"
    return str(item)
