"""What happens to rows before any gradient: score, filters, shapers, corrections, admission; and the sums beneath."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covey.batch import Keep
from covey.errors import ConfigError
from covey.stages.admit import Informative
from covey.stages.corrections import TruncatedImportance
from covey.stages.filters import Overlong, Varied
from covey.stages.masked import (
    bounds_by,
    broadcast,
    compact,
    count_by,
    divide,
    log_ratio,
    masked,
    moments_by,
    spread_by,
    sum_by,
)
from covey.stages.mix import SoftOverlong, WeightedSum
from covey.stages.shapers import SignWeight
from covey.types import STOPS, Group, Prompt, Rollout, RolloutKey, Stop
from tests.stages import oracle
from tests.stages.data import draw_batch, draw_keep, with_score

SEEDS = st.integers(0, 10_000)


def row_of_length(length: int, limit: int) -> Any:
    """A batch of one response."""
    base = draw_batch(0, groups=1, most=1, width=1, components=1).rows(torch.zeros(1, dtype=torch.long))
    return base.with_(mask=torch.ones(1, length, dtype=torch.bool), limit=torch.tensor([limit]))


# Score


@given(seed=SEEDS, components=st.integers(1, 4), unscored=st.sampled_from([0.0, 0.2]))
def test_the_score_is_the_weighted_sum(seed: int, components: int, unscored: float) -> None:
    batch = draw_batch(seed, components=components, graded=True, unscored=unscored)
    part = WeightedSum(weights={"part0": 0.5})
    for row, found in zip(batch.reward.tolist(), part(batch).tolist(), strict=True):
        weights = [0.5, *batch.reward_weights[1:]]
        expected = sum(weight * value for weight, value in zip(weights, row, strict=True))
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)


def test_a_component_of_weight_zero_may_be_unscorable() -> None:
    batch = draw_batch(1, components=2)
    batch = batch.with_(reward=torch.tensor([[1.0, math.nan]] * batch.size, dtype=torch.float64))
    assert WeightedSum(weights={"part1": 0.0})(batch).tolist() == [1.0] * batch.size
    assert WeightedSum()(batch).isnan().all()


def test_an_unknown_component_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe.mix.weights.prat0: .* Did you mean 'part0'\?"):
        WeightedSum(weights={"prat0": 1.0})(draw_batch(1))


def test_goldens_of_the_soft_overlong_punishment() -> None:
    """Budget 20480, cache 4096: nothing until 16384, then linearly down to -1."""
    part = SoftOverlong(cache_share=0.2)
    for length, expected in ((16000, 0.0), (16384, 0.0), (18432, -0.5), (20480, -1.0), (21000, -1.0)):
        assert float(part(row_of_length(length, 20480))) == pytest.approx(expected)


@given(length=st.integers(0, 60), limit=st.integers(1, 40), share=st.floats(0.05, 0.95), factor=st.floats(0.1, 3))
def test_the_punishment_is_the_formula(length: int, limit: int, share: float, factor: float) -> None:
    found = float(SoftOverlong(cache_share=share, factor=factor)(row_of_length(length, limit)))
    assert found == pytest.approx(factor * oracle.soft_overlong(length, limit, share * limit), rel=1e-9, abs=1e-9)


def test_a_share_of_zero_is_a_step_at_the_budget() -> None:
    part = SoftOverlong(cache_share=0.0, factor=2.0)
    assert [float(part(row_of_length(n, 10))) for n in (0, 9, 10, 11)] == [0.0, 0.0, 0.0, -2.0]


def test_shaping_is_added_to_the_score() -> None:
    batch = row_of_length(10, 10).with_(reward=torch.tensor([[3.0]], dtype=torch.float64))
    assert WeightedSum(shaping=(SoftOverlong(),))(batch).tolist() == [2.0]
    assert WeightedSum(shaping="soft_overlong") == WeightedSum(shaping=(SoftOverlong(),))


# Filters


def test_truncated_rows_leave_the_loss_and_if_asked_the_statistics() -> None:
    batch = draw_batch(3)
    stop = torch.arange(batch.size) % 2
    assert STOPS[1] == Stop.LENGTH
    batch, whole = batch.with_(stop=stop), stop == 0
    masks, excludes = Overlong()(batch), Overlong(mode="exclude")(batch)
    assert torch.equal(masks.loss, whole)
    assert torch.equal(excludes.loss, whole)
    assert masks.statistics.all()
    assert torch.equal(excludes.statistics, whole)
    assert masks.denominator.all()
    assert excludes.denominator.all()


@given(seed=SEEDS, tolerance=st.sampled_from([0.0, 0.5]), denominator=st.sampled_from(["all", "kept"]))
def test_groups_without_difference_leave(seed: int, tolerance: float, denominator: str) -> None:
    batch = draw_batch(seed, unscored=0.1)
    batch = with_score(batch, draw_keep(batch, seed))
    keep = Varied(tolerance=tolerance, denominator=denominator)(batch)
    scores, groups, counts = batch.columns["score"].tolist(), batch.group.tolist(), batch.keep.statistics.tolist()
    for i, group in enumerate(groups):
        rows = zip(scores, groups, counts, strict=True)
        peers = [s for s, g, c in rows if g == group and c and not math.isnan(s)]
        varied = bool(peers) and max(peers) - min(peers) > tolerance
        assert bool(keep.loss[i]) == varied
        assert bool(keep.denominator[i]) == (varied or denominator == "all")
    assert keep.statistics.all()


def test_filters_are_a_conjunction() -> None:
    yes, no = torch.tensor([True, True]), torch.tensor([True, False])
    both = Keep(yes, no, yes) & Keep(no, yes, yes)
    assert [part.tolist() for part in (both.loss, both.statistics, both.denominator)] == [
        [True, False],
        [True, False],
        [True, True],
    ]


# Shapers and corrections


@given(seed=SEEDS, positive=st.floats(0, 3), negative=st.floats(0, 3))
def test_signs_are_weighted(seed: int, positive: float, negative: float) -> None:
    batch = draw_batch(seed)
    advantage = torch.randn(batch.mask.shape, generator=torch.manual_seed(seed), dtype=torch.float64)
    found = SignWeight(positive=positive, negative=negative)(advantage, batch)
    for a, b in zip(advantage.flatten().tolist(), found.flatten().tolist(), strict=True):
        assert b == (positive if a > 0 else negative) * a


@given(seed=SEEDS, cap=st.floats(1, 5))
def test_the_correction_is_a_capped_ratio(seed: int, cap: float) -> None:
    batch = draw_batch(seed)
    found = TruncatedImportance(cap=cap)(batch)
    for i in range(batch.size):
        for t in range(batch.mask.shape[1]):
            ratio = math.exp(float(batch.old_logp[i, t] - batch.sampled_logp[i, t]))
            expected = min(ratio, cap) if batch.mask[i, t] else 0.0
            assert float(found[i, t]) == pytest.approx(expected, rel=1e-12)


@given(seed=SEEDS, cap=st.floats(1, 5))
def test_a_correction_of_rows_is_the_geometric_mean_of_capped_ratios(seed: int, cap: float) -> None:
    batch = draw_batch(seed)
    found = TruncatedImportance(cap=cap, unit="row")(batch)
    for i in range(batch.size):
        counted = batch.mask[i]
        ratios = [min(math.exp(x), cap) for x in (batch.old_logp[i] - batch.sampled_logp[i])[counted].tolist()]
        expected = math.prod(ratios) ** (1 / len(ratios)) if ratios else 0.0
        assert found[i][counted].tolist() == pytest.approx([expected] * len(ratios), rel=1e-12)
        assert (found[i][~counted] == 0).all()


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        TruncatedImportance(cap=0.9)


# Admission


def group_of(*rewards: dict[str, float] | None) -> Group:
    """A group by the rewards of its rollouts; None could not be scored, nor can a component that others have."""
    names = list(dict.fromkeys(name for given in rewards for name in given or {})) or ["right"]
    rollouts = tuple(
        Rollout(
            key=RolloutKey("p", index),
            turns=(),
            stop=Stop.END,
            limit=8,
            rewards=given or {},
            failures={name: "no" for name in names if name not in (given or {})},
        )
        for index, given in enumerate(rewards)
    )
    return Group("p#0", Prompt("p", (), None, "t"), (1,), rollouts)


def test_informative_groups_differ_in_their_outcome() -> None:
    part = Informative()
    assert part.admits(group_of({"right": 1.0}, {"right": 0.0}))
    assert not part.admits(group_of({"right": 1.0}, {"right": 1.0}))
    assert not part.admits(group_of({"right": 0.0}, {"right": 0.0}))
    assert not part.admits(group_of({"right": 0.1}, {"right": 0.1}, {"right": 0.1}))
    assert not part.admits(group_of({"right": 1.0}))
    assert not part.admits(group_of())


def test_the_outcome_is_one_component_and_never_the_shaped_sum() -> None:
    group = group_of({"right": 1.0, "short": 0.2}, {"right": 1.0, "short": 0.9})
    assert not Informative().admits(group)
    assert Informative(outcome="short").admits(group)
    assert not Informative(outcome="short", tolerance=0.7).admits(group)


def test_what_could_not_be_scored_is_left_out() -> None:
    assert not Informative().admits(group_of({"right": 1.0}, None))
    assert Informative().admits(group_of({"right": 1.0}, None, {"right": 0.0}))
    # The first component failed in one rollout: there the second one must not take its place.
    assert not Informative().admits(group_of({"right": 1.0, "form": 0.0}, {"form": 0.0}, {"right": 1.0, "form": 1.0}))


def test_an_outcome_that_the_reward_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe.admit.informative.outcome: .*'rihgt'. Did you mean 'right'\?"):
        Informative(outcome="rihgt").admits(group_of({"right": 1.0}, {"right": 0.0}))


def test_graded_outcomes_are_right_from_a_threshold() -> None:
    """0 < number of right ones < number of scored ones."""
    part = Informative(threshold=0.5)
    assert part.admits(group_of({"right": 0.5}, {"right": 0.4}))
    assert not part.admits(group_of({"right": 0.9}, {"right": 0.5}))
    assert not part.admits(group_of({"right": 0.1}, {"right": 0.4}, None))
    assert not part.admits(group_of({"right": 0.9}))
    assert Informative().admits(group_of({"right": 0.9}, {"right": 0.5}))
    assert "0.5" in part.latex()
    assert "-" in Informative().latex()
    with pytest.raises(ConfigError, match=r"recipe.admit.informative.tolerance: nobody reads it beside a threshold"):
        Informative(threshold=0.5, tolerance=0.1)


# Sums


@given(seed=SEEDS, ddof=st.sampled_from([0, 1]))
def test_statistics_follow_ids(seed: int, ddof: int) -> None:
    batch = draw_batch(seed, graded=True)
    keep = draw_keep(batch, seed).statistics
    values, ids = batch.reward.sum(1), batch.group.tolist()
    index, count = compact(batch.group)
    mean, std = moments_by(values, keep, index, count, ddof)
    low, high = bounds_by(values, keep, index, count)
    for at, group in enumerate(sorted(set(ids))):
        own = [v for v, g, k in zip(values.tolist(), ids, keep.tolist(), strict=True) if g == group and k]
        assert float(sum_by(masked(values, keep), index, count)[at]) == pytest.approx(sum(own), abs=1e-12)
        assert float(count_by(keep, index, count)[at]) == len(own)
        assert float(mean[at]) == pytest.approx(sum(own) / len(own) if own else 0.0, abs=1e-12)
        assert float(std[at]) == pytest.approx(oracle.deviation(own, ddof), abs=1e-12)
        assert (float(low[at]), float(high[at])) == (min(own, default=math.inf), max(own, default=-math.inf))
        assert float(spread_by(values, keep, index, count)[at]) == (max(own) - min(own) if own else 0.0)


def test_masked_values_never_enter() -> None:
    """0 * inf is NaN: the mask selects, it does not multiply; in the gradient too."""
    values = torch.tensor([1.0, math.inf, math.nan], requires_grad=True)
    out = masked(values, torch.tensor([True, False, False]))
    assert out.tolist() == [1.0, 0.0, 0.0]
    out.exp().sum().backward()
    assert values.grad.tolist() == pytest.approx([math.e, 0.0, 0.0])


def test_a_log_ratio_is_masked_before_it_is_exponentiated() -> None:
    new = torch.tensor([[0.5, 800.0, math.nan, 30.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[0.0, -math.inf, math.inf, 0.0]], dtype=torch.float64)
    out = log_ratio(new, old, torch.tensor([[True, False, False, True]]))
    assert out[0].tolist() == [0.5, 0.0, 0.0, 20.0]
    out.exp().sum().backward()
    assert new.grad[0].tolist() == pytest.approx([math.exp(0.5), 0.0, 0.0, 0.0])


def test_dividing_by_nothing_is_nothing() -> None:
    top = torch.tensor([1.0, 1.0], requires_grad=True)
    out = divide(top, torch.tensor([0.0, 2.0]))
    out.sum().backward()
    assert out.tolist() == [0.0, 0.5]
    assert top.grad.tolist() == [0.0, 0.5]


def test_one_number_per_row_on_its_own_tokens() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    assert broadcast(torch.tensor([2.0, math.nan]), mask).tolist() == [[2.0, 0.0], [0.0, 0.0]]
