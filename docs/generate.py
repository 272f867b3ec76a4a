"""Writes the pages that repeat what the code says: commands, settings, and of every recipe what its value says.

`make docs` calls it; a test compares. Of pages with a text of their own only what stands between two marks is written.

Also the site's hook: formulas between dollars become MathML, so that the pages need no script and no network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_FORMULA = re.compile(
    r"(?P<code>```.*?```|`[^`\n]+`)|\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?!\w)", re.S
)


def pages() -> dict[str, str]:
    """Every generated page by its path below docs/."""
    import recipe_pages

    whole = {**{f"commands/{name}.md": page for name, page in commands()}, "settings.md": settings()}
    return whole | recipe_pages.pages(HERE)


def commands() -> Iterator[tuple[str, str]]:
    """A page per command, groups with their members on one."""
    import typer

    from covey.cli import app

    tree: Any = typer.main.get_command(app)
    for name, command in tree.commands.items():
        parts = getattr(command, "commands", None)
        yield name, "\n".join(describe(f"covey {name}", command, title=True) + members(f"covey {name}", parts or {}))


def members(prefix: str, parts: dict[str, Any]) -> list[str]:
    """The members of a group of commands."""
    return [line for name, command in parts.items() for line in describe(f"{prefix} {name}", command)]


def describe(path: str, command: Any, *, title: bool = False) -> list[str]:
    """What a command does, its arguments and options, and its examples."""
    text = " ".join((command.help or "").replace("\b", "").split("\n\n")[0].split())
    more = [" ".join(part.split()) for part in (command.help or "").replace("\b", "").split("\n\n")[1:]]
    usage = [
        f"[{p.metavar or p.name.upper()}]" if not p.required else str(p.metavar or p.name.upper())
        for p in arguments(command)
    ]
    lines = [f"{'#' if title else '##'} {path}", "", text, ""]
    lines += [line for part in more for line in (part, "")]
    if getattr(command, "commands", None) is None:
        lines += ["```", " ".join([path, *usage, "[OPTIONS]"]), "```", ""]
        lines += table([(f"`{p.metavar or p.name.upper()}`", said(p)) for p in arguments(command)], "argument")
        lines += table([(spell(p), said(p)) for p in options(command)], "option")
    epilog = (command.epilog or "").replace("\b", "").strip()
    if epilog:
        head, _, rest = epilog.partition("\n")
        lines += [
            f"{head.strip()}",
            "",
            "```",
            *[line.strip() for line in rest.splitlines() if line.strip()],
            "```",
            "",
        ]
    return lines


def arguments(command: Any) -> list[Any]:
    """The positional parameters."""
    return [p for p in command.params if p.param_type_name == "argument"]


def options(command: Any) -> list[Any]:
    """The named parameters."""
    return [p for p in command.params if p.param_type_name == "option"]


def spell(option: Any) -> str:
    """An option as it is written, with what it takes."""
    takes = "" if option.is_flag else f" {option.metavar or option.type_descriptor.annotation.__name__.upper()}"
    return " ".join(f"`{name}{takes}`" for name in option.opts)


def said(parameter: Any) -> str:
    """The help of a parameter and its default, safe inside a table."""
    text = (getattr(parameter, "help", None) or "").strip()
    default = parameter.default
    shown = isinstance(default, (int, float, str)) and not isinstance(default, bool) and default != ""
    return _cell(text + (f" Default: {default}." if shown else ""))


def table(rows: Sequence[tuple[str, ...]], head: str) -> list[str]:
    """A table of two columns, or nothing."""
    if not rows:
        return []
    return [f"| {head} | |", "|---|---|", *[f"| {' | '.join(row)} |" for row in rows], ""]


def settings() -> str:
    """Every key of a run, then the options of every component."""
    from covey.config.schema import list_options, list_rows

    lines = [
        "# Settings",
        "",
        "Every key with its type, unit, range and default, as `covey config schema` prints it.",
        "",
    ]
    lines += ["| key | type | range | default | |", "|---|---|---|---|---|", *[_row(row) for row in list_rows()], ""]
    lines += [
        "## Options of components",
        "",
        "| key | of kind | type | range | default | |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(row, kind=True) for row in list_options()]
    return "\n".join([*lines, ""])


def _row(row: Any, *, kind: bool = False) -> str:
    unit = f" ({row.unit})" if row.unit else ""
    default = "" if row.default is None else f"`{row.default}`"
    cells = [
        f"`{row.path}`",
        *([f"`{row.kind}`"] if kind else []),
        f"{row.type}{unit}",
        row.range,
        default,
        row.description,
    ]
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return (
        text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
        if "`" not in text
        else text.replace("|", "\\|")
    )


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The site's hook: formulas as MathML, code left alone."""
    from latex2mathml.converter import convert

    def replace(found: re.Match[str]) -> str:
        if found["code"]:
            return found[0]
        if found["inline"]:
            return convert(found["inline"], display="inline")
        made = convert(found["block"].strip(), display="block")
        made = re.sub(r'columnalign="(\w+)"', r'style="text-align: \1"', made)  # what browsers heed today
        return f'<div style="overflow-x: auto">{made}</div>'

    return _FORMULA.sub(replace, markdown)


def main() -> None:
    """Write all generated pages and the map of the family."""
    import family_map

    (HERE / "img" / "family.svg").write_text(family_map.draw(), encoding="utf-8")
    for name, text in pages().items():
        path = HERE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
