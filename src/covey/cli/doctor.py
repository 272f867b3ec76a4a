"""`covey doctor`: what of covey works on this machine, and with which versions."""

from __future__ import annotations

from typing import Annotated

import typer

from covey.cli.check import print_findings
from covey.cli.settings import AsJson, print_json
from covey.errors import ConfigError


def doctor(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[model=MODEL]", help="Also report on a model's tokenizer and template."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine: versions, memory, killable processes, sandbox support, network, and a few steps of learning."""
    from covey.config.text import read_setting
    from covey.preflight.doctor import examine
    from covey.preflight.finding import worst

    model = None
    for text in settings or ():
        key, value = read_setting(text, ("model",))
        if key != "model":
            raise ConfigError(
                key, "doctor looks at the machine and at model=MODEL", "covey check looks at a run's settings."
            )
        model = str(value)
    findings = examine(model)
    if as_json:
        print_json({"ok": worst(findings) != "bad", "findings": [finding.plain() for finding in findings]})
    else:
        print_findings(findings)
    if worst(findings) == "bad":
        raise typer.Exit(65)
