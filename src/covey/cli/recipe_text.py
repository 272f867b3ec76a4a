"""How recipes are told on the terminal: the explanation, the comparison, the list, the code."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from covey import recipes
from covey.cli.formula import write_unicode
from covey.recipes import Recipe
from covey.recipes.about import ABSENT, Option, options, parent_of, read_words
from covey.recipes.formula import Line, formula, legend
from covey.recipes.recipe import STAGES
from covey.registry import Component, plain

WIDTH = 100
"""Columns of text where there is no terminal to ask."""


def explain_parts(recipe: Recipe, description: str, called: str = "") -> list[Any]:
    """The explanation of a recipe in parts to print; `called` is its name, or the file that it is in."""
    called = called or recipe.name
    words = read_words(description)
    papers = [f"arxiv.org/abs/{paper}" for paper in words.papers]
    parent = parent_of(recipe)
    head = Text.assemble((called, "bold"), f"  {words.title}" if words.title else "")
    below = "  ".join(papers) or words.source
    parts: list[Any] = [head, *([Text(below, style="dim")] if below else [])]
    parts += ["", _prose(_sentence(words.idea))] if words.idea else []
    parts += ["", _heading("Formula"), *_formula(formula(recipe))]
    origin = f" (made from {parent}; `covey recipes diff {parent} {called}`)" if parent else ""
    parts += ["", _heading("Options", origin), _options(options(recipe))]
    said = [(label, getattr(words, label)) for label in ("use", "avoid", "watch")]
    if any(text for _, text in said):
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), width=_width())
        for label, text in said:
            table.add_row(Text(label.capitalize(), style="bold"), Text(text)) if text else None
        parts += ["", table]
    return [*parts, "", Text(f"digest {recipe.digest[:16]}", style="dim")]


def explain_data(recipe: Recipe, description: str) -> dict[str, Any]:
    """The explanation as data."""
    words = asdict(read_words(description))
    del words["formula"]
    lines = [{"stage": line.stage, "latex": line.latex, "text": write_unicode(line.latex)} for line in formula(recipe)]
    rows = [
        {"path": row.path, "value": row.value, "origin": row.origin, "meaning": row.meaning} for row in options(recipe)
    ]
    told = {"description": description, "digest": recipe.digest, "parent": parent_of(recipe) or None}
    return {**recipe.plain(), **told, **words, "formula": lines, "options": rows}


def diff_parts(names: Sequence[str], rows: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    """Recipes side by side."""
    if not rows:
        return [Text(f"{', '.join(names)}: no difference in stages and options")]
    table = _table("", *names)
    for path, row in rows.items():
        stage = path in STAGES
        shown = [Text("-" if value is ABSENT else _brief(value)) for value in row]
        for cell, value in zip(shown, row, strict=True):
            cell.stylize("dim" if value is ABSENT else "bold" if stage else "")
        owner, _, last = path.rpartition(".")
        inner = any(other.startswith(f"{path}.") for other in rows)
        name = f"  .{last}" if owner in rows and not inner else path  # right below its component
        table.add_row(Text(name, style="bold" if stage else ""), *shown)
    return [table]


def diff_data(names: Sequence[str], rows: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Recipes side by side as data; of what a recipe has not there is no value."""
    return [
        {"path": path, "values": {name: value for name, value in zip(names, row, strict=True) if value is not ABSENT}}
        for path, row in rows.items()
    ]


def code_parts(recipe: Recipe) -> Iterator[Any]:
    """The functions of which the recipe is composed, in the order in which they run, each with file and line."""
    for number, (place, part) in enumerate(_composed(recipe)):
        function = inspect.unwrap(getattr(type(part), "admits", None) or type(part).__call__)
        chosen = ", ".join(f"{key}={_brief(value)}" for key, value in plain(part).items() if key != "kind")
        if number:
            yield ""
        yield Text.assemble((f"# {place}: {part.kind}", "bold"), f"({chosen})" if chosen else "")
        try:
            lines, start = inspect.getsourcelines(function)
        except OSError:  # typed in by hand
            yield Text(f"# {function.__module__}.{function.__qualname__}: its source is in no file", style="dim")
            continue
        yield Text(f"# {_near(inspect.getsourcefile(function) or '?')}:{start}", style="dim")
        yield _show_code(inspect.cleandoc("\n" + "".join(lines)))


def list_lines(found: Sequence[Recipe]) -> list[str]:
    """A table of recipes by stage, methods before presets; where the terminal is narrow, each in two tables."""
    methods = [recipe for recipe in found if "@" not in recipe.name]
    presets = [recipe for recipe in found if "@" in recipe.name]
    lines = _columns([*methods, *presets], list(STAGES))
    if sys.stdout.isatty() and max(map(len, lines)) > shutil.get_terminal_size().columns:
        at = list(STAGES).index("weighting")
        halves = list(STAGES)[:at], list(STAGES)[at:]
        lines = [
            line for part in (methods, presets) if part for half in halves for line in (*_columns(part, half), "")
        ][:-1]
    more = "covey recipes explain NAME says what it is, covey recipes diff NAME NAME what differs."
    return [*lines, "", f"* the default.  {more}"]


def _columns(found: Sequence[Recipe], fields: Sequence[str]) -> list[str]:
    """A table of recipes by those of the fields that some of them use."""
    rows = [
        [f"{recipe.name}*" if recipe.name == recipes.DEFAULT else recipe.name]
        + ["+".join(part.kind for part in recipe.parts(field)) or "-" for field in fields]
        for recipe in found
    ]
    columns = list(zip(["recipe", *fields], *rows, strict=True))
    used = [column for column in columns if any(cell != "-" for cell in column[1:])]
    widths = [max(map(len, column)) for column in used]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*used, strict=True)
    ]


def _formula(lines: Sequence[Line]) -> list[Any]:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column()
    for line in lines:
        table.add_row(*(Text(cell) for cell in (f"{line.stage} ", write_unicode(line.left), _right(line))))
    return [Padding(table, (0, 0, 0, 2)), Padding(_prose(legend(lines)), (0, 0, 0, 2), style="dim")]


def _right(line: Line) -> str:
    return write_unicode(f"{line.sign} {line.right}")


def _options(rows: Sequence[Option]) -> Any:
    table = _table("option", "value", "from", "")
    owners = {row.path for row in rows if row.is_component}
    for row in rows:
        style = "bold" if row.is_component else ""
        owner, _, last = row.path.rpartition(".")
        name = f"  .{last}" if owner in owners and not row.is_component else row.path
        own = row.origin.startswith("own")
        origin = Text("own" if own else row.origin.removeprefix("from "), style="cyan" if own else "dim")
        value = Text("none" if row.value is None and row.is_component else _brief(row.value), style=style)
        table.add_row(Text(name, style=style), value, origin, Text(row.meaning, style="dim"))
    return Padding(table, (0, 0, 0, 2))


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _composed(recipe: Recipe) -> Iterator[tuple[str, Component]]:
    """Components that are called, with their stages; those inside a component right after it."""
    parts = ((field, part) for field in STAGES for part in recipe.parts(field))
    every = (pair for field, part in parts for pair in ((field, part), *_inside(field, part)))
    yield from ((place, part) for place, part in every if callable(part) or hasattr(part, "admits"))


def _inside(place: str, part: Component) -> Iterator[tuple[str, Component]]:
    for name in type(part).model_fields:
        value = getattr(part, name)
        members = value if isinstance(value, tuple) else (value,)
        yield from ((f"{place}.{name}", inner) for inner in members if isinstance(inner, Component))


def _show_code(code: str) -> Any:
    if not sys.stdout.isatty():
        return Text(code, no_wrap=True)
    return Syntax(code, "python", theme="ansi_dark", background_color="default", word_wrap=True)


def _near(file: str) -> str:
    """A file's path as short as it can be clicked on."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _heading(text: str, more: str = "") -> Text:
    return Text.assemble((text, "bold"), (more, "dim"))


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _prose(text: str) -> Text:
    """Text that the terminal wraps; where there is none, lines of a readable length."""
    return Text(text if sys.stdout.isatty() else textwrap.fill(text, WIDTH - 2))


def _width() -> int | None:
    return None if sys.stdout.isatty() else WIDTH


def _brief(item: Any) -> str:
    if isinstance(item, dict) and "kind" in item:
        return str(item["kind"])
    if isinstance(item, dict):
        return ", ".join(f"{key}={_brief(value)}" for key, value in item.items()) or "{}"
    if isinstance(item, list):
        return f"[{', '.join(_brief(member) for member in item)}]"
    if isinstance(item, float):
        return re.sub(r"e([+-])0", r"e\1", f"{item:g}")
    return "null" if item is None else str(item).lower() if isinstance(item, bool) else str(item)
