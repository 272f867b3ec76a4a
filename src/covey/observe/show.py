"""What a run folder tells: what was run, how far it came, how good it was before and is now, and which files are there."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from covey.config.text import read, read_text
from covey.errors import MissingInputError
from covey.observe.curve import draw, trace
from covey.observe.line import duration
from covey.observe.plain import clean
from covey.observe.records import plain, read_records
from covey.observe.svg import write_svg

_LAST = ("reward/mean", "group/mixed", "length/mean", "entropy/sampled", "stop/truncated", "grad/norm", "lr")


def summary(folder: Path) -> dict[str, Any]:
    """A run folder as plain data: config, steps, accuracy before and after by set, last metrics, time, files.

    `config_sha256` is the hash of the resolved configuration, as `RunConfig.digest`. A number that is not known is None.
    """
    path = folder / "run.yaml"
    if not path.is_file():
        found = "has no run.yaml" if folder.is_dir() else "is no folder"
        raise MissingInputError(str(folder), found, "Give the folder of a run, such as runs/NAME-1.")
    config, _ = read(read_text(path), str(path))
    rows = _rows(folder / "metrics.jsonl")
    steps = [row for row in rows if "reward/mean" in row]
    budget = config.get("budget") or {}
    told: dict[str, Any] = plain(
        {
            "folder": str(folder),
            "name": config.get("name"),
            "recipe": _name(config.get("recipe"), "name"),
            "task": _name(config.get("task"), "kind"),
            "model": _name(config.get("model"), "path"),
            "seed": budget.get("seed"),
            "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
            "steps": budget.get("steps"),
            "steps_done": len(steps),
            "seconds": math.fsum(row.get("time/step_s", 0.0) for row in _rows(folder / "timings.jsonl")),
            "evaluations": _evaluations(rows),
            "last": steps[-1] if steps else {},
            "end": _object(folder / "end.json"),
            "best": _object(folder / "best" / "best.json"),
            "health": _health(folder / "health.jsonl"),
            "files": _files(folder),
        }
    )
    return told


def write_curve(folder: Path, *, width: int = 72, ascii_only: bool = False) -> str:
    """Write `curve.svg` from the metrics of a run and return the same curve as text for the terminal."""
    told = summary(folder)
    what, name = f"{told['recipe']} on {told['task']}", told["name"]
    title = what if name == f"{told['recipe']}-{told['task']}" else f"{what}: {name}"
    curve = trace(_rows(folder / "metrics.jsonl"), title=title)
    write_svg(folder / "curve.svg", curve)
    return draw(curve, width=width, ascii_only=ascii_only)


def render(told: Mapping[str, Any], *, chart: str = "", ascii_only: bool = False) -> RenderableType:
    """A summary for the terminal, the chart at its end."""

    def text(value: object) -> Text:
        return Text(clean(str(value), ascii_only=ascii_only))

    facts = Table.grid(padding=(0, 2))
    for name in ("folder", "name", "recipe", "task", "model", "seed"):
        facts.add_row(text(name), text(told[name]))
    facts.add_row(text("config"), text(told["config_sha256"][:16]))
    facts.add_row(text("steps"), text(f"{told['steps_done']} of {told['steps']} in {duration(told['seconds'])}"))
    last = [f"{name} {told['last'][name]:.4g}" for name in _LAST if told["last"].get(name) is not None]
    facts.add_row(text("last step"), text("  ".join(last)))
    for name, line in (("ended", _ended(told["end"])), ("best", _best(told["best"]))):
        if line:
            facts.add_row(text(name), text(line))
    facts.add_row(text("files"), text("  ".join(f"{name} {_size(size)}" for name, size in told["files"].items())))
    parts: list[RenderableType] = [facts]
    for item in told["health"]:
        facts.add_row(text("health"), text(_finding(item)))
    if told["evaluations"]:
        parts.append(_table(told["evaluations"], ascii_only))
    return Stack(*parts, *([Text(chart)] if chart else []))


def _table(evaluations: Sequence[Mapping[str, Any]], ascii_only: bool) -> Table:
    first, last = evaluations[0], evaluations[-1]
    once = len(evaluations) == 1
    when = f"step {last['step']}" if once else f"steps {first['step']} and {last['step']}"
    table = Table(title=Text(f"accuracy on unseen problems, {when}"), title_justify="left")
    for head in ("set", "accuracy", "95% interval") if once else ("set", "before", "after", "change", "95% interval"):
        table.add_column(head, justify="left" if head == "set" else "right")
    for name, now in last["sets"].items():
        was = (first["sets"].get(name) or {}).get("accuracy")
        change = now["accuracy"] - was if None not in (was, now["accuracy"]) else None
        span = _span(now["low"], now["high"])
        between = (_share(now["accuracy"]),) if once else (_share(was), _share(now["accuracy"]), _share(change, "+.3f"))
        cells = (clean(name, ascii_only=ascii_only), *between, span)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None or math.isnan(low + high) else f"{low:.3f} to {high:.3f}"


def _share(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def _ended(end: Mapping[str, Any] | None) -> str:
    if end is None:
        return ""
    reason = f": {end['reason']}" if end["reason"] else ""
    return f"{end['outcome']} after step {end['step']}{reason}"


def _best(best: Mapping[str, Any] | None) -> str:
    return "" if best is None else f"{best['metric']} {best['value']:.4g} after step {best['step']}, in best/model"


def _finding(item: Mapping[str, Any]) -> str:
    steps = item["steps"]
    where = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    return f"{item['code']} ({where}): {item['seen']}; see `covey explain {item['code']}`"


def _object(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _health(path: Path) -> list[dict[str, Any]]:
    """Each finding of the run: its code, the steps after which it was told, and what was seen last."""
    found: dict[str, dict[str, Any]] = {}
    for row in _rows(path):
        before = found.get(row["code"], {"steps": []})["steps"]
        found[row["code"]] = {"code": row["code"], "steps": [*before, row["step"]], "seen": row["seen"]}
    return list(found.values())


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_records(path) if path.is_file() else []


def _name(value: Any, field: str) -> Any:
    return value.get(field) if isinstance(value, Mapping) else value


def _evaluations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each evaluation: its step, and accuracy with its interval by set (`main` if only the main set's is there)."""
    found = []
    for row in rows:
        names = [name.removeprefix("eval/accuracy") for name in row if name.startswith("eval/accuracy")]
        ends = [end for end in names if end] or names
        if ends:
            quantities = ("accuracy", "low", "high")
            sets = {end[1:] or "main": {q: row.get(f"eval/{q}{end}", math.nan) for q in quantities} for end in ends}
            found.append({"step": row.get("step"), "sets": sets})
    return found


def _files(folder: Path) -> dict[str, int]:
    """Bytes of each file of the folder, and of each folder in it with all that it holds."""
    sizes = {}
    for item in sorted(folder.iterdir()):
        if not item.name.startswith("."):
            inner = item.rglob("*") if item.is_dir() else [item]
            sizes[item.name + "/" * item.is_dir()] = sum(file.stat().st_size for file in inner if file.is_file())
    return sizes


def _size(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} B"
