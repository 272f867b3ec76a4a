"""`covey recipes`: the methods there are, what each one is, and in what they differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covey.cli.settings import AsJson, print_json, print_rich, read_run_config
from covey.errors import CoveyError

if TYPE_CHECKING:
    from covey.recipes import Recipe

group = typer.Typer(help="List recipes, explain one, or compare some.", rich_markup_mode=None, no_args_is_help=False)
NAME = "A recipe's name, as `covey recipes list` prints it; a YAML file with a recipe or settings; or a run's folder."


@group.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List recipes, explain one, or compare some."""
    if context.invoked_subcommand is None:
        list_(as_json=False)


@group.command("list", epilog="\b\nExample:\n  covey recipes list --json")
def list_(as_json: AsJson = False) -> None:
    """All recipes, with the kind of component in every stage that some recipe uses."""
    from covey import recipes as known

    found = [known.get(name) for name in known.names()]
    if as_json:
        from covey.recipes.about import parent_of

        print_json(
            [{**recipe.plain(), "digest": recipe.digest, "parent": parent_of(recipe) or None} for recipe in found]
        )
        return
    from covey.cli.recipe_text import list_lines

    for line in list_lines(found):
        typer.echo(line)


@group.command("explain", epilog="\b\nExample:\n  covey recipes explain NAME --code")
def explain(
    name: Annotated[str, typer.Argument(metavar="NAME", help=NAME)],
    latex: Annotated[bool, typer.Option("--latex", help="Print the formula as LaTeX, nothing else.")] = False,
    code: Annotated[bool, typer.Option("--code", help="Print the composed functions in order, nothing else.")] = False,
    as_json: AsJson = False,
) -> None:
    """One recipe: paper, idea, formula, every option and where it came from, when to use it, what to watch."""
    from covey.cli import recipe_text

    if latex + code + as_json > 1:
        raise CoveyError("covey recipes explain", "more than one of --latex, --code, --json", "Give one of them.")
    recipe, description = find_recipe(name)
    if latex:
        from covey.recipes.formula import align, formula

        typer.echo(align(formula(recipe)))
    elif code:
        print_rich(*recipe_text.code_parts(recipe))
    elif as_json:
        print_json(recipe_text.explain_data(recipe, description))
    else:
        print_rich(*recipe_text.explain_parts(recipe, description, name))


@group.command("diff", epilog="\b\nExample:\n  covey recipes diff NAME NAME --json")
def diff(
    names: Annotated[list[str], typer.Argument(metavar="NAME NAME ...", help=f"Two or more. {NAME}")],
    as_json: AsJson = False,
) -> None:
    """Two or more recipes side by side: only the stages and options in which they differ."""
    from covey.recipes.about import differences

    if len(names) < 2:
        raise CoveyError("covey recipes diff", f"'{names[0]}' alone", "Give two or more.")
    rows = differences([find_recipe(name)[0] for name in names])
    from covey.cli import recipe_text

    if as_json:
        print_json(recipe_text.diff_data(names, rows))
    else:
        print_rich(*recipe_text.diff_parts(names, rows))


def find_recipe(word: str) -> tuple[Recipe, str]:
    """The recipe of a name, a YAML file or a run's folder, with its description: a file's recipe has that of the one it edits."""
    from covey import recipes as known

    if Path(word).is_dir() and word not in known.names():
        word = str(read_run_config(Path(word)))
    if not word.endswith((".yaml", ".yml")):
        return known.get(word), known.describe(word)
    from covey.config import text
    from covey.config.values import as_recipe

    data, _ = text.read(text.read_text(Path(word)), word)
    if not {"recipe", "mix", "name"} & set(data):
        raise CoveyError(word, "holds no recipe", "Give a run's settings with `recipe:`, or a recipe with its `name:`.")
    recipe = as_recipe(data.get("recipe", data))
    return recipe, known.describe(recipe.name) if recipe.name in known.names() else ""
