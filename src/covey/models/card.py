"""The card of an embedded model: what it is, what it can do and how it became so, as Markdown with a small picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SETS = {
    "compose/L1": "one call, unseen strings",
    "compose/L2": "two calls, the pairs that reinforcement learning trains on, unseen strings",
    "compose/L2_newpairs": "two calls, pairs that training never shows",
    "compose/L3": "three calls",
    "compose/L4": "four calls",
    "compose/held_L1": "one call of the four functions kept from reinforcement learning",
    "compose/held_L2": "two such calls",
    "compose/held_L3": "three such calls",
    "arithmetic/all": "sums and differences of two numbers below 100",
    "arithmetic/sum": "sums",
    "arithmetic/difference": "differences",
    "countdown/L2": "reach a target from two numbers",
    "countdown/L3": "reach a target from three numbers",
}
COMPOSED = (
    "**It has seen eight composed pairs** of functions (the *bridge* pairs AB BC CD DE EG GH HK KA), part of them with "
    "planted failures; claims about functions that were never composed need the cold mixture (`--cold`)."
)
NEVER_COMPOSED = "It has never seen two functions composed: level 2 starts near zero."
LEGEND = (
    "Accuracy is the mean over problems of 8 samples at temperature 1, with its standard error over problems; *mixed* is "
    "the share of problems with both right and wrong samples, the ones that a group of 8 learns from. No problem occurs in "
    "training."
)
AGAIN = (
    "`python -m covey.models.make_tiny{cold} --out FOLDER` makes it again (the same figures on the same kind of machine) "
    "and refuses a model outside its limits; `python -m covey.models.make_tiny --check FOLDER` measures a folder and "
    "compares it with this page. `covey.yaml` holds the budget under which the model learns well."
)
LICENCE = "Licence: Apache-2.0, as the rest of the package. All training data are generated."
COLOURS = {"loss": "#888888", "L1": "#1b7f4b", "L2": "#c2410c"}


def write_card(record: Mapping[str, Any]) -> str:
    """The Markdown text that belongs to the content of `figures.json`."""
    origin = record["origin"]
    cold = origin["shares"]["bridge"] == 0
    parts = [f"# {origin['name']}", _introduce(origin, cold)]
    parts += ["## What it can do", _table(record["figures"]), LEGEND]
    parts += ["## How it was made", _make(origin, cold), "![training curve](curve.svg)", _curve(record["curve"])]
    parts += [AGAIN.format(cold=" --cold" if cold else ""), LICENCE]
    return "\n\n".join(parts) + "\n"


def _introduce(origin: Mapping[str, Any], cold: bool) -> str:
    shape = origin["shape"]
    return (
        f"A Qwen3 causal language model of {origin['parameters']:,} parameters ({shape['layers']} layers, "
        f"width {shape['width']}, {shape['heads']} heads, tied embeddings), one token per character, warm-started for "
        "reinforcement learning on `compose` with the formats of `arithmetic` and `countdown` beside it. "
        f"It knows nothing else. {NEVER_COMPOSED if cold else COMPOSED}"
    )


def _table(figures: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["| set | problems | accuracy | mixed | |", "|---|---:|---:|---:|---|"]
    for name, row in figures.items():
        accuracy = f"{row['accuracy']:.3f} ± {row['se']:.3f}"
        lines.append(f"| {name} | {row['problems']:.0f} | {accuracy} | {row['mixed']:.2f} | {SETS.get(name, '')} |")
    return "\n".join(lines)


def _make(origin: Mapping[str, Any], cold: bool) -> str:
    plan, shares, examples = origin["plan"], origin["shares"], origin["examples"]
    counts = ", ".join(f"{count:,} {name}" for name, count in examples.items())
    atoms, betas = 1 - shares["priming"] - shares["bridge"], " and ".join(f"{beta:g}" for beta in plan["betas"])
    planted = f"{shares['planted']:.0%} of them with a planted failure (one call does nothing)"
    bridge = f"{shares['bridge']:.0%} bridge pairs, {planted}"
    return (
        f"Supervised on responses only: {plan['steps']:,} steps of {plan['batch']} examples ({counts}), AdamW, peak "
        f"learning rate {plan['lr']:g} ({plan['warmup_steps']} steps up, then in a line down to 5 %), betas {betas}, "
        f"weight decay {plan['weight_decay']:g}, gradient norm at most 1, seed {origin['seed']}. Of the `compose` examples "
        f"{atoms:.0%} are single calls, {shares['priming']:.0%} one call among identities (depth 2 to 4), and "
        f"{'nothing else' if cold else bridge}."
    )


def _curve(curve: Sequence[Mapping[str, float]]) -> str:
    lines = ["| step | loss (nats per token) | L1 | L2 |", "|---:|---:|---:|---:|"]
    lines += [f"| {row['step']:.0f} | {row['loss']:.3f} | {row['L1']:.3f} | {row['L2']:.3f} |" for row in curve]
    return "\n".join(lines)


def write_curve(curve: Sequence[Mapping[str, float]], *, width: int = 560, height: int = 260) -> str:
    """An SVG picture of the training curve: loss, and accuracy of one and two calls, over the steps; all on 0 to 1."""
    left, right, top, bottom = 40, 70, 14, 30
    last = max((row["step"] for row in curve), default=1.0)

    def place(step: float, value: float) -> str:
        x = left + (width - left - right) * step / last
        y = top + (height - top - bottom) * (1 - min(value, 1.0))
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        (x, y), end = place(0, value).split(","), place(last, value).split(",")[0]
        parts.append(
            f'<path d="M{x} {y}H{end}" stroke="#dddddd"/><text x="{left - 34}" y="{y}" dy="4">{value:.2f}</text>'
        )
    for step in (0.0, last / 2, last):
        x = place(step, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{height - 12}" text-anchor="middle">{step:.0f}</text>')
    for name, colour in COLOURS.items():
        points = " ".join(place(row["step"], row[name]) for row in curve)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if curve:
            x, y = place(last, curve[-1][name]).split(",")
            parts.append(f'<text x="{float(x) + 6:.1f}" y="{y}" dy="4" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
