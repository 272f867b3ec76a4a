"""What a check found: one line with a status, and what to turn where something is off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "bad"]
ORDER: Sequence[Status] = ("ok", "warn", "bad")
_MARKS = {"ok": ("", ""), "warn": ("!", "yellow"), "bad": ("x", "bold red")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check. `name` says what was looked at, `knob` what to do or to set where it is not ok."""

    name: str
    status: Status
    line: str
    knob: str = ""

    def plain(self) -> dict[str, str]:
        """The finding as plain data."""
        return asdict(self)


def worst(findings: Iterable[Finding]) -> Status:
    """The gravest status; `ok` of no findings."""
    return max((finding.status for finding in findings), key=ORDER.index, default="ok")


def render(findings: Sequence[Finding]) -> Any:
    """Findings for the terminal: name, mark, line; the knob below it. A name is written once per block."""
    from rich.table import Table
    from rich.text import Text

    from covey.observe.plain import clean

    table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    before = ""
    for finding in findings:
        mark, style = _MARKS[finding.status]
        line = Text(clean(finding.line), style=style)
        if finding.knob and finding.status != "ok":
            line.append(f"\n-> {clean(finding.knob)}", style="")
        name = "" if finding.name == before else finding.name
        table.add_row(Text(name, style="bold"), Text(mark, style=style), line)
        before = finding.name
    return table


def verdict(findings: Sequence[Finding]) -> str:
    """The last line: `all good`, or how many findings of which sort."""
    counts = {status: sum(finding.status == status for finding in findings) for status in ("bad", "warn")}
    words = [f"{counts['bad']} bad"] * bool(counts["bad"])
    words += [f"{counts['warn']} warning{'s' * (counts['warn'] > 1)}"] * bool(counts["warn"])
    return ", ".join(words) or "all good"
