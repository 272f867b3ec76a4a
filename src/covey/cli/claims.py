"""`covey claims`: what the papers say, checked at the scale of one processor thread."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from covey.cli.settings import AsJson, print_json, print_rich
from covey.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from covey.recipes.claims.claim import Claim, Finding

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="Claims, or recipes whose claims to check; else all (some minutes)."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer seeds: wider intervals, sooner.")]
Only = Annotated[bool, typer.Option("--list", help="Say what would be checked, and check nothing.")]
Page = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.md", help="Write the page of claims with their details.")
]


def claims(
    names: Names = None, quick: Quick = False, only: Only = False, out: Page = None, as_json: AsJson = False
) -> None:
    """Check what the papers claim: seeds, an interval, the paper's number, and a verdict.

    A verdict is reproduced, not seen, or contradicted at this scale; its rule is part of the claim.
    """
    from covey.recipes.claims import find

    chosen = find(names or ())
    if only:
        listing(chosen, as_json)
        return
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise OutputError(str(out), "cannot be written", "Name a file in a folder that is there.")
    import torch

    torch.set_num_threads(1)
    found = [_run(claim, quick=quick, tell=not as_json) for claim in chosen]
    if out is not None:
        from covey.recipes.claims.page import write_page

        out.write_text(write_page(found), encoding="utf-8")
    if as_json:
        print_json([finding.plain() for finding in found])
        return
    show(found)


def _run(claim: Claim, *, quick: bool, tell: bool) -> Finding:
    """Run one claim; a line on stderr says that it is done, as all of them take minutes."""
    finding = claim.run(quick=quick)
    if tell and claim.seeds > 1:
        print(f"{claim.name}: {finding.verdict} ({finding.seconds:.1f} s)", file=sys.stderr)
    return finding


def show(found: Sequence[Finding]) -> None:
    """The table of verdicts."""
    from rich.table import Table
    from rich.text import Text

    from covey.recipes.claims.page import owners

    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("recipe", "claim", "measured", "expected", "seeds", "s", "verdict"):
        table.add_column(head, overflow="fold")
    colours = {"reproduced": "green", "not seen": "yellow", "contradicted": "red"}
    for finding in found:
        claim = finding.claim
        seeds = "exact" if claim.seeds == 1 else str(finding.seeds)
        cells = (owners(claim), claim.name, str(finding.value), str(claim.rule), seeds)
        verdict = Text(finding.verdict, style=colours[finding.verdict])
        table.add_row(*map(Text, cells), Text(f"{finding.seconds:.1f}"), verdict)
    print_rich(table)
    if len(found) <= 3:  # few enough to say what was measured
        for finding in found:
            claim = finding.claim
            print_rich(Text(f"\n{claim.name}: {claim.says}\n  paper: {claim.paper}\n  measured: {claim.measures}"))
            for name, part in finding.beside.items():
                print_rich(Text(f"  {name}: {part}"))


def listing(chosen: Sequence[Claim], as_json: bool) -> None:
    """What the claims say, without checking them."""
    if as_json:
        print_json([{"name": c.name, "recipes": list(c.recipes), "says": c.says, "paper": c.paper} for c in chosen])
        return
    from rich.table import Table
    from rich.text import Text

    from covey.recipes.claims.page import owners

    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("recipe", "claim", "says", "paper"):
        table.add_column(head, overflow="fold")
    for claim in chosen:
        table.add_row(*map(Text, (owners(claim), claim.name, claim.says, claim.paper)))
    print_rich(table)
