"""`covey check`: data, template, reward, batch and memory of a run, before it is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covey.cli.settings import AsJson, ConfigFile, TaskSettings, print_json, print_rich, resolve_settings

if TYPE_CHECKING:
    from covey.preflight.finding import Finding


def check(
    settings: TaskSettings = None,
    config: ConfigFile = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as bad.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at everything that can be known before the first step; no weights are loaded.

    Data, lengths, chat template, reward (gold answers high, empty and wrong ones low), batch words, memory.
    Exit code 65 if something is bad.
    """
    from covey.preflight.check import check_run
    from covey.preflight.finding import worst

    findings = check_run(resolve_settings(settings, config).config)
    status = worst(findings)
    failed = status == "bad" or (strict and status == "warn")
    if as_json:
        print_json({"ok": not failed, "status": status, "findings": [finding.plain() for finding in findings]})
    else:
        print_findings(findings)
    if failed:
        raise typer.Exit(65)


def print_findings(findings: Sequence[Finding], *, to_stderr: bool = False, more: Sequence[Any] = ()) -> None:
    """A table of findings and the verdict."""
    from rich.text import Text

    from covey.preflight.finding import render, verdict

    print_rich(render(findings), Text(verdict(findings)), *more, to_stderr=to_stderr)
