"""Presets against the numbers of the peers' own code, kept as files: `make parity` writes them anew with the peers installed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.parity.data import Case
from benchmarks.parity.ours import Found
from covey import recipes

FOLDER = Path(__file__).parent / "parity"
PEERS = ("openrlhf", "trl", "verl")
SHARED = {
    "trl": {"GRPOTrainer", "GRPOTrainer, sequence", "RLOOTrainer", "GMPOTrainer"},
    "verl": {"vanilla", "gspo", "geo_mean", "cispo", "sapo", "grpo", "rloo", "reinforce_plus_plus", "gae"},
    "openrlhf": {"ppo", "gspo", "group_norm", "rloo", "reinforce", "reinforce_baseline", "gae"},
}
"""What has to be among the files, so that they cannot be emptied unseen."""


@cache
def read(peer: str) -> tuple[dict[str, Any], dict[str, Case]]:
    """The file of a peer, and its batches."""
    data = json.loads((FOLDER / f"{peer}.json").read_text(encoding="utf-8"))
    return data, {name: Case.of(case) for name, case in data["cases"].items()}


def found(entry: dict[str, Any]) -> Found:
    """One number of a peer, as the benchmark had it."""
    return Found(**{**entry, "tensor": torch.tensor(entry["tensor"], dtype=torch.float64)})


def entries() -> list[Any]:
    """Every comparison of every peer."""
    return [
        pytest.param(peer, entry, id=" ".join(filter(None, [peer, entry["call"], entry["mode"], entry["note"]])))
        for peer in PEERS
        for entry in read(peer)[0]["found"]
    ]


@pytest.mark.parametrize(("peer", "entry"), entries())
def test_a_preset_is_its_peer(peer: str, entry: dict[str, Any]) -> None:
    """Loss, gradient or advantages of one undivided batch, within 1e-9, or what a peer's float32 allows."""
    difference = found(entry).difference(read(peer)[1])
    assert difference <= entry["limit"] <= 2e-6


@pytest.mark.parametrize("peer", PEERS)
def test_nothing_that_is_shared_is_missing(peer: str) -> None:
    data = read(peer)[0]
    assert {entry["call"] for entry in data["found"]} >= SHARED[peer]
    assert data["version"] == {"trl": "1.16.0", "verl": "0.9.1", "openrlhf": "0.11.2"}[peer]


def test_every_preset_is_compared() -> None:
    compared = {entry["preset"] for peer in PEERS for entry in read(peer)[0]["found"]}
    assert compared == {name for name in recipes.names() if name.split("@")[-1] in PEERS and "@" in name}


def test_the_page_tells_of_every_comparison_and_disagreement() -> None:
    text = (Path(__file__).parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
    assert f"**{sum(len(read(peer)[0]['found']) for peer in PEERS)} comparisons;" in text
    assert all(f"### D{number}: " in text for number in range(1, 33))


def test_exactness_is_the_rule() -> None:
    """Only what a peer is known to take in float32 may be further off than 1e-9."""
    rough = {(peer, entry["call"]) for peer in PEERS for entry in read(peer)[0]["found"] if entry["limit"] > 1e-9}
    kl = {"group_norm", "dr_grpo", "rloo", "reinforce", "reinforce_baseline", "gae"}
    assert rough == {("verl", "grpo_vectorized"), ("verl", "gdpo"), *(("openrlhf", name) for name in kl)}


def test_a_changed_option_is_seen() -> None:
    """The comparison can fail: another bound, another eps, another weighting."""
    data, cases = read("trl")
    for change in ({"surrogate.high": 0.21}, {"weighting": "rollout_mean"}):
        entry = next(entry for entry in data["found"] if entry["mode"] == "dapo" and not entry["changes"])
        assert found({**entry, "changes": change}).difference(cases) > 1e-6
    entry = next(entry for entry in data["found"] if entry["mode"] == "scale_rewards=group")
    assert found({**entry, "changes": {"advantage.eps": 1e-6}}).difference(cases) > 1e-6
