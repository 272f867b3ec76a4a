"""docs/parity.md: the tables of equality, and the disagreements one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.parity.disagreements import Row
from benchmarks.parity.ours import Found

TITLES = {"trl": "TRL", "verl": "verl", "openrlhf": "OpenRLHF"}
AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
WEIGHTINGS = ("token_mean", "rollout_mean", "rollout_sum", "constant")
"""What verl and OpenRLHF call an aggregation, and covey's weighting for it: of gain and penalty alike."""


WHAT = {"loss": "loss, gradient", "advantage": "advantages", "critic": "value loss, gradient"}


@dataclass(frozen=True)
class Line:
    """One comparison and its largest difference over all batches."""

    found: Found
    difference: float


def write(versions: Mapping[str, str], lines: Mapping[str, Sequence[Line]], rows: Sequence[Row], batches: int) -> str:
    """The whole page."""
    parts = [opening(versions, lines, batches)]
    for peer, found in lines.items():
        parts += [f"## {TITLES[peer]} {versions[peer]}", REMARKS[peer], table(found)]
    parts += [disagreements(rows), *(section(row) for row in rows), NOT_SHARED]
    return "\n\n".join(parts) + "\n"


def opening(versions: Mapping[str, str], lines: Mapping[str, Sequence[Line]], batches: int) -> str:
    """What the page is, and its sum."""
    every = [line for found in lines.values() for line in found]
    exact = [line for line in every if line.found.limit <= 1e-9]
    worst = max(line.difference for line in exact)
    named = ", ".join(f"{TITLES[peer]} {versions[peer]}" for peer in TITLES)
    return f"""# Parity

The peers' own functions and covey's presets on the same tensors: {named}, torch {versions["torch"]}, float64, on a CPU.
`make parity` makes an environment for the peers (`.venv-parity`), runs them, and writes this page and the numbers that
`make test` compares with afterwards, so that the equality is kept without the peers.

**{len(every)} comparisons; {len(exact)} of them in float64 throughout, whose largest difference is {worst:.1e}**: a loss and its
gradient by every token's log-probability, or the advantages; the largest of {batches} random batches of 8 responses with 10 to 20
tokens, holes of a tool's tokens in them, ratios on both sides of every bound. The others meet code that works in float32 inside
whatever it is given: there the limit is 2e-6.

A batch here is one undivided optimizer step. Where a peer's number depends on how a step is cut into micro-batches, that is
shown below and not imitated. Clip bounds and coefficients are set by `recipes.get(NAME).but(...)`, as in the column of changes.
What a preset changes is shown by `covey recipes diff grpo grpo@trl`; [the presets](recipes/peers.md) say what to know of each."""


REMARKS = {
    "trl": """`GRPOTrainer._compute_loss` and `_generate_and_score_completions` (likewise of `RLOOTrainer` and `GMPOTrainer`), the
methods themselves, on an object that carries only the attributes they read.""",
    "verl": """The registered functions of `verl.trainer.ppo.core_algos` with the counts of the whole step, as verl's engine does.
Its means over a response divide by L + 1e-8, which is the 1e-10 in the table; `token-sum` has no counterpart, since it
grows with the batch. Where the function heeds `loss_agg_mode`, the changes hold the weighting of the same name:
`token_mean`, `rollout_mean`, `rollout_sum`, `constant`.""",
    "openrlhf": """`PolicyLoss` and `RemoteExperienceMaker.compute_advantages_and_returns`, loaded from their files: the package
imports deepspeed and flash-attn on the way, which have stand-ins here that nothing calls. KL and batch statistics are taken in
float32 there.""",
}

NOT_SHARED = """## What is not compared

verl's `gpg`, `dro`, `opo`, `remax`, `optimal_token_baseline` and `grpo_passk` (the best response less the second best, arXiv
2503.19595; covey's `pass_k_training` is arXiv 2508.10751) have no recipe here. TRL's `a2po` and distillation trainers are other
methods. The scripts of the authors of GMPO, GVPO, DisCO and GFPO, and ROLL, are no packages and were not run; rows that rest on
them say so."""


def table(lines: Sequence[Line]) -> str:
    """One row per comparison; those that differ in the aggregation alone share a row."""
    rows: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for line in lines:
        found, shared = line.found, line.found.mode in AGGREGATIONS
        what = WHAT[found.kind]
        option = found.note if shared else ", ".join(filter(None, [found.mode, found.note]))
        key = (what, code(found.call), option, code(found.preset), code(changes(found, shared)))
        rows.setdefault(key, []).append((found.mode if shared else "", f"{line.difference:.0e}"))
    out = [
        "| what | peer's function | its mode or option | preset | changes | difference |",
        "|---|---|---|---|---|---|",
    ]
    for key, values in rows.items():
        cell = "<br>".join(f"{mode} {value}".strip() for mode, value in values)
        out.append("| " + " | ".join((*key, cell)) + " |")
    return "\n".join(out)


def changes(found: Found, shared: bool) -> str:
    """What is changed of the preset, without the weighting if the row has several."""
    kept = [f"{name}={plain(value)}" for name, value in found.changes.items() if not (shared and name == "weighting")]
    text = "; ".join(kept)
    for weighting in WEIGHTINGS if shared else ():
        text = text.replace(f",weighting={weighting}", "")
    return text


def code(text: str) -> str:
    """Text in code type."""
    return f"`{text}`" if text else ""


def plain(value: object) -> str:
    """A change in few signs."""
    if isinstance(value, Mapping):
        rest = ",".join(f"{k}={v}" for k, v in value.items() if k != "kind")
        return f"{value['kind']}({rest})" if rest else str(value["kind"])
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(plain(item) for item in value) + "]"
    return str(value)


def disagreements(rows: Sequence[Row]) -> str:
    """What the sections are, and a table of contents."""
    listed = "\n".join(f"| {row.name} | {row.topic} | {'yes' if row.ran else 'no: by covey alone'} |" for row in rows)
    return f"""## Where they disagree

Each row is a small case whose numbers come from the peers' own code, where it can be run.

| row | topic | peers' code was run |
|---|---|---|
{listed}"""


def section(row: Row) -> str:
    """One disagreement."""
    case = row.case[0].upper() + row.case[1:]
    shown = "\n".join(f"| {who} | {value} |" for who, value in row.shown)
    results = f"| who | result |\n|---|---|\n{shown}"
    return f"### {row.name}: {row.topic}\n\n{case}.\n\n{results}\n\n**Where covey stands.** {row.side}"
