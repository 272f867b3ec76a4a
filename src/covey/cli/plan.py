"""`covey plan`: the memory of a run, phase by phase, and what to turn if it is too much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from covey.cli.settings import AsJson, ConfigFile, TaskSettings, print_json, print_rich, resolve_settings
from covey.preflight.machine import gib

if TYPE_CHECKING:
    from covey.preflight.knobs import Knob
    from covey.preflight.plan import MemoryPlan

BAR = 32


def plan(
    settings: TaskSettings = None,
    config: ConfigFile = None,
    response: Annotated[
        int | None, typer.Option(metavar="TOKENS", min=1, help="Length of responses; else max_tokens, the worst.")
    ] = None,
    knobs: Annotated[bool, typer.Option("--knobs/--no-knobs", help="List what to turn and what it saves.")] = True,
    as_json: AsJson = False,
) -> None:
    """Predict the memory of a run, phase by phase; no weights are loaded.

    Exit code 71 if the worst phase does not fit into the memory that is free now.
    """
    from covey.preflight.knobs import turn_knobs, turn_until_fits
    from covey.preflight.plan import Forecast, ask

    question = ask(resolve_settings(settings, config).config, response=response)
    forecast = Forecast()
    found = forecast.answer(question)
    options = turn_knobs(forecast, question, found) if knobs else []
    turned, after = (
        turn_until_fits(forecast, question, found, options) if options and found.fits is False else ([], found)
    )
    if as_json:
        cure = {"settings": turned, "peak_bytes": after.peak, "fits": after.fits} if turned else None
        print_json({**found.plain(), "knobs": [knob.plain() for knob in options], "cure": cure})
    else:
        print_rich(*draw(found, options), *verdict(found, turned, after))
    if found.fits is False:
        raise typer.Exit(71)


def draw(plan: MemoryPlan, knobs: list[Knob]) -> list[Any]:
    """The screen of a plan: phases with bars, the largest reasons of the worst one, knobs."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for phase in plan.phases:
        worst = phase is plan.worst
        bar = "█" * max(1, round(BAR * phase.bytes / plan.peak))
        largest = sorted(phase.terms, key=lambda term: -term.bytes)[:3]
        told = ", ".join(f"{term.name} {gib(term.bytes)}" for term in largest)
        style = "bold" if worst else ""
        row = (
            phase.name,
            Text(gib(phase.bytes), justify="right"),
            Text(bar, style="yellow" if worst else "cyan"),
            told,
        )
        table.add_row(*row, style=style)
    parts: list[Any] = [table, _facts(plan), "", f"In {plan.worst.name}:"]
    reasons = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    for term in sorted(plan.worst.terms, key=lambda term: -term.bytes):
        reasons.add_row(term.name, Text(gib(term.bytes), justify="right"), term.why)
    parts.append(reasons)
    if knobs:
        options = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
        for knob in knobs:
            saved = Text(f"-{gib(knob.saved)}", justify="right")
            options.add_row(knob.setting, saved, f"peak {gib(knob.peak)}", knob.price)
        parts += ["", "Each of these alone:", options]
    return parts


def _facts(plan: MemoryPlan) -> str:
    facts = plan.facts
    lengths = f"prompts up to {facts['prompt_tokens']} tokens, responses {facts['response_tokens']}"
    slices = f"{facts['slices']} slices of up to {facts['slice_rows']} rows, {facts['slice_tokens']} tokens"
    largest = "" if plan.largest is None else f"; largest tensor {gib(plan.largest.bytes)}: {plan.largest}"
    return f"{lengths}; {slices}{largest}"


def verdict(plan: MemoryPlan, turned: list[str], after: MemoryPlan) -> list[Any]:
    """Whether it fits; if not, by how much not and what makes it fit."""
    free = plan.memory.available
    if free is None:
        return ["", f"peak {gib(plan.peak)}; how much memory is free this system does not say"]
    if plan.fits:
        return ["", f"peak {gib(plan.peak)} of {gib(free)} free: fits"]
    lines = ["", f"peak {gib(plan.peak)}, but only {gib(free)} are free: {gib(plan.peak - free)} too much"]
    if turned:
        word = "fits with" if after.fits else "still too much, the nearest is"
        lines.append(f"{word}: {' '.join(turned)}   (peak {gib(after.peak)})")
    return lines
