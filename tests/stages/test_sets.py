"""What is chosen from a group, and what a rollout is worth to sets of its group: oracles, goldens, exact expectations."""

from __future__ import annotations

import json
import math
from itertools import product

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covey.batch import Batch, Keep
from covey.errors import ConfigError
from covey.metrics import values as numbers
from covey.recipes.recipe import Recipe
from covey.stages.advantages import Advantage, GroupNorm
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.filters import KBest, KBestByDifficulty, Overlong, quantile
from covey.stages.masked import broadcast
from covey.stages.mix import KlSum, WeightedSum
from covey.stages.objective import objective, outputs
from covey.stages.penalties import Entropy, Kl
from covey.stages.setwise import PassAtK
from covey.stages.weighting import RolloutSum, TokenMean
from tests.stages import oracle_credit as oracle
from tests.stages.contract import BASE, case
from tests.stages.data import draw_batch, with_score
from tests.stages.test_advantages import batch_of

SEEDS = st.integers(0, 10_000)
REWARD = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
LENGTH = [9, 3, 2, 7, 4, 5, 8, 1]


def of_lengths(groups: list[list[float]], lengths: list[int]) -> Batch:
    """Groups of rows with these scores; `lengths` are those of all rows."""
    batch, own = batch_of(*groups), torch.tensor(lengths)
    mask = torch.arange(int(own.max()))[None] < own[:, None]
    blank = torch.zeros(mask.shape, dtype=torch.float64)
    return batch.with_(mask=mask, tokens=mask.long(), old_logp=blank, sampled_logp=blank, length=own)


# The k best of a group


@given(seed=SEEDS, k=st.integers(1, 5), metric=st.sampled_from(["shortest", "efficiency"]), graded=st.booleans())
def test_k_best_is_the_definition(seed: int, k: int, metric: str, graded: bool) -> None:
    batch = with_score(draw_batch(seed, graded=graded, unscored=0.1))
    scored = ~batch.columns["score"].isnan()
    batch = batch.with_(keep=Keep(scored, scored, torch.ones_like(scored)))
    keep = KBest(metric=metric, k=k)(batch)
    assert keep.loss.all()
    assert keep.denominator.all()
    kept = set(batch.rollout[keep.statistics].tolist())
    for group in batch.group.unique().tolist():
        own = sorted(set(batch.rollout[(batch.group == group) & scored].tolist()))
        rows = [(batch.rollout == rollout).nonzero().squeeze(1) for rollout in own]
        length = [int(batch.mask[at].sum()) for at in rows]
        score = [float(batch.columns["score"][at[0]]) for at in rows]
        ratio = [s / n if n else 0.0 for s, n in zip(score, length, strict=True)]
        best = oracle.k_best([-n for n in length] if metric == "shortest" else ratio, k)
        assert kept & set(own) == {own[i] for i in best}


def test_goldens_of_the_k_best() -> None:
    """Lengths 900 .. 100 in hundreds: the four shortest have one right answer, the four most efficient are all right."""
    batch = of_lengths([REWARD], LENGTH)
    recipe = BASE.but(filters=(KBest(k=4),), advantage=GroupNorm(ddof=0), weighting="token_mean")

    def found(recipe: Recipe) -> list[float]:
        return [round(v, 6) + 0.0 for v in credit(recipe, batch, initial_states(recipe))[0].advantage[:, 0].tolist()]

    assert found(recipe) == [0.0, 1.732047, -0.577349, 0.0, -0.577349, 0.0, 0.0, -0.577349]
    assert found(recipe.but(**{"advantage.ddof": 1}))[1:3] == [1.499997, -0.499999]
    efficient = KBest(metric="efficiency", k=4)(batch).statistics.nonzero().squeeze(1).tolist()
    assert efficient == [0, 1, 3, 5]
    assert found(recipe.but(filters=(KBest(metric="efficiency", k=4),))) == [0.0] * 8
    everybody = found(recipe.but(filters=(KBest(k=8),)))
    assert everybody == found(recipe.but(filters=()))


def test_the_rejected_stay_in_the_denominator_and_feel_the_penalties() -> None:
    """Token denominators 39 (all) and 10 (kept): the choice decides on the size of the step."""
    batch = of_lengths([REWARD], LENGTH)
    batch = batch.with_(columns={**batch.columns, "ref_logp": batch.old_logp})
    recipe = BASE.but(filters=(KBest(k=4),), weighting=TokenMean(), penalties=(Kl(coef=0.1, estimator="k2"), Entropy()))
    step = weigh(recipe, credit(recipe, batch, {})[0])
    assert float(step.weight.max()) == pytest.approx(1 / 39)
    assert (step.weight[batch.mask] > 0).all()
    assert (step.penalty_weight["kl"][batch.mask] > 0).all()
    kept = recipe.but(**{"filters.k_best.denominator": "kept"})
    fewer = weigh(kept, credit(kept, batch, {})[0])
    assert float(fewer.weight.max()) == pytest.approx(1 / 10)
    assert (fewer.weight[0] == 0).all()
    assert torch.equal(step.penalty_weight["kl"], fewer.penalty_weight["kl"])


def test_ties_go_to_the_rollout_that_was_sampled_first() -> None:
    batch = of_lengths([[0.0, 1.0, 0.0, 1.0]], [3, 3, 3, 3])
    assert KBest(k=2)(batch).statistics.tolist() == [True, True, False, False]
    shuffled = batch.rows(torch.tensor([3, 1, 2, 0]))
    assert KBest(k=2)(shuffled).statistics.tolist() == [False, True, False, True]


def test_long_wrong_answers_stay_under_negative_rewards() -> None:
    """Of wrong answers at -1 the raw ratio prefers the long ones, which are then punished most; clamped all are 0 and tie."""
    batch = of_lengths([[-1.0, -1.0, -1.0, 1.0]], [2, 8, 4, 4])
    assert KBest(metric="efficiency", k=2)(batch).statistics.tolist() == [False, True, False, True]
    clamped = KBest(metric="efficiency", k=2, clamp=True)
    assert clamped(batch).statistics.tolist() == [True, False, False, True]
    with pytest.raises(ConfigError, match=r"recipe.filters.k_best.clamp: nobody reads it with metric=shortest"):
        KBest(clamp=True)


def test_filters_act_one_after_the_other() -> None:
    """What a filter before took out of the statistics is not chosen from."""
    batch = of_lengths([[1.0, 0.0, 1.0, 0.0]], [1, 2, 3, 4])
    batch = batch.with_(stop=torch.tensor([1, 0, 0, 0]))
    recipe = BASE.but(filters=(Overlong(mode="exclude"), KBest(k=2)))
    credited, _, metrics = credit(recipe, batch, {})
    assert credited.keep.statistics.tolist() == [False, True, True, False]
    assert metrics["filter/overlong"].value == 0.25
    assert metrics["filter/k_best"].value == 0.5
    assert metrics["filter/kept_per_group"].value == 2
    assert metrics["filter/kept_length"].value == 2.5
    assert metrics["filter/all_length"].value == 2.5


# ... by difficulty


@given(numbers_=st.lists(st.floats(-10, 10), min_size=1, max_size=40), share=st.sampled_from([0.25, 0.5, 0.75]))
def test_quantiles_are_the_linear_ones(numbers_: list[float], share: float) -> None:
    assert quantile(sorted(numbers_), share) == pytest.approx(float(numpy.quantile(numbers_, share)), abs=1e-12)


def test_k_follows_the_difficulty_among_all_prompts_so_far() -> None:
    """Each mean is inserted, then compared; the groups of a batch come one at a time in the order of their ids."""
    part = KBestByDifficulty(k=8, k_by_quartile=(4, 3, 2, 1), warmup=1)
    first = of_lengths([[0.0] * 4, [1.0] * 4, [0.5] * 4], [1, 2, 3, 4] * 3)
    keep, state = part(first, state=part.initial())
    assert keep.statistics.all()
    assert state == {"means": [0.0, 0.5, 1.0], "batches": 1}
    # ids fall from group to group: 886 (mean .75), 893 (mean .9), 900 (mean -1)
    second = of_lengths([[-1.0] * 4, [0.9] * 4, [0.75] * 4], [1, 2, 3, 4] * 3)
    keep, state = part(second, state=state)
    # .75 among (0, .5, .75, 1): quartiles .375, .625, .8125; .9 among these and itself: .5, .75, .9
    expected = {0: 4, 1: 1, 2: 2}
    assert {at: int(keep.statistics[4 * at : 4 * at + 4].sum()) for at in range(3)} == expected
    assert keep.statistics[:4].all()
    assert state == {"means": [-1.0, 0.0, 0.5, 0.75, 0.9, 1.0], "batches": 2}
    assert json.loads(json.dumps(state)) == state


def test_k_by_difficulty_is_the_definition_over_many_batches() -> None:
    part = KBestByDifficulty(warmup=2, k_by_quartile=(4, 3, 2, 1), k=4)
    means: list[float] = []
    state = part.initial()
    for seed in range(8):
        batch = with_score(draw_batch(seed, groups=4, most=5, graded=True))
        keep, state = part(batch, state=state)
        for group in sorted(batch.group.unique().tolist()):
            own = sorted(set(batch.rollout[batch.group == group].tolist()))
            scores = [float(batch.columns["score"][batch.rollout == r][0]) for r in own]
            means.append(math.fsum(scores) / len(scores))
            quarter = sum(means[-1] >= numpy.quantile(means, share) for share in (0.25, 0.5, 0.75))
            size = 4 if seed < 2 else (4, 3, 2, 1)[quarter]
            kept = batch.rollout[keep.statistics & (batch.group == group)].unique().numel()
            assert kept == min(size, len(own))
    assert state["means"] == sorted(state["means"])
    assert state["means"] == pytest.approx(sorted(means))


def test_the_state_is_seen_in_the_metrics_and_learns_nothing_from_nobody() -> None:
    recipe = BASE.but(filters=(KBestByDifficulty(),))
    batch = of_lengths([[1.0, 0.0]], [1, 2])
    _, states, metrics = credit(recipe, batch, initial_states(recipe))
    assert (
        numbers(metrics).items()
        >= {
            "state/k_best_by_difficulty/means": 1,
            "state/k_best_by_difficulty/batches": 1,
        }.items()
    )
    nobody = batch.with_(reward=torch.full_like(batch.reward, math.nan))
    _, after, _ = credit(recipe, nobody, states)
    assert after["filter.k_best_by_difficulty"]["means"] == [0.5]


# Sets of k


@pytest.mark.parametrize("scale", ["sets", "none"])
@given(outcomes=st.lists(st.booleans(), min_size=1, max_size=8), k=st.integers(1, 8))
def test_pass_at_k_is_the_mean_over_all_sets(scale: str, outcomes: list[bool], k: int) -> None:
    batch = batch_of([float(right) for right in outcomes])
    eps = {} if scale == "none" else {"eps": 1e-3}
    found = PassAtK(k=k, scale=scale, **eps)(batch)[:, 0].tolist()
    if k > len(outcomes):
        assert found == [0.0] * len(outcomes)
    else:
        assert found == pytest.approx(oracle.pass_at_k(outcomes, k, 1e-3, scale == "sets"), abs=1e-9)


def test_goldens_of_pass_at_k() -> None:
    """2 of 8 right, k = 4: q = 15/70, s = sqrt(q (1 - q)) = .410326; right q/s, wrong (q - 10/35)/s."""
    two_of_eight = batch_of([1.0, 1.0, *[0.0] * 6])
    found = [round(v, 6) for v in PassAtK(eps=0.0)(two_of_eight)[:, 0].tolist()]
    assert found == [0.522233, 0.522233, *[-0.174078] * 6]
    plain = [round(v, 6) for v in PassAtK(scale="none")(two_of_eight)[:, 0].tolist()]
    assert plain == [0.214286, 0.214286, *[-0.071429] * 6]


@given(outcomes=st.lists(st.booleans(), min_size=2, max_size=9))
def test_sets_of_one_are_the_group_norm(outcomes: list[bool]) -> None:
    batch = batch_of([float(right) for right in outcomes])
    assert torch.allclose(PassAtK(k=1)(batch), GroupNorm(ddof=0)(batch), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("right", [0, 5, 6, 7, 8])
def test_a_group_that_always_or_never_passes_teaches_nothing(right: int) -> None:
    batch = batch_of([1.0] * right + [0.0] * (8 - right))
    assert (PassAtK(k=4, eps=0.0)(batch) == 0).all()


def test_who_is_right_is_a_threshold_on_the_score() -> None:
    signs, unscored = batch_of([1.0, -1.0, -1.0]), batch_of([1.0, 0.0, 0.0, math.nan])
    member = torch.tensor([True, True, True, False])
    unscored = unscored.with_(keep=Keep(member, member, member))
    assert torch.equal(PassAtK(k=2)(signs)[:3], PassAtK(k=2)(unscored)[:3])
    assert (PassAtK(k=2)(unscored)[3] == 0).all()
    graded = batch_of([0.9, 0.6, 0.2])
    assert torch.equal(PassAtK(k=2, threshold=0.7)(graded), PassAtK(k=2)(signs))


def test_pass_at_k_is_measured() -> None:
    recipe = BASE.but(advantage=PassAtK(k=2))
    _, _, metrics = credit(recipe, batch_of([1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0]), {})
    assert metrics["group/pass_at_k"].value == pytest.approx((2 / 3 + 0) / 2)
    with pytest.raises(ConfigError, match=r"recipe.advantage.eps: nobody reads it with scale=none"):
        PassAtK(scale="none", eps=0.1)


# Expectations over everything that can be sampled


def expected_gradient(part: Advantage, logits: list[float], outcomes: list[float], size: int) -> torch.Tensor:
    """E[(1/G) sum_i A_i grad log p(y_i)] by the logits of a one-token policy, over all G-tuples of its arms."""
    p = torch.tensor(logits, dtype=torch.float64).softmax(0)
    tuples = list(product(range(len(p)), repeat=size))
    advantage = part(batch_of(*[[outcomes[arm] for arm in arms] for arms in tuples]))[:, 0].reshape(-1, size)
    total = torch.zeros_like(p)
    for arms, row in zip(tuples, advantage, strict=True):
        chosen = torch.tensor(arms)
        score = torch.nn.functional.one_hot(chosen, len(p)).double() - p
        total += p[chosen].prod() * (row[:, None] * score).mean(0)
    return total


@pytest.mark.parametrize("size", [2, 3, 4])
def test_dividing_by_the_success_rate_follows_the_likelihood_up_to_order_g_minus_1(size: int) -> None:
    """E = sum_{j < G-1} (1-p)^j grad p: the series of grad log p cut off; order G would keep the baseline of all-wrong groups."""
    logits, outcomes = [0.3, -0.2, 0.1], [1.0, 0.0, 0.0]
    p = torch.tensor(logits, dtype=torch.float64).softmax(0)
    slope = p[0] * (torch.tensor([1.0, 0, 0], dtype=torch.float64) - p)
    found = expected_gradient(GroupNorm(scale="mean", eps=0.0), logits, outcomes, size)
    series = sum((1 - p[0]) ** j for j in range(size - 1))
    assert torch.allclose(found, series * slope, rtol=1e-12, atol=1e-14)


def test_leave_one_out_is_unbiased_and_the_mean_shrinks_it() -> None:
    logits, outcomes = [0.3, -0.2, 0.1], [1.0, 0.0, 0.5]
    p = torch.tensor(logits, dtype=torch.float64).softmax(0)
    worth = torch.tensor(outcomes, dtype=torch.float64)
    exact = p * (worth - (p * worth).sum())
    for size in (2, 4):
        loo = expected_gradient(GroupNorm(baseline="leave_one_out", scale="none"), logits, outcomes, size)
        mean = expected_gradient(GroupNorm(scale="none"), logits, outcomes, size)
        assert torch.allclose(loo, exact, rtol=1e-10, atol=1e-12)
        assert torch.allclose(mean, (1 - 1 / size) * exact, rtol=1e-10, atol=1e-12)


def test_kl_in_the_score_has_the_gradient_of_the_reverse_kl() -> None:
    """Leave-one-out of R - coef * log(pi/ref): E = grad (E[R] - coef * KL(pi, ref)), over all pairs of arms."""
    coef, logits = 0.3, torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    logp, ref = logits.log_softmax(0), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    worth = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    aim = (logp.exp() * (worth - coef * (logp - ref))).sum()
    (exact,) = torch.autograd.grad(aim, logits)
    now, arms = logp.detach(), torch.tensor(list(product(range(3), repeat=2)))
    batch = batch_of(*[[0.0, 0.0]] * 9)
    mask = torch.zeros_like(batch.mask)
    mask[:, 0] = True
    own = broadcast(now[arms.flatten()], mask)
    reference = broadcast(ref[arms.flatten()], mask)
    batch = batch.with_(mask=mask, old_logp=own, reward=worth[arms.flatten()][:, None], columns={"ref_logp": reference})
    recipe = BASE.but(
        mix=WeightedSum(shaping=(KlSum(coef=coef),)),
        advantage=GroupNorm(baseline="leave_one_out", scale="none"),
        weighting=RolloutSum(),
    )
    advantage = credit(recipe, batch, {})[0].advantage[:, 0].reshape(9, 2)
    score = torch.nn.functional.one_hot(arms, 3).double() - now.exp()
    chance = now.exp()[arms].prod(1)
    found = (chance[:, None] * (advantage[..., None] * score).mean(1)).sum(0)
    assert torch.allclose(found, exact, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_a_step_is_that_of_finite_differences() -> None:
    """Every advantage here is a constant of the objective: the loss moves as the gradient says."""
    for part in (PassAtK(k=2), GroupNorm(scale="mean"), GroupNorm(scale="batch_centered")):
        recipe = BASE.but(advantage=part)
        policy, batch = case(recipe, 12)
        step = weigh(recipe, credit(recipe, batch, {})[0])

        def value(policy: object = policy, recipe: Recipe = recipe, step: object = step) -> torch.Tensor:
            return objective(recipe, policy.forward(step, outputs(recipe)), step, {})[0]

        gradient, parameter = policy.gradient(value()), policy.parameters[0]
        with torch.no_grad():
            for at in ((0, 1), (1, 3)):
                parameter[at] += 1e-6
                above = float(value())
                parameter[at] -= 2e-6
                below = float(value())
                parameter[at] += 1e-6
                slope = float(gradient[at[0] * parameter.shape[1] + at[1]])
                assert (above - below) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-8)
