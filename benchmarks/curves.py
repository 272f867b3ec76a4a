"""Learning curves of every recipe on the task that ships, under one budget: `python -m benchmarks.curves [NAME ...]`.

Writes docs/data/curves.json and the figures in docs/img. Without names it runs the recipes whose entry is absent or of other
options (their digest tells). At four optimizer steps per batch ratios differ from 1, so that what a recipe does with them shows.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.figure import draw_all, draw_one
from covey import recipes
from covey.config import resolve
from covey.recipes.recipe import Recipe
from covey.start import start

DOCS = Path(__file__).parent.parent / "docs"
DATA = DOCS / "data" / "curves.json"
SEEDS = (0, 1, 2)
BUDGET: dict[str, Any] = {
    "task": "compose",
    "steps": 30,
    "budget.optimizer_steps_per_pass": 4,
    "budget.prompts_per_step": 16,
    "budget.samples_per_prompt": 16,
    "budget.sampling.max_tokens": 20,
    "budget.optimizer.lr": 3e-4,
    "budget.eval_problems": 1,
    "budget.eval_samples": 1,
}
"""The same for all. 20 tokens cut off one response in a hundred, so that what recipes do about length acts too.

The learning rate is below the task's default of 7e-4, at which `reinforce` falls to 0 within five steps of four updates each.
"""

CHANGES: dict[str, dict[str, Any]] = {
    name: {"ratio": "token", "surrogate": {"kind": "detached_weight", "high": 2.0}}
    for name in ("maxrl", "reinforce", "rloo")
}
"""What a method's own text changes once a batch serves several steps: without a ratio only the first one is right."""


def listed() -> list[str]:
    """The recipes that are methods, not presets of peers."""
    return [name for name in recipes.names() if "@" not in name]


def recipe_of(name: str) -> Recipe:
    """A recipe as it runs here."""
    return recipes.get(name).but(**CHANGES.get(name, {}))


def run(recipe: Recipe, seed: int) -> list[dict[str, float]]:
    """The metrics of every step of one run."""
    with tempfile.TemporaryDirectory() as folder:
        values = {**BUDGET, "recipe": recipe, "budget.seed": seed}
        start(resolve(values=values).config, out=Path(folder) / "run", quiet=True)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [record for record in records if "reward/mean" in record]


def measure(recipe: Recipe) -> dict[str, Any]:
    """The curves of all seeds, and the smallest and largest value of every metric."""
    runs = [run(recipe, seed) for seed in SEEDS]
    found: dict[str, list[float]] = {}
    for record in (record for records in runs for record in records):
        for key, value in record.items():
            if value is not None and math.isfinite(value):
                found.setdefault(key, []).append(float(value))
    return {
        "digest": recipe.digest,
        "curves": [[record["reward/correct"] for record in records] for records in runs],
        "range": {key: [min(values), max(values)] for key, values in sorted(found.items())},
    }


def main(names: Iterable[str]) -> None:
    """Measure, keep every result as soon as it is there, draw."""
    known: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))["recipes"] if DATA.exists() else {}
    known = {name: entry for name, entry in known.items() if name in listed()}
    for name in list(names) or [name for name in listed() if _stale(name, known)]:
        known[name] = measure(recipe_of(name))
        print(
            json.dumps({"recipe": name, "last": [round(curve[-1], 3) for curve in known[name]["curves"]]}), flush=True
        )
        _write(known)
    draw(known)


def _stale(name: str, known: Mapping[str, Any]) -> bool:
    return name not in known or known[name]["digest"] != recipe_of(name).digest


def _write(known: Mapping[str, Any]) -> None:
    DATA.parent.mkdir(exist_ok=True)
    data = {"budget": BUDGET, "seeds": SEEDS, "changes": CHANGES, "recipes": dict(sorted(known.items()))}
    DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def draw(known: Mapping[str, Any]) -> None:
    """One figure of all recipes, and one each with the others behind it."""
    curves = {name: entry["curves"] for name, entry in sorted(known.items())}
    folder = DOCS / "img" / "curves"
    folder.mkdir(parents=True, exist_ok=True)
    (DOCS / "img" / "curves.svg").write_text(draw_all(curves), encoding="utf-8")
    for name in curves:
        (folder / f"{name}.svg").write_text(draw_one(curves, name), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
