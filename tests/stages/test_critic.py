"""Advantages against a critic, and the critic's loss: goldens, oracle, the cases in which both have a plain meaning."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from covey import recipes
from covey.batch import Batch, Credited, Keep, Live
from covey.errors import ConfigError
from covey.metrics import values as shown
from covey.recipes.recipe import Recipe
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.gae import Gae
from covey.stages.objective import objective, outputs
from covey.stages.shapers import Whiten
from covey.stages.surrogates import Clip
from covey.stages.values import Critic, SeparateCritic, SharedCritic
from covey.types import STOPS, Stop
from tests.stages.data import Policy, draw_batch, draw_keep
from tests.stages.oracle_critic import explained_variance, gae, value_cost

PPO = recipes.get("ppo")


def row(rewards: list[float], values: list[float], mask: list[bool] | None = None, *, stop: Stop = Stop.END) -> Batch:
    """One row with a reward and a value per token."""
    batch, n = draw_batch(0, groups=1, most=1, width=len(rewards)), len(rewards)
    first = batch.rows(torch.tensor([0]))
    chosen = torch.tensor([mask or [True] * n])
    score, value = (torch.tensor([x], dtype=torch.float64) for x in (rewards, values))
    ids = torch.tensor([STOPS.index(stop)])
    return first.with_(mask=chosen, stop=ids, columns={"score": score, "value": value})


def run(batch: Batch, **options: float) -> tuple[list[float], list[float]]:
    advantage, made = Gae(**options)(batch)
    return advantage[0].tolist(), made["returns"][0].tolist()


def test_the_three_tokens_by_hand() -> None:
    advantage, returns = run(row([0.0, 0.0, 1.0], [0.2, 0.4, 0.6]), gamma=1.0, lam=0.95)
    assert advantage == pytest.approx([0.751, 0.58, 0.4], abs=1e-12)
    assert returns == pytest.approx([0.951, 0.98, 1.0], abs=1e-12)
    batch = row([0.0, 0.0, 1.0], [0.2, 0.4, 0.6])
    white = Whiten(unit="token")(torch.tensor([advantage], dtype=torch.float64), batch)
    assert white[0].tolist() == pytest.approx([0.991344, 0.017092, -1.008436], abs=5e-7)


def test_what_an_environment_says_takes_no_time() -> None:
    """Tokens between two actions are skipped, whatever their columns hold."""
    plain, _ = run(row([0.0, 0.0, 1.0], [0.2, 0.4, 0.6]))
    batch = row([0.0, math.nan, 0.0, 9.0, 1.0], [0.2, math.inf, 0.4, -5.0, 0.6], [True, False, True, False, True])
    between, returns = run(batch)
    assert between == pytest.approx([plain[0], 0.0, plain[1], 0.0, plain[2]], abs=1e-15)
    assert returns[1] == returns[3] == 0.0


def test_a_cut_response_may_go_on_with_the_critics_word() -> None:
    batch = row([0.0, 0.0], [0.2, 0.4], stop=Stop.LENGTH)
    batch = batch.with_(columns={**batch.columns, "value_end": torch.tensor([0.7])})
    assert run(batch, lam=1.0)[0] == pytest.approx([-0.2, -0.4], abs=1e-7)
    assert run(batch, lam=1.0, bootstrap_truncated=True)[0] == pytest.approx([0.5, 0.3], abs=1e-7)
    ended = batch.with_(stop=torch.tensor([STOPS.index(Stop.END)]))
    assert run(ended, lam=1.0, bootstrap_truncated=True)[0] == pytest.approx([-0.2, -0.4], abs=1e-7)
    assert Gae().columns() == ("value",)
    assert Gae(bootstrap_truncated=True).columns() == ("value", "value_end")


@pytest.mark.parametrize("seed", range(12))
def test_against_the_sum_over_later_actions(seed: int) -> None:
    draw = random.Random(seed)
    gamma, lam, bootstrap = draw.choice([0.0, 0.9, 1.0]), draw.choice([0.0, 0.5, 0.95, 1.0]), bool(seed % 2)
    batch = draw_batch(seed, graded=True, unscored=0.2, columns=("value",))
    per_token = seed % 3 == 0
    score = torch.randn(batch.mask.shape, dtype=torch.float64) if per_token else batch.reward.sum(1)
    scored = ~batch.reward.sum(1).isnan()
    keep = draw_keep(batch, seed) & Keep(scored, scored, torch.ones_like(scored))
    end = torch.randn(batch.size)
    batch = batch.with_(keep=keep, columns={**batch.columns, "score": score, "value_end": end})
    found, made = Gae(gamma=gamma, lam=lam, bootstrap_truncated=bootstrap)(batch)
    for i in range(batch.size):
        mask, width = batch.mask[i].tolist(), batch.mask.shape[1]
        last = max((t for t in range(width) if mask[t]), default=-1)
        rewards = score[i].tolist() if per_token else [float(score[i]) if t == last else 0.0 for t in range(width)]
        if not keep.statistics[i]:
            mask = [False] * width
        cut = bootstrap and batch.stop[i] == STOPS.index(Stop.LENGTH)
        expected = gae(
            rewards, batch.columns["value"][i].tolist(), mask, gamma=gamma, lam=lam, end=float(end[i]) if cut else 0.0
        )
        assert found[i].tolist() == pytest.approx(expected[0], abs=1e-12)
        assert made["returns"][i].tolist() == pytest.approx(expected[1], abs=1e-12)


def test_without_a_critic_it_is_the_outcome_on_every_token() -> None:
    """V = 0, gamma = lam = 1, no KL: A = R."""
    batch = draw_batch(3, graded=True)
    score = batch.reward.sum(1)
    batch = batch.with_(columns={"score": score, "value": torch.zeros_like(batch.old_logp)})
    advantage, made = Gae(gamma=1.0, lam=1.0)(batch)
    assert torch.equal(advantage, torch.where(batch.mask, score[:, None], 0.0))
    assert torch.equal(made["returns"], advantage)


def test_a_perfect_critic_leaves_nothing_to_learn() -> None:
    batch = draw_batch(4, graded=True)
    score = batch.reward.sum(1)
    values = torch.where(batch.mask, score[:, None], 0.0)
    advantage, _ = Gae(gamma=1.0, lam=0.7)(batch.with_(columns={"score": score, "value": values}))
    assert advantage.abs().max() <= 1e-12


def test_a_trained_critic_lessens_the_variance_and_keeps_the_mean() -> None:
    """A chain of ten coin flips with the number of heads as the reward at the end: score-function estimates of one logit."""
    draw = torch.Generator().manual_seed(0)
    flips = (torch.rand(4000, 10, generator=draw) < 0.5).double()
    reward, score = flips.sum(1), flips - 0.5  # d log p / d logit
    before = torch.cat([torch.zeros(4000, 1), flips.cumsum(1)[:, :-1]], 1)
    values = before + 0.5 * torch.arange(10, 0, -1)  # heads so far and half of those to come
    base = draw_batch(0, groups=1, most=1, width=10)
    batch = replace(base.rows(torch.zeros(4000, dtype=torch.long)), mask=torch.ones(4000, 10, dtype=torch.bool))
    estimates = []
    for value in (torch.zeros_like(values), values):
        advantage, _ = Gae(gamma=1.0, lam=1.0)(batch.with_(columns={"score": reward, "value": value}))
        estimates.append((advantage * score).sum(1))
    without, with_critic = estimates
    assert float(with_critic.var() / without.var()) == pytest.approx(2.8125 / 73.75, rel=0.15)  # in closed form
    error = math.sqrt(float((without.var() + with_critic.var()) / 4000))
    assert float(without.mean()) == pytest.approx(2.5, abs=4 * error)
    assert float(with_critic.mean()) == pytest.approx(2.5, abs=4 * error)


# The critic's loss


def priced(critic: Critic, values: Tensor, before: Tensor, returns: Tensor) -> tuple[Tensor, dict[str, float]]:
    batch = row([0.0] * values.shape[1], before[0].tolist())
    credited = Credited(
        **{**vars(batch), "columns": {"value": before, "returns": returns}},
        advantage=torch.zeros_like(values),
        weight=torch.zeros_like(values),
        penalty_weight={critic.kind: torch.full_like(values, 1 / values.shape[1])},
    )
    live = Live(torch.zeros_like(values), {"value": values})
    loss, metrics = critic.loss(live, credited)
    return loss, shown(metrics)


def number(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


def test_the_value_clip_by_hand() -> None:
    """V 1, V before .2, return .9: the clipped value .4 is the worse one."""
    clipped, told = priced(SeparateCritic(clip=0.2), number(1.0), number(0.2), number(0.9))
    assert float(clipped) == pytest.approx(0.125, abs=1e-12)
    assert told == {"critic/loss": pytest.approx(0.125), "critic/clipped": 1.0}
    free, told = priced(SeparateCritic(clip=None), number(1.0), number(0.2), number(0.9))
    assert float(free) == pytest.approx(0.005, abs=1e-12)
    assert told == {"critic/loss": pytest.approx(0.005)}
    shared, _ = priced(SharedCritic(clip=0.2, coef=0.1), number(1.0), number(0.2), number(0.9))
    assert float(shared) == pytest.approx(0.0125, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "target", "slope"),
    [(1.0, 0.9, 0.0), (1.0, -0.5, 1.5), (0.3, 0.9, -0.6), (-0.4, -0.35, 0.0), (-0.4, 2.0, -2.4)],
)
def test_clipping_stops_the_gradient_only_where_its_error_is_the_larger(
    value: float, target: float, slope: float
) -> None:
    """V before is .2: beyond +-.2 of it the gradient stops, unless the free error is the larger one."""
    leaf = number(value).requires_grad_()
    loss, told = priced(SeparateCritic(clip=0.2), leaf, number(0.2), number(target))
    loss.backward()
    assert float(leaf.grad) == pytest.approx(slope, abs=1e-12)
    assert told["critic/clipped"] == float(slope == 0)


@pytest.mark.parametrize("clip", [None, 0.2, 0.5])
def test_the_loss_against_the_oracle_and_finite_differences(clip: float | None) -> None:
    draw = torch.Generator().manual_seed(1)
    value, before, returns = (torch.randn(1, 9, generator=draw, dtype=torch.float64) for _ in range(3))
    critic = SeparateCritic(clip=clip)
    costs = [
        value_cost(v, b, r, clip)
        for v, b, r in zip(value[0].tolist(), before[0].tolist(), returns[0].tolist(), strict=True)
    ]
    assert float(priced(critic, value, before, returns)[0]) == pytest.approx(sum(costs) / 9, abs=1e-14)
    leaf = value.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: priced(critic, v, before, returns)[0], (leaf,))


def test_dual_clip_by_hand() -> None:
    """c 3 and A -1: rho 5 costs 3 instead of 5, rho 1.5 and .5 as without it."""
    batch = row([0.0] * 3, [0.0] * 3)
    credited = Credited(**vars(batch), advantage=-torch.ones(1, 3).double(), weight=torch.ones(1, 3).double())
    log_ratio = torch.tensor([[5.0, 1.5, 0.5]], dtype=torch.float64).log()
    gain = Clip(low=0.2, high=0.2, dual=3.0)(log_ratio, Live(log_ratio), credited)
    assert (-gain[0]).tolist() == pytest.approx([3.0, 1.5, 0.8], abs=1e-12)
    plain = Clip(low=0.2, high=0.2)(log_ratio, Live(log_ratio), credited)
    assert float(-plain[0, 0]) == pytest.approx(5.0)


# The critic in a recipe


def prepared(recipe: Recipe, seed: int) -> tuple[Policy, Credited, dict[str, float]]:
    policy = Policy(seed)
    batch = policy.on(draw_batch(seed, graded=True, unscored=0.2, columns=recipe.needs()), seed)
    credited, _, metrics = credit(recipe, batch, initial_states(recipe))
    return policy, weigh(recipe, credited), shown(metrics)


def test_what_credit_tells_of_the_critic() -> None:
    _, step, told = prepared(PPO, 7)
    counted = step.mask & step.keep.statistics[:, None]
    values, returns = step.columns["value"][counted].tolist(), step.columns["returns"][counted].tolist()
    assert told["critic/explained_variance"] == pytest.approx(explained_variance(values, returns), abs=1e-12)
    assert told["critic/value_mean"] == pytest.approx(sum(values) / len(values))
    assert told["critic/return_mean"] == pytest.approx(sum(returns) / len(returns))


def test_returns_are_made_before_whitening() -> None:
    _, white, _ = prepared(PPO, 8)
    _, plain, _ = prepared(PPO.but(shapers=()), 8)
    assert torch.equal(white.columns["returns"], plain.columns["returns"])
    assert not torch.equal(white.advantage, plain.advantage)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_separate_critics_loss_adds_up_over_slices(seed: int) -> None:
    policy, step, _ = prepared(PPO, seed)
    critic = PPO.critic
    whole = policy.gradient(critic.loss(policy.forward(step, ("value",)), step)[0])
    parts = [step.rows(index) for index in torch.arange(step.size).split(2)]
    pieces = [policy.gradient(critic.loss(policy.forward(part, ("value",)), part)[0]) for part in parts]
    assert float((torch.stack(pieces).sum(0) - whole).norm()) <= 1e-12 * float(whole.norm())
    unscored = step.reward.isnan().any(1)
    assert unscored.any() or seed != 1
    cost = critic(policy.forward(step, ("value",)), step)
    assert (cost[unscored] == 0).all()


def test_a_shared_critics_loss_is_a_term_of_the_policys() -> None:
    shared = PPO.but(critic=SharedCritic(coef=0.3))
    assert outputs(PPO) == ()
    assert outputs(shared) == ("value",)
    policy, step, _ = prepared(shared, 5)
    live = policy.forward(step, ("value",))
    both, metrics = objective(shared, live, step, {})
    alone, _ = objective(PPO, live, step.with_(penalty_weight={"separate": step.penalty_weight["shared"]}), {})
    own, _ = SharedCritic(coef=0.3).loss(live, step)
    assert float(both.detach()) == pytest.approx(float((alone + own).detach()), rel=1e-12)
    assert {"critic/loss", "critic/clipped"} <= set(metrics)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"critic": None}, "only a critic learns"),
        ({"advantage": "group_norm", "mix": "weighted_sum", "shapers": ()}, "nobody reads what the critic learns"),
    ],
)
def test_a_critic_and_what_reads_it_belong_together(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PPO.but(**changes)


def test_the_formulas_name_the_options() -> None:
    assert "0.95" in Gae(lam=0.95).latex()
    assert "0.2" in SeparateCritic(clip=0.2).latex()
    assert "clip" not in SeparateCritic(clip=None).latex()
    assert SharedCritic(coef=0.25).latex().startswith("0.25")
