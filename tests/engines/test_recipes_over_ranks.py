"""Every recipe through the real scorer and cluster: neither micro-batches, row orders, padding nor ranks change a gradient."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import finish, start
from recipe_steps import BUDGET, CASES, find_gradient, improve, list_recipes, make_batch, make_cluster
from safetensors.torch import load_file
from torch import Tensor
from toy_learner import distance

from covey.batch import Batch
from covey.engines.cluster import Cluster
from covey.engines.world import World

RECIPES = list_recipes()
GRADIENT = {"float64": 1e-12, "float32": 1e-6}
WEIGHTS = {"float64": 1e-12, "float32": 1e-5}
NEAR = {"float64": 1e-10, "float32": 1e-4}
BUDGETS = (10**6, 150, 40)
"""Tokens per slice: all rows together, some groups together, groups cut apart."""


def single(dtype: str, name: str, budget: int = BUDGET) -> Cluster:
    """A fresh cluster of one process."""
    return make_cluster(RECIPES[name], getattr(torch, dtype), World(), budget=budget)


def widen(batch: Batch, by: int) -> Batch:
    """The same rows with more padding, which holds rubbish."""

    def wide(value: Tensor) -> Tensor:
        rubbish = math.nan if value.is_floating_point() else 7
        return torch.cat([value, torch.full((batch.size, by), rubbish, dtype=value.dtype)], 1)

    whole = {name: wide(getattr(batch, name)) for name in ("tokens", "sampled_logp", "old_logp", "turn", "version")}
    mask = torch.cat([batch.mask, torch.zeros(batch.size, by, dtype=torch.bool)], 1)
    return replace(batch, **whole, mask=mask, columns={name: wide(value) for name, value in batch.columns.items()})


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_no_arrangement_of_rows_changes_the_gradient(dtype: str, name: str) -> None:
    recipe = RECIPES[name]
    batch = make_batch(recipe, single(dtype, name))
    expected = find_gradient(recipe, single(dtype, name, BUDGETS[0]), batch)
    assert sum(float(value.abs().sum()) for value in expected.values()) > 0
    order = torch.randperm(batch.size, generator=torch.Generator().manual_seed(3))
    shuffled, padded = batch.rows(order), widen(batch, 5)
    for arranged, budget in ((batch, 150), (batch, 40), (shuffled, BUDGETS[0]), (shuffled, 40), (padded, 150)):
        assert distance(find_gradient(recipe, single(dtype, name, budget), arranged), expected) <= GRADIENT[dtype]


@pytest.mark.parametrize("name", ["coupled by step", "coupled by group"])
def test_states_do_not_depend_on_the_split(name: str) -> None:
    """The adaptive penalty's coefficient and the weights after five optimizer steps, whatever the micro-batches."""
    weights, told = improve(RECIPES[name], single("float64", name, BUDGETS[0]))
    state = told["states"]["penalty.test_adaptive_kl"]
    assert state != {"coef": 0.2}
    for budget in BUDGETS[1:]:
        others, other = improve(RECIPES[name], single("float64", name, budget))
        assert distance(others, weights) <= 1e-12
        assert other["states"]["penalty.test_adaptive_kl"] == pytest.approx(state, rel=1e-12)


@pytest.mark.distributed
@pytest.mark.long
def test_two_ranks_do_what_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of one step; weights, states and metrics after five optimizer steps."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    processes = start(Path(__file__).with_name("recipe_steps.py"), [str(tmp_path)], size=2)
    found = finish(processes, timeout_s=200.0)
    assert [code for code, _ in found] == [0, 0], found
    for at, (dtype, name) in enumerate(CASES):
        recipe, cluster = RECIPES[name], single(dtype, name)
        gradient = find_gradient(recipe, cluster, make_batch(recipe, cluster))
        assert distance(load_file(tmp_path / f"{at}-gradient.safetensors"), gradient) <= GRADIENT[dtype], (dtype, name)
        weights, told = improve(recipe, single(dtype, name))
        assert distance(load_file(tmp_path / f"{at}-weights.safetensors"), weights) <= WEIGHTS[dtype], (dtype, name)
        other, near = json.loads((tmp_path / f"{at}.json").read_text()), NEAR[dtype]
        assert list(other["metrics"]) == list(told["metrics"])
        assert other["metrics"] == pytest.approx(told["metrics"], rel=near, abs=near, nan_ok=True), (dtype, name)
        assert other["states"].keys() == told["states"].keys()
        for part, state in told["states"].items():
            assert other["states"][part].keys() == state.keys()
            for key, value in state.items():
                assert other["states"][part][key] == pytest.approx(value, rel=near), (dtype, name, key)
