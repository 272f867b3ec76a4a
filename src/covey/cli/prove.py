"""`covey prove`: the properties that every recipe has to keep, tried on random batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covey.cli.recipes import find_recipe
from covey.cli.settings import AsJson, print_json, print_rich
from covey.errors import ConfigError, MissingInputError, ProofError, did_you_mean

if TYPE_CHECKING:
    from covey.proof.prove import Verdict
    from covey.recipes.recipe import Recipe


def prove(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Recipes: a name, a YAML file, a run's folder, or MODULE:ATTRIBUTE. All of them if none is named.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Random batches per property.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Prove what every recipe has to keep: splits, ranks, padding, order, equal rewards, edges. Seconds per recipe.

    Components of installed packages are covered like those that ship. A property that does not hold is named, with the seed
    and the reason; exit code 76.
    """
    from covey.proof.prove import prove as verdicts_of

    found: dict[str, list[Verdict]] = {}
    for recipe in _find(names or ()):
        found[recipe.name] = verdicts_of(recipe, range(seeds))
        if not as_json:
            print_rich(_table(recipe.name, found[recipe.name]))
    if as_json:
        print_json([{"name": name, "properties": [v.plain() for v in verdicts]} for name, verdicts in found.items()])
    _refuse(found)


def _refuse(found: Mapping[str, Sequence[Verdict]]) -> None:
    """One line for all that fails: the first property in full, the others by name."""
    from covey.proof.properties import PROPERTIES

    failed = [(name, verdict) for name, verdicts in found.items() for verdict in verdicts if verdict.outcome == "fails"]
    if not failed:
        return
    (name, first), *others = failed
    more = ", ".join(other.property if whose == name else f"{whose}: {other.property}" for whose, other in others)
    also = f" (also: {more})" if more else ""
    raise ProofError(f"{name}: {first.property}", f"{first.reason}{also}", PROPERTIES[first.property].hint)


def _find(names: Sequence[str]) -> Iterator[Recipe]:
    from covey import recipes

    for name in names or recipes.names():
        yield _imported(name) if ":" in name and not Path(name).exists() else find_recipe(name)[0]


def _imported(name: str) -> Recipe:
    """The recipe that stands in a module that can be imported."""
    from covey.recipes.recipe import Recipe

    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute, None)
    except (ImportError, ValueError, TypeError) as error:
        raise MissingInputError(name, f"{module} cannot be imported ({error})", "Give MODULE:ATTRIBUTE.") from None
    if not isinstance(found, Recipe):
        known = [key for key, value in vars(import_module(module)).items() if isinstance(value, Recipe)]
        raise ConfigError(name, f"{module} has no recipe '{attribute}'", did_you_mean(attribute, known))
    return found


def _table(name: str, verdicts: Sequence[Verdict]) -> Any:
    """A line per property: mark, name, what it says, the worst relative difference, how many cases."""
    from rich.table import Table
    from rich.text import Text

    from covey.proof.properties import PROPERTIES

    marks = {"holds": ("✓", "green"), "fails": ("x", "bold red"), "exempt": ("~", "yellow"), "idle": ("-", "dim")}
    table = Table(box=None, padding=(0, 2, 0, 0), title=name, title_justify="left")
    for head, justify in (("", "left"), ("property", "left"), ("", "left"), ("worst", "right"), ("cases", "right")):
        table.add_column(head, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for verdict in verdicts:
        mark, style = marks[verdict.outcome]
        said = PROPERTIES[verdict.property].sentence
        tried = (f"{verdict.worst:.1e}" if verdict.worst else "0", str(verdict.cases))
        if verdict.outcome != "holds":
            before = {"fails": "", "exempt": "exempted: ", "idle": ""}[verdict.outcome]
            said, tried = f"{said}\n-> {before}{verdict.reason}", tried if verdict.outcome == "fails" else ("", "")
        table.add_row(Text(mark, style=style), Text(verdict.property, style="bold"), Text(said), *map(Text, tried))
    return table
