"""The words that stages are written in: rows, metrics, random numbers, the registry."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from covey import metrics
from covey.batch import Keep, Live
from covey.errors import ConfigError
from covey.random import Draws, key, permutation, splitmix
from covey.registry import Component, build, component, dump, kinds, plain
from covey.stages.surrogates import Clip
from covey.stages.weighting import TokenMean
from covey.types import Rollout, RolloutKey, Stop, Turn
from tests.stages.data import as_credited, draw_batch

# Rows


def test_rows_select_everything_that_has_rows() -> None:
    batch = as_credited(draw_batch(1)).with_(penalty_weight={"kl": torch.rand(draw_batch(1).mask.shape).double()})
    index = torch.tensor([2, 0])
    some = batch.rows(index)
    assert some.size == 2
    for field in dataclasses.fields(batch):
        before, after = getattr(batch, field.name), getattr(some, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(after, before[index]), field.name
    assert torch.equal(some.keep.loss, batch.keep.loss[index])
    assert torch.equal(some.columns["ref_logp"], batch.columns["ref_logp"][index])
    assert torch.equal(some.penalty_weight["kl"], batch.penalty_weight["kl"][index])
    assert set(some.prompts) == {int(group) for group in batch.group[index]}
    assert some.reward_names == batch.reward_names


def test_rows_are_frozen() -> None:
    batch = draw_batch(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.mask = batch.mask
    assert batch.with_(reward_weights=(2.0, 2.0)).reward_weights == (2.0, 2.0)
    assert batch.reward_weights == (1.0, 2.0)
    assert Keep.all(3).rows(torch.tensor([0])).loss.tolist() == [True]


def test_live_outputs_by_name() -> None:
    live = Live(torch.zeros(1, 2), {"entropy": torch.ones(1, 2)})
    assert list(live.tensors()) == ["logp", "entropy"]
    again = Live.of(live.tensors())
    assert torch.equal(again.logp, live.logp)
    assert again.outputs.keys() == {"entropy"}


def test_the_length_of_a_rollout_is_what_the_policy_said() -> None:
    turns = (Turn((1, 2), (-1.0, -1.0)), Turn((3, 4, 5), None, by="env"), Turn((6,), (-1.0,)))
    rollout = Rollout(RolloutKey("p", 0), turns, Stop.END, 8)
    assert rollout.length == 3
    assert rollout.with_(limit=9).limit == 9


# Metrics


@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=12), parts=st.integers(1, 4))
def test_metrics_merge_exactly(values: list[float], parts: int) -> None:
    """A mean over slices of different size is the mean over all, not the mean of means."""
    slices = [values[at::parts] for at in range(parts)]
    merged = metrics.merge(
        {
            "mean": metrics.mean(sum(part), len(part)),
            "sum": metrics.total(sum(part)),
            "max": metrics.highest(max(part, default=-math.inf)),
            "min": metrics.lowest(min(part, default=math.inf)),
        }
        for part in slices
    )
    expected = {"mean": sum(values) / len(values), "sum": sum(values), "max": max(values), "min": min(values)}
    assert metrics.values(merged) == pytest.approx(expected, abs=1e-12)


def test_a_mean_of_nothing_is_not_zero() -> None:
    assert math.isnan(metrics.mean(0.0, 0).value)
    assert (metrics.mean(0.0, 0) + metrics.mean(3.0, 2)).value == 1.5


def test_kinds_of_metrics_do_not_mix() -> None:
    with pytest.raises(TypeError, match="cannot merge a mean with a sum"):
        metrics.mean(1.0) + metrics.total(1.0)


# Random numbers


def test_keys_tell_tuples_apart() -> None:
    tuples = [("a", "b"), ("ab",), ("a", "b", ""), ("", "a", "b"), (1,), ("1",), (1, 2), (12,), ("a", 3)]
    tuples += [("a\x1fint:3",), ("a\x1f", 3), ("a", "\x1fint:3"), ("a\x1f int:3",)]
    assert len({key(*parts) for parts in tuples}) == len(tuples)


def test_random_numbers_never_change() -> None:
    """Runs, data sets and noise depend on these very numbers."""
    assert splitmix(0) == 0xE220A8397B1DCDAF  # first output of SplitMix64 seeded with 0
    assert key(0, "sample", "p", 1) == key(0, "sample", "p", 1)
    draws, again = Draws(7, "golden"), Draws(7, "golden")
    assert [draws.bits() for _ in range(3)] == [again.bits() for _ in range(3)]
    assert Draws(7, "golden").bits() == 9826103624639297674


def test_draws_are_uniform() -> None:
    draws = Draws(1, "uniform")
    values = [draws.uniform() for _ in range(4000)]
    assert all(0 <= value < 1 for value in values)
    assert abs(sum(values) / 4000 - 0.5) < 4 * math.sqrt(1 / 12 / 4000)
    counts = Counter(draws.below(6) for _ in range(6000))
    assert set(counts) == set(range(6))
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 30  # chi square, 5 degrees: p < 2e-5
    assert {draws.between(3, 5) for _ in range(100)} == {3, 4, 5}
    assert {draws.choice("ab") for _ in range(50)} == {"a", "b"}


@given(n=st.integers(0, 30), seed=st.integers(0, 100))
def test_permutations(n: int, seed: int) -> None:
    order = permutation(n, seed, "order")
    assert sorted(order) == list(range(n))
    assert order == permutation(n, seed, "order")


def test_permutations_are_uniform() -> None:
    counts = Counter(tuple(permutation(3, seed, "p")) for seed in range(1200))
    assert len(counts) == 6
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 30


# Registry


@component("test_stage", "sample")
class _Sample(Component):
    """A component for these tests."""

    size: int = Field(ge=1, description="how large")
    inner: TokenMean = Field(default=TokenMean(), description="something nested")


def test_a_component_by_value_by_kind_or_as_plain_data() -> None:
    value = Clip(low=0.1)
    assert build("surrogate", value, "x") is value
    assert build("surrogate", "clip", "x") == Clip()
    assert build("surrogate", {"kind": "clip", "low": 0.1}, "x") == value
    assert build("surrogate", dump(value), "x") == value
    assert list(dump(value)) == ["kind", "low", "high", "dual"]
    assert kinds("test_stage") == {"sample": _Sample}
    assert plain({"a": (TokenMean(), [1])}) == {"a": [{"kind": "token_mean"}, [1]]}


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("sampel", "x: there is no test_stage 'sampel'. Did you mean 'sample'?"),
        ({"size": 1}, "x: {'size': 1} is no test_stage. Give a kind: sample."),
        ({"kind": ["sample"]}, "x: there is no test_stage '['sample']'. Did you mean 'sample'?"),
        (3, "x: 3 is no test_stage. Give a kind: sample."),
        (Clip(), "x: Clip is a surrogate, not a test_stage"),
        ("sample", "x.size: absent. _Sample needs it."),
        ({"kind": "sample", "size": 0}, "x.size: got 0. Input should be greater than or equal to 1."),
        ({"kind": "sample", "size": 1, "sise": 2}, "x.sise: _Sample has no field 'sise'. Did you mean 'size'?"),
        ({"kind": "sample", "size": math.nan}, "x.size: got nan. Input should be a finite number."),
    ],
)
def test_mistakes_are_one_line(value: object, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("test_stage", value, "x")
    assert str(caught.value) == line


def test_a_kind_is_taken_once() -> None:
    with pytest.raises(ConfigError, match=r"surrogate.clip: already registered by covey.stages.surrogates"):
        component("surrogate", "clip")(type("Clip", (Component,), {"__module__": "elsewhere"}))
    component("surrogate", "clip")(Clip)  # the same class again, as after a reload
    assert kinds("surrogate")["clip"] is Clip
