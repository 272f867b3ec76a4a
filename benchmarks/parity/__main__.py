"""`make parity`: compare, write docs/parity.md, and keep the peers' numbers for the tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.parity import disagreements, openrlhf_peer, page, trl_peer, verl_peer
from benchmarks.parity.data import Case, draw_all
from benchmarks.parity.ours import Found

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "recipes" / "parity"
SEEDS = (0, 1, 2, 3, 4)
"""The tests keep the first one."""


def of_trl(cases: Mapping[str, Case]) -> Iterator[Found]:
    """Everything that TRL and covey share."""
    yield from trl_peer.losses(cases["ragged"], cases["cut"])
    yield from trl_peer.advantages(cases["ragged"], cases["solid"])


def of_verl(cases: Mapping[str, Case]) -> Iterator[Found]:
    """Everything that verl and covey share."""
    yield from verl_peer.losses(cases["ragged"])
    yield from verl_peer.advantages(cases["ragged"])


def of_openrlhf(cases: Mapping[str, Case]) -> Iterator[Found]:
    """Everything that OpenRLHF and covey share."""
    yield from openrlhf_peer.losses(cases["ragged"])
    yield from openrlhf_peer.advantages(cases["ragged"])


PEERS = {"trl": of_trl, "verl": of_verl, "openrlhf": of_openrlhf}


def compare(peer: str) -> list[page.Line]:
    """One line per comparison with its largest difference over all seeds."""
    lines: dict[int, page.Line] = {}
    for seed in SEEDS:
        cases = draw_all(seed)
        for at, found in enumerate(PEERS[peer](cases)):
            worst = lines[at].difference if at in lines else 0.0
            lines[at] = page.Line(found, max(worst, found.difference(cases)))
    return [lines[at] for at in sorted(lines)]


def keep(peer: str) -> dict[str, Any]:
    """The peer's numbers on the first batches, as plain data."""
    cases = draw_all(SEEDS[0])
    found = [entry(item) for item in PEERS[peer](cases)]
    return {
        "peer": peer,
        "version": version(peer),
        "cases": {name: case.plain() for name, case in cases.items()},
        "found": found,
    }


def entry(found: Found) -> dict[str, Any]:
    """One comparison as plain data."""
    names = ("kind", "call", "mode", "preset", "loss", "changes", "where", "limit", "note", "tokenwise")
    return {**{name: getattr(found, name) for name in names}, "tensor": found.tensor.tolist()}


def main() -> int:
    """Write the page and the fixtures; 1 if a preset is not its peer's equal."""
    torch.set_default_dtype(torch.float64)  # options that the peers turn into tensors must not be cut to float32
    torch.set_num_threads(1)
    lines = {peer: compare(peer) for peer in PEERS}
    FIXTURES.mkdir(exist_ok=True)
    for peer in PEERS:
        text = json.dumps(keep(peer), separators=(",", ":")).replace('{"kind"', '\n{"kind"')
        (FIXTURES / f"{peer}.json").write_text(text + "\n", encoding="utf-8")
    versions = {peer: version(peer) for peer in (*PEERS, "torch")}
    text = page.write(versions, lines, disagreements.all_rows(), len(SEEDS))
    (ROOT / "docs" / "parity.md").write_text(text, encoding="utf-8")
    far = [line for found in lines.values() for line in found if not line.difference <= line.found.limit]
    for line in far:
        print(
            f"{line.found.call} {line.found.mode} {line.found.note}: {line.found.preset} is off by {line.difference:.1e}"
        )
    print(f"{sum(map(len, lines.values()))} comparisons, {len(far)} beyond their limit; docs/parity.md written")
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())
