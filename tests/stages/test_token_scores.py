"""Scores per token and per component, and the advantages that read them: oracles, goldens by hand, what is refused."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covey.batch import Batch, Keep
from covey.errors import ConfigError
from covey.recipes.recipe import Recipe
from covey.stages.advantages import ComponentNorm, GroupNorm
from covey.stages.credit import credit, initial_states
from covey.stages.masked import broadcast
from covey.stages.mix import KlSum, Separate, SoftOverlong, TokenKl, WeightedSum, last_tokens
from covey.stages.returns import ReturnToGo
from covey.stages.shapers import Whiten
from tests.stages import oracle_credit as oracle
from tests.stages.contract import BASE
from tests.stages.data import draw_batch
from tests.stages.test_advantages import ONE, TWO, batch_of
from tests.stages.test_whiten import ragged, whitened

SEEDS = st.integers(0, 10_000)
R1, R2 = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def with_columns(batch: Batch, **columns: torch.Tensor) -> Batch:
    """The batch with more columns."""
    return batch.with_(columns={**batch.columns, **columns})


def one_row(mask: str, score: list[float] | float) -> Batch:
    """A single row whose policy tokens are the 1s of `mask`."""
    chosen = torch.tensor([[sign == "1" for sign in mask]])
    values = torch.tensor([score], dtype=torch.float64)
    return with_columns(batch_of([0.0]).with_(mask=chosen), score=values)


# KL in the score


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@given(seed=SEEDS)
def test_the_score_of_a_token_is_the_formula(estimator: str, seed: int) -> None:
    batch = draw_batch(seed, graded=True)
    rows = WeightedSum()(batch).tolist()
    found = TokenKl(coef=0.3, estimator=estimator)(batch)
    expected = torch.tensor(oracle.token_scores(batch, rows, 0.3, estimator), dtype=torch.float64)
    assert torch.allclose(found, expected.reshape(found.shape), rtol=1e-12, atol=1e-12)


def test_goldens_of_kl_in_the_score() -> None:
    batch = one_row("1101", 0.0).with_(
        reward=torch.tensor([[2.0]], dtype=torch.float64),
        old_logp=torch.tensor([[-1.0, -2.0, 0.0, -0.5]]),
    )
    batch = with_columns(batch, ref_logp=torch.tensor([[-1.5, -1.0, 9.0, -0.5]]))
    assert TokenKl(coef=0.1)(batch).tolist() == [[pytest.approx(v) for v in (-0.05, 0.1, 0.0, 2.0)]]
    assert KlSum(coef=0.1)(batch).tolist() == [pytest.approx(0.05)]
    assert WeightedSum(shaping=(KlSum(coef=0.1),))(batch).tolist() == [pytest.approx(2.05)]
    assert last_tokens(batch.mask).tolist() == [[False, False, False, True]]


@given(seed=SEEDS)
def test_the_sum_over_a_response_is_the_same_in_both_forms(seed: int) -> None:
    batch = draw_batch(seed)
    total = TokenKl(coef=0.05)(batch).sum(1)
    apart = KlSum(coef=0.05)(batch)
    single = torch.tensor([int((batch.rollout == r).sum()) == 1 for r in batch.rollout]) & batch.mask.any(1)
    assert torch.allclose(total[single], (WeightedSum()(batch) + apart)[single], rtol=1e-9, atol=1e-9)


def test_rows_of_one_rollout_share_its_divergence() -> None:
    batch = batch_of([0.0, 0.0], [0.0])
    batch = with_columns(batch.with_(rollout=torch.tensor([5, 5, 6])), ref_logp=batch.old_logp - 1.0)
    assert KlSum(coef=0.1)(batch).tolist() == [pytest.approx(v) for v in (-0.4, -0.4, -0.2)]


def test_an_adaptive_controller_moves_the_coefficient_after_the_batch() -> None:
    """coef *= 1 + clip(KL / target - 1, -0.2, 0.2) * rollouts / horizon."""
    part = TokenKl(coef=0.1, controller="adaptive", target=0.2, horizon_rollouts=100)
    batch = batch_of([0.0, 0.0], [0.0, 0.0])
    for gap, after in ((0.21, 0.1 * (1 + 0.05 * 4 / 100)), (9.0, 0.1 * (1 + 0.2 * 4 / 100)), (-1.0, 0.0992)):
        near = with_columns(batch, ref_logp=batch.old_logp - gap)
        score, state = part(near, state=part.initial())
        assert score[0, 0] == pytest.approx(-0.1 * gap)
        assert state == {"coef": pytest.approx(after)}
    assert part(batch.with_(mask=torch.zeros_like(batch.mask), columns=near.columns), state={"coef": 0.3})[1] == {
        "coef": 0.3
    }
    recipe = BASE.but(mix=part, advantage=ReturnToGo())
    _, states, metrics = credit(recipe, near, initial_states(recipe))
    assert metrics["state/token_kl/coef"].value == pytest.approx(0.0992)
    assert metrics["kl/in_score"].value == pytest.approx(-1.0)
    assert states["mix.token_kl"] == {"coef": pytest.approx(0.0992)}


def test_a_fixed_controller_reads_no_target() -> None:
    with pytest.raises(ConfigError, match=r"recipe.mix.target: nobody reads it with controller=fixed"):
        TokenKl(target=0.5)


def test_a_row_without_a_score_leaves_loss_and_statistics() -> None:
    batch = with_columns(batch_of([1.0, math.nan, 0.0]), ref_logp=torch.zeros(3, 2))
    credited, _, metrics = credit(BASE.but(mix=TokenKl(), advantage=ReturnToGo()), batch, {})
    assert credited.keep.loss.tolist() == [True, False, True]
    assert (credited.advantage[1] == 0).all()
    assert credited.advantage.isfinite().all()
    assert metrics["keep/loss"].value == pytest.approx(2 / 3)


# Returns to go


@given(seed=SEEDS, gamma=st.sampled_from([1.0, 0.9, 0.0]))
def test_returns_are_the_formula(seed: int, gamma: float) -> None:
    batch = draw_batch(seed, graded=True)
    score = TokenKl(coef=0.3)(batch)
    found = ReturnToGo(gamma=gamma)(with_columns(batch, score=score))
    expected = torch.tensor(oracle.returns(score.tolist(), batch.mask.tolist(), gamma), dtype=torch.float64)
    assert torch.allclose(found, expected.reshape(found.shape), rtol=1e-9, atol=1e-12)


def test_what_an_environment_says_neither_resets_nor_discounts_a_return() -> None:
    """A reward at the end of two turns reaches the tokens of the first; some trainers multiplied it by the mask between."""
    assert ReturnToGo()(one_row("110011", 1.0)).tolist() == [[1, 1, 0, 0, 1, 1]]
    late = one_row("110011", [0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    assert ReturnToGo(gamma=0.5)(late).tolist() == [[0.125, 0.25, 0, 0, 0.5, 1]]
    garbage = one_row("110011", [0.0, 0.0, math.nan, math.inf, 0.0, 1.0])
    assert ReturnToGo()(garbage).tolist() == [[1, 1, 0, 0, 1, 1]]


def test_a_score_per_row_stands_on_its_last_token() -> None:
    assert ReturnToGo(gamma=0.5)(one_row("1101", 8.0)).tolist() == [[2, 4, 0, 8]]
    assert (ReturnToGo()(one_row("0000", 8.0)) == 0).all()


def test_rows_outside_the_statistics_have_no_return() -> None:
    batch = batch_of([1.0, 2.0])
    batch = batch.with_(keep=Keep(batch.keep.loss, torch.tensor([True, False]), batch.keep.denominator))
    assert ReturnToGo()(batch).tolist() == [[1, 1], [0, 0]]


# One score per component


@pytest.mark.parametrize("ddof", [0, 1])
@given(seed=SEEDS, graded=st.booleans(), unscored=st.sampled_from([0.0, 0.3]))
def test_component_norm_is_the_formula(ddof: int, seed: int, graded: bool, unscored: float) -> None:
    batch = draw_batch(seed, graded=graded, components=3, unscored=unscored)
    batch = with_columns(batch, score=Separate()(batch))
    found = ComponentNorm(weights={"part1": 0.5}, ddof=ddof, eps=1e-4)(batch)
    expected = oracle.component_norm(batch.reward.tolist(), batch.group.tolist(), (1.0, 0.5, 3.0), ddof, 1e-4)
    rows = broadcast(torch.tensor(expected, dtype=torch.float64), batch.mask)
    assert torch.allclose(found, rows, rtol=1e-9, atol=1e-9)


def two_rewards(lengths: tuple[int, ...] = (2, 4, 6, 8)) -> Batch:
    """Two groups of four with two rewards of weight 1."""
    batch = ragged(ONE, TWO, lengths=lengths)
    reward = torch.tensor([R1, R2], dtype=torch.float64).T.contiguous()
    return with_columns(batch.with_(reward=reward, reward_names=("a", "b"), reward_weights=(1.0, 1.0)), score=reward)


def test_goldens_of_decoupled_rewards() -> None:
    batch = two_rewards()
    advantage = ComponentNorm(eps=1e-4)(batch)
    before = [round(v, 6) for v in advantage[:, 0].tolist()]
    assert before == [2.365575, 0.365975, -1.365775, -1.365775, 0.365975, 0.365975, -1.365775, 0.633825]

    def final(part: Whiten) -> list[float]:
        return [round(v, 6) for v in part(advantage, batch)[:, 0].tolist()]

    per_rollout = [1.806937, 0.279549, -1.043243, -1.043243, 0.279549, 0.279549, -1.043243, 0.484145]
    per_token = [2.438063, 0.640392, -0.916479, -0.916479, 0.640392, 0.640392, -0.916479, 0.881192]
    assert final(Whiten(eps=1e-4, inside=False)) == per_rollout
    assert final(Whiten(unit="token")) == per_token


def test_the_sum_cannot_tell_apart_what_components_can() -> None:
    """The last response has a total of 1 like the first two: normalised after the sum they are worth the same."""
    batch = two_rewards()
    total = with_columns(batch, score=batch.reward.sum(1))
    found = [round(v, 6) for v in GroupNorm(eps=1e-4)(total)[:, 0].tolist()]
    assert found == [1.305446, 0.261089, -0.783268, -0.783268, 0.4999, 0.4999, -1.4997, 0.4999]


def test_distinct_advantages_per_group_are_the_papers() -> None:
    """Different (sorted) advantage vectors over all outcomes of a group: after the sum, without a std, and decoupled."""

    def count(size: int, components: int) -> tuple[int, int, int]:
        seen: tuple[set[tuple[float, ...]], ...] = (set(), set(), set())
        cells = list(product((0.0, 1.0), repeat=size * components))
        batch = batch_of(*[[0.0] * size for _ in cells])
        reward = torch.tensor(cells, dtype=torch.float64).reshape(-1, components)
        names = tuple("abc"[:components])
        batch = batch.with_(reward=reward, reward_names=names, reward_weights=(1.0,) * components)
        total = with_columns(batch, score=reward.sum(1))
        each = with_columns(batch, score=reward)
        made = (GroupNorm(eps=0.0)(total), GroupNorm(scale="none")(total), ComponentNorm(eps=0.0)(each))
        for at, advantage in enumerate(made):
            rows = advantage[:, 0].reshape(-1, size).sort(1).values
            seen[at].update(tuple(round(v, 9) + 0.0 for v in row) for row in rows.tolist())
        return tuple(len(found) for found in seen)

    assert [count(2, 2), count(3, 2), count(4, 2)] == [(2, 3, 3), (4, 6, 6), (7, 10, 14)]


def test_conditions_ask_the_raw_component() -> None:
    reward = torch.tensor([[1.0, 5.0], [0.5, 6.0], [0.0, 7.0], [math.nan, 8.0]], dtype=torch.float64)
    batch = batch_of([0.0] * 4).with_(reward=reward, reward_names=("right", "short"), reward_weights=(1.0, 1.0))
    part = Separate(conditions={"short": {"on": "right", "at_least": 0.5}})
    assert part(batch)[:3].tolist() == [[1.0, 5.0], [0.5, 6.0], [0.0, 0.0]]
    assert part(batch)[3].isnan().all()
    both = Separate(conditions={"right": {"on": "short", "at_least": 6.0}, "short": {"on": "right", "at_least": 0.5}})
    assert both(batch)[:3].tolist() == [[0.0, 5.0], [0.5, 6.0], [0.0, 0.0]]
    with pytest.raises(ConfigError, match=r"recipe.mix.conditions.short: the reward has no component 'rihgt'"):
        Separate(conditions={"short": {"on": "rihgt", "at_least": 1.0}})(batch)
    with pytest.raises(ConfigError, match=r"recipe.advantage.weights.shrot"):
        ComponentNorm(weights={"shrot": 1.0})(with_columns(batch, score=reward))


def test_a_missing_component_adds_nothing_and_moves_nobody() -> None:
    reward = torch.tensor([[1.0, math.nan], [0.0, 1.0], [0.0, 0.0], [math.nan, math.nan]], dtype=torch.float64)
    batch = batch_of([0.0] * 4).with_(reward=reward, reward_names=("a", "b"), reward_weights=(1.0, 1.0))
    recipe: Recipe = BASE.but(mix=Separate(), advantage=ComponentNorm(eps=0.0))
    credited, _, metrics = credit(recipe, batch, {})
    third, half = math.sqrt(1 / 3), math.sqrt(0.5)
    expected = [2 * third, -third + half, -third - half, 0.0]
    assert credited.advantage[:, 0].tolist() == [pytest.approx(v) for v in expected]
    assert credited.keep.loss.tolist() == [True, True, True, False]
    assert metrics["group/equal_a"].value == 0


def test_components_and_advantages_have_to_fit() -> None:
    with pytest.raises(ConfigError, match=r"mix 'separate' gives a score per component, advantage 'group_norm' reads"):
        BASE.but(mix=Separate())
    with pytest.raises(ConfigError, match=r"mix 'token_kl' gives a score per token"):
        BASE.but(mix=TokenKl())


# Scales of the group norm


@pytest.mark.parametrize(("scale", "ddof"), [("batch_centered", 0), ("batch_centered", 1), ("mean", 1)])
@given(seed=SEEDS, graded=st.booleans())
def test_scales_are_the_formula(scale: str, ddof: int, seed: int, graded: bool) -> None:
    batch = draw_batch(seed, graded=graded, components=1)
    batch = with_columns(batch, score=batch.reward[:, 0])
    options = {"eps": 1e-3} if scale == "mean" else {"eps": 1e-3, "ddof": ddof}
    found = GroupNorm(scale=scale, **options)(batch)
    expected = oracle.group_scale(batch.reward[:, 0].tolist(), batch.group.tolist(), scale, ddof, 1e-3)
    rows = broadcast(torch.tensor(expected, dtype=torch.float64), batch.mask)
    assert torch.allclose(found, rows, rtol=1e-9, atol=1e-9)


def test_goldens_of_scales() -> None:
    def rounded(part: GroupNorm, *groups: list[float]) -> list[float]:
        return [round(value, 6) + 0.0 for value in part(batch_of(*groups))[:, 0].tolist()]

    centered = [1.620182, *[-0.540061] * 3, *[0.540061] * 3, -1.620182]
    assert rounded(GroupNorm(scale="batch_centered"), ONE, TWO) == centered
    assert rounded(GroupNorm(scale="batch", eps=1e-4), ONE, TWO)[:2] == [1.402859, -0.46762]
    assert rounded(GroupNorm(scale="mean", eps=0.0), ONE, TWO) == [3, -1, -1, -1, 0.333333, 0.333333, 0.333333, -1]
    assert rounded(GroupNorm(scale="mean", eps=0.0), [0.0, 0.0], [1.0, 1.0], [-1.0, 0.0]) == [0.0] * 6
    with pytest.raises(ConfigError, match=r"recipe.advantage.ddof: nobody reads it with scale=mean"):
        GroupNorm(scale="mean", ddof=0)


def test_whitened_goldens_from_rewards() -> None:
    """The plain form per token and the group's baseline per rollout, through the components that make them."""
    batch = ragged(ONE, TWO)
    plain = whitened(Whiten(unit="token"), batch, ReturnToGo()(batch)[:, 0].tolist())
    assert plain == [1.345628 if score else -0.724569 for score in ONE + TWO]
    baseline = whitened(Whiten(), batch, GroupNorm(scale="none")(batch)[:, 0].tolist())
    assert baseline == [1.620185, *[-0.540062] * 3, *[0.540062] * 3, -1.620185]


# Formulas


def test_formulas_show_their_options() -> None:
    assert r"+10^{-6}" in GroupNorm().latex()
    assert r"G-1" in GroupNorm(baseline="leave_one_out", scale="none").latex()
    assert "n'" in GroupNorm(scale="batch_centered").latex()
    assert "0.25^{d(t,t')}" in ReturnToGo(gamma=0.25).latex()
    assert "0.05" in KlSum().latex()
    assert "0.001" in TokenKl().latex()
    assert r"\beta" in TokenKl(controller="adaptive").latex()
    assert r"e^{" in TokenKl(estimator="k3").latex()
    assert r"r^{\mathrm{a\_b}}" in WeightedSum(weights={"a_b": 2}).latex()
    assert r"\tfrac" in WeightedSum(shaping=(SoftOverlong(),)).latex()
    assert r"\ge 0.5" in Separate(conditions={"a": {"on": "b", "at_least": 0.5}}).latex()
    assert r"w_{\mathrm{a}}=2" in ComponentNorm(weights={"a": 2}).latex()
