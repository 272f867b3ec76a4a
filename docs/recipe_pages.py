"""What the value of a recipe says, as Markdown: the head of its page, the tables of all recipes, the presets of peers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from covey import recipes
from covey.recipes import Recipe
from covey.recipes.about import ABSENT, LABELS, Option, Words, differences, name_method, options, parent_of, read_words
from covey.recipes.formula import align, formula, legend
from covey.recipes.recipe import STAGES
from covey.recipes.rules import RULES, RUN_RULES

COLUMNS = {
    "groups and rows": ("admit", "filters"),
    "score": ("mix",),
    "advantage": ("critic", "advantage", "shapers"),
    "weighting": ("weighting", "corrections"),
    "ratio": ("ratio",),
    "surrogate": ("surrogate", "objective"),
    "penalties, reference": ("penalties", "reference"),
}
"""Columns of the tables -> fields of a recipe."""


def pages(docs: Path) -> dict[str, str]:
    """The pages by their path below the folder of the docs."""
    found = {"recipes/index.md": index(), "recipes/peers.md": peers()}
    for name in methods():
        page = f"recipes/{name}.md"
        if (docs / page).is_file():
            found[page] = between((docs / page).read_text(encoding="utf-8"), "head", head(name, docs))
    for page, mark, text in (("recipes/family.md", "stages", changes()), ("../README.md", "recipes", shown())):
        if (docs / page).is_file():
            found[page] = between((docs / page).read_text(encoding="utf-8"), mark, text)
    return found


def between(text: str, mark: str, new: str) -> str:
    """A page with what stands between its two marks replaced; as it is if it has none."""
    return re.sub(
        rf"<!-- {mark} -->\n.*?<!-- /{mark} -->",
        lambda _: f"<!-- {mark} -->\n{new}<!-- /{mark} -->",
        text,
        count=1,
        flags=re.S,
    )


def methods() -> list[str]:
    """The names of the recipes that are not a preset of a peer."""
    return [name for name in recipes.names() if "@" not in name]


def presets() -> list[str]:
    """The names of the presets, those of one method together."""
    return sorted(set(recipes.names()) - set(methods()))


def head(name: str, docs: Path) -> str:
    """Title, idea, formula, curve and options of a recipe."""
    recipe, words = recipes.get(name), read_words(recipes.describe(name))
    lines = [f"# {name}", "", f"*{cite(words)}{sentence(words.idea)}*", ""]
    if parent := parent_of(recipe):
        lines += [f"Made from {link(parent)}: `covey recipes diff {parent} {name}`.", ""]
    defined = formula(recipe)
    lines += ["$$", align(defined), "$$", "", f"{legend(defined)}.", ""]
    lines += [f"- **{label.capitalize()}:** {said}" for label in LABELS if (said := getattr(words, label))]
    if (docs / "img" / "curves" / f"{name}.svg").is_file():
        lines += ["", f"![learning curve](../img/curves/{name}.svg)"]
    lines += ["", "| option | value | from | |", "|---|---|---|---|", *[option(row) for row in options(recipe)], ""]
    return "\n".join(lines)


def cite(words: Words) -> str:
    """Title and papers of a recipe, linked."""
    if not words.title:
        return ""
    source = re.sub(r"(?:arXiv )?\b(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", words.source)
    return f"{words.title} ({source}): " if source else f"{words.title}: "


def sentence(text: str) -> str:
    """A text that ends with a full stop."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def link(name: str) -> str:
    """A recipe's name, linked to its page."""
    return f"[`{name}`]({anchor(name)})"


def anchor(name: str) -> str:
    """Where a recipe is described."""
    return f"peers.md#{name.replace('@', '')}" if "@" in name else f"{name}.md"


def option(row: Option) -> str:
    """A row of the table of options."""
    origin = row.origin.removeprefix("from ")
    shown = link(origin) if origin != row.origin else "own" if origin.startswith("own") else origin
    name = f"**`{row.path}`**" if row.is_component else f"`{row.path}`"
    given = "none" if row.value is None and row.is_component else value(row.value)
    return f"| {name} | {given} | {shown} | {cell(row.meaning)} |"


def value(item: Any) -> str:
    """A value as it is written, in code; a dash for what is not there."""
    if item is ABSENT:
        return "-"
    if item is None:
        return "`null`"
    if isinstance(item, bool):
        return f"`{str(item).lower()}`"
    return f"`{_number(item)}`"


def _number(item: Any) -> str:
    return f"{item:g}".replace("e-0", "e-") if isinstance(item, float) else str(item)


def cell(text: str) -> str:
    """Text that cannot break a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def index() -> str:
    """All recipes by stage, and the presets."""
    lines = [
        "# All recipes",
        "",
        "Every method is a value of the same stages ([the map of the family](family.md)). `covey recipes explain NAME`",
        "says what is on its page, `covey recipes diff NAME NAME` in what two of them differ, `covey prove NAME` that it",
        "keeps what all recipes keep.",
        "",
        "| recipe | what it is |",
        "|---|---|",
    ]
    for name in methods():
        words = read_words(recipes.describe(name))
        lines.append(f"| {link(name)} | {cite(words)}{cell(sentence(words.idea))} |")
    lines += ["", "## By stage", "", *by_stage(methods()), "", "## Presets of peers", ""]
    lines += ["What a peer runs under a method's name where that is not what the paper says: [presets](peers.md).", ""]
    lines += by_stage(presets())
    return "\n".join([*lines, ""])


def by_stage(names: Sequence[str]) -> list[str]:
    """A table of components, recipe by recipe."""
    rows = []
    for name in names:
        recipe = recipes.get(name)
        cells = [
            "<br>".join(f"`{part.kind}`" for field in fields for part in recipe.parts(field))
            for fields in COLUMNS.values()
        ]
        rows.append(f"| {link(name)} | {' | '.join(cells)} |")
    return [f"| recipe | {' | '.join(COLUMNS)} |", f"|---{'|---' * len(COLUMNS)}|", *rows]


def changes() -> str:
    """Which stage each method changes against the one that it was made from."""
    rows = []
    for name in methods():
        recipe = recipes.get(name)
        parent = parent_of(recipe)
        cells = [" ".join(changed(recipe, parent, fields)) for fields in COLUMNS.values()]
        rows.append(f"| {link(name)} | {link(parent) if parent else ''} | {' | '.join(cells)} |")
    return "\n".join([f"| recipe | from | {' | '.join(COLUMNS)} |", f"|---|---{'|---' * len(COLUMNS)}|", *rows, ""])


def changed(recipe: Recipe, parent: str, fields: Sequence[str]) -> Iterator[str]:
    """The components, or the options of the same component, that a recipe has and its parent has not."""
    if not parent:
        for field in fields:
            yield from (f"`{part.kind}`" for part in recipe.parts(field))
        return
    rows = differences([recipes.get(parent), recipe])
    for path, (before, after) in rows.items():
        field, _, rest = path.partition(".")
        owner = path.rpartition(".")[0]
        if field not in fields or owner in rows or path == "reference":
            continue
        own = value(after) if path in STAGES or after == path.rpartition(".")[2] else f"`{rest}={_number(after)}`"
        yield f"no `{before}`" if after is ABSENT else own


def peers() -> str:
    """The presets, each with what it changes against the recipe of its method."""
    lines = [
        "# Presets of peers",
        "",
        "A method's name does not say what a library runs under it. Each preset `NAME@PEER` is what the peer does by",
        "default, equal to it on one undivided batch ([measured](../parity.md)); what of a peer's number depends on its",
        "micro-batches is not imitated. A preset trains like any recipe (`recipe=grpo@trl`);",
        "`covey recipes diff grpo grpo@trl` shows what is different.",
        "",
    ]
    reasons = {rule.name: rule.reason for rule in (*RULES, *RUN_RULES)}
    for name in presets():
        recipe, words = recipes.get(name), read_words(recipes.describe(name))
        lines += [f"## {name}", "", f"{cite(words)}{sentence(words.idea)}", ""]
        lines += ["```", words.formula, "```", ""] if words.formula else []
        base = name_method(name) if name_method(name) in recipes.names() else parent_of(recipe)
        rows = {path: row for path, row in differences([recipes.get(base), recipe]).items() if base}
        lines += [f"| option | {link(base)} | `{name}` |", "|---|---|---|"] if rows else []
        lines += [f"| `{path}` | {value(one)} | {value(two)} |" for path, (one, two) in rows.items()]
        lines += ["", *[f"Waives `{waiver}`: {reasons[waiver]}." for waiver in recipe.waivers], ""]
        lines += [f"- **{label.capitalize()}:** {said}" for label in LABELS if (said := getattr(words, label))]
        lines += [""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def shown() -> str:
    """What two commands print on a terminal of 100 columns; of the explanation all but the table of options."""
    from covey.cli.recipe_text import diff_parts, explain_parts

    names = ("dapo", "gspo", "cispo")
    told = printed(explain_parts(recipes.get("gspo"), recipes.describe("gspo")))
    told = re.sub(r"(?<=\n)(Options.*?\n).*?(?=\nUse|\ndigest)", r"\1  ...\n", told, flags=re.S)
    compared = printed(diff_parts(names, differences([recipes.get(name) for name in names])))
    blocks = (f"$ covey recipes explain gspo\n{told}", f"$ covey recipes diff {' '.join(names)}\n{compared}")
    return "".join(f"```\n{block}```\n\n" for block in blocks)


def printed(parts: Sequence[Any]) -> str:
    """Parts as the terminal shows them."""
    import io

    from rich.console import Console

    console = Console(highlight=False, width=100, file=io.StringIO())
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
