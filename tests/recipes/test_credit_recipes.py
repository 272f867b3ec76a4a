"""Recipes that differ in credit: the whole loss of each from its formula in plain Python, and every stage seen acting."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from covey import recipes
from covey.batch import Batch
from covey.metrics import values
from covey.recipes.recipe import Recipe
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.objective import objective, outputs
from tests.stages import oracle, oracle_credit
from tests.stages.contract import case
from tests.stages.data import Policy, draw_batch
from tests.stages.test_sets import of_lengths

Matrix = list[list[float]]
NAMES = [
    "reinforce", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "rloo", "grpo", "dr_grpo", "dapo", "lite_ppo",
    "gfpo", "gfpo_efficiency", "gfpo_adaptive", "gdpo", "pass_k_training", "maxrl",
]  # fmt: skip


class Rows:
    """A batch and what the policy says of it, as plain numbers."""

    def __init__(self, policy: Policy, batch: Batch) -> None:
        live = policy.forward(batch, ("entropy",))
        self.batch, self.mask = batch, batch.mask.tolist()
        self.now, self.entropy = live.logp.tolist(), live.outputs["entropy"].tolist()
        self.old, self.ref = batch.old_logp.tolist(), batch.columns["ref_logp"].tolist()
        self.reward, self.group, self.rollout = batch.reward.tolist(), batch.group.tolist(), batch.rollout.tolist()
        self.score = [math.fsum(w * r for w, r in zip(batch.reward_weights, row, strict=True)) for row in self.reward]
        self.cells = [(i, t) for i, row in enumerate(self.mask) for t, chosen in enumerate(row) if chosen]
        self.rollouts = len(set(self.rollout))

    def spread(self, per_row: list[float]) -> Matrix:
        """One number per row on each of its tokens."""
        return [[value if chosen else 0.0 for chosen in row] for value, row in zip(per_row, self.mask, strict=True)]

    def clipped(self, advantage: Matrix, high: float = 0.2, dual: float | None = None) -> float:
        """The token mean of -min(rho A, clip(rho) A)."""
        gains = [
            oracle.clip_gain(self.now[i][t] - self.old[i][t], advantage[i][t], 0.2, high, dual) for i, t in self.cells
        ]
        return -math.fsum(gains) / len(self.cells)

    def scored(self, advantage: Matrix) -> float:
        """The mean over rollouts of -sum A log pi."""
        return -math.fsum(advantage[i][t] * self.now[i][t] for i, t in self.cells) / self.rollouts

    def k2(self) -> float:
        """The token mean of (log pi - log ref)^2 / 2."""
        return math.fsum((self.now[i][t] - self.ref[i][t]) ** 2 / 2 for i, t in self.cells) / len(self.cells)

    def centred(self, scores: list[float]) -> list[float]:
        """Scores less the mean of their group."""
        own = {g: [s for s, h in zip(scores, self.group, strict=True) if h == g] for g in self.group}
        return [s - math.fsum(own[g]) / len(own[g]) for s, g in zip(scores, self.group, strict=True)]

    def kept(self, metric: str, k: int) -> list[bool]:
        """Whether a row's rollout is among the k best of its group."""
        best: set[int] = set()
        for g in set(self.group):
            own = sorted({r for r, h in zip(self.rollout, self.group, strict=True) if h == g})
            rows = {r: [i for i, s in enumerate(self.rollout) if s == r] for r in own}
            length = [sum(sum(self.mask[i]) for i in rows[r]) for r in own]
            score = [self.score[rows[r][0]] for r in own]
            ratio = [s / n if n else 0.0 for s, n in zip(score, length, strict=True)]
            value = [-float(n) for n in length] if metric == "shortest" else ratio
            best |= {own[i] for i in oracle_credit.k_best(value, k)}
        return [r in best for r in self.rollout]


def reinforce_plus_plus(rows: Rows) -> float:
    returns = oracle_credit.returns(
        oracle_credit.token_scores(rows.batch, rows.score, 0.001, "k1"), rows.mask, gamma=1.0
    )
    return rows.clipped(oracle_credit.whiten(rows.batch, returns, unit="token"))


def reinforce_plus_plus_baseline(rows: Rows) -> float:
    centred = rows.spread(rows.centred(rows.score))
    return rows.clipped(oracle_credit.whiten(rows.batch, centred, unit="rollout")) + 0.001 * rows.k2()


def rloo(rows: Rows) -> float:
    drift = dict.fromkeys(rows.rollout, 0.0)
    for i, t in rows.cells:
        drift[rows.rollout[i]] += rows.old[i][t] - rows.ref[i][t]
    score = [s - 0.05 * drift[r] for s, r in zip(rows.score, rows.rollout, strict=True)]
    everyone = [True] * len(score)
    loo = oracle.group_norm(score, rows.group, everyone, baseline="leave_one_out", scale="none")
    return rows.scored(rows.spread(loo))


def lite_ppo(rows: Rows) -> float:
    everyone = [True] * len(rows.score)
    return rows.clipped(rows.spread(oracle.group_norm(rows.score, rows.group, everyone, scale="batch")))


def gfpo(rows: Rows, metric: str = "shortest") -> float:
    chosen = rows.kept(metric, 2)
    advantage = oracle.group_norm(rows.score, rows.group, chosen, ddof=0)
    entropy = math.fsum(rows.entropy[i][t] for i, t in rows.cells) / len(rows.cells)
    return rows.clipped(rows.spread(advantage), dual=3.0) + 0.001 * rows.k2() - 0.001 * entropy


def gdpo(rows: Rows) -> float:
    weights = list(rows.batch.reward_weights)
    total = oracle_credit.component_norm(rows.reward, rows.group, weights, 1, 1e-6)
    advantage = oracle_credit.whiten(rows.batch, rows.spread(total), eps=1e-6, inside=False)
    gains = [[0.0] * len(row) for row in rows.mask]
    weight = oracle.weights(rows.batch, "rollout_mean")
    for i, t in rows.cells:
        gains[i][t] = oracle.clip_gain(rows.now[i][t] - rows.old[i][t], advantage[i][t], 0.2, 0.2)
    return -math.fsum(weight[i][t] * gains[i][t] for i, t in rows.cells)


def pass_k_training(rows: Rows) -> float:
    advantage = [0.0] * len(rows.score)
    for g in set(rows.group):
        own = [i for i, h in enumerate(rows.group) if h == g]
        if len(own) >= 2:
            found = oracle_credit.pass_at_k([rows.score[i] > 0.5 for i in own], 2, 1e-6, True)
            advantage = [found[own.index(i)] if i in own else a for i, a in enumerate(advantage)]
    return rows.clipped(rows.spread(advantage), high=0.28)


def maxrl(rows: Rows) -> float:
    return rows.scored(rows.spread(oracle_credit.group_scale(rows.score, rows.group, "mean", 1, 0.0)))


SMALLER = {
    "gfpo": {"filters.k_best.k": 2},
    "gfpo_efficiency": {"filters.k_best.k": 2},
    "pass_k_training": {"advantage.k": 2},
}
"""Options under which recipes for large groups act on small ones."""
LOSSES: dict[str, Callable[[Rows], float]] = {
    "reinforce_plus_plus": reinforce_plus_plus,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "rloo": rloo,
    "lite_ppo": lite_ppo,
    "gfpo": gfpo,
    "gfpo_efficiency": lambda rows: gfpo(rows, "efficiency"),
    "gdpo": gdpo,
    "pass_k_training": pass_k_training,
    "maxrl": maxrl,
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_the_papers(name: str) -> None:
    recipe = recipes.get(name).but(**SMALLER.get(name, {}))
    for seed in range(6):
        policy, batch = case(recipe, seed)
        if "ref_logp" not in batch.columns:
            batch = batch.with_(columns={**batch.columns, "ref_logp": batch.old_logp})
        credited, states, _ = credit(recipe, batch, initial_states(recipe))
        step = weigh(recipe, credited)
        loss, _ = objective(recipe, policy.forward(step, outputs(recipe)), step, states)
        assert float(loss.detach()) == pytest.approx(LOSSES[name](Rows(policy, batch)), rel=1e-9, abs=1e-12), seed


def acting(recipe: Recipe) -> dict[str, float]:
    """The metrics of credit on groups of 16 of mixed difficulty and length."""
    draw = torch.Generator().manual_seed(3)
    rewards = [[float(torch.rand((), generator=draw) < p) for _ in range(16)] for p in (0.1, 0.4, 0.7, 0.9)]
    lengths = torch.randint(1, 12, (64,), generator=draw).tolist()
    batch = of_lengths(rewards, lengths)
    second = batch.mask.sum(1, keepdim=True).double() / 12
    batch = batch.with_(
        reward=torch.cat([batch.reward, second], 1) if recipe.mix.kind == "separate" else batch.reward,
        reward_names=("right", "long") if recipe.mix.kind == "separate" else ("right",),
        reward_weights=(1.0, 1.0) if recipe.mix.kind == "separate" else (1.0,),
        limit=torch.full_like(batch.limit, 10),
        stop=(torch.tensor(lengths) >= 10).long(),
        columns={**batch.columns, "ref_logp": batch.old_logp - 0.1},
    )
    states = initial_states(recipe)
    for _ in range(7):
        _, states, metrics = credit(recipe, batch, states)
    return values(metrics)


ACTS = {
    "reinforce_plus_plus": ("kl/in_score", "shaper/whiten"),
    "reinforce_plus_plus_baseline": ("shaper/whiten",),
    "rloo": ("shaping/kl_sum",),
    "dapo": ("shaping/soft_overlong", "filter/overlong"),
    "gfpo": ("filter/k_best",),
    "gfpo_efficiency": ("filter/k_best",),
    "gfpo_adaptive": ("filter/k_best_by_difficulty", "state/k_best_by_difficulty/means"),
    "gdpo": ("shaper/whiten",),
    "pass_k_training": ("group/pass_at_k",),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_of_credit_is_seen_acting(name: str) -> None:
    recipe = recipes.get(name)
    metrics = acting(recipe)
    assert metrics["advantage/abs"] > 0
    for shown in ACTS.get(name, ()):
        assert metrics[shown] != 0, shown
    named = {f"{part.stage}/{part.kind}" for part in (*recipe.filters, *recipe.shapers)}
    assert named <= set(ACTS.get(name, ()))
    if name.startswith("gfpo"):
        assert metrics["filter/kept_per_group"] <= 8
        assert metrics["filter/kept_per_group"] < 8 or name != "gfpo_adaptive"


def test_a_mean_of_the_group_spreads_over_its_tokens_alike() -> None:
    """Plain returns without KL are the outcome on every token: the whitened form differs from the group's in its mean only."""
    batch = draw_batch(5, columns=("ref_logp",))
    batch = batch.with_(columns={"ref_logp": batch.old_logp})
    credited = credit(recipes.get("reinforce_plus_plus"), batch, {})[0]
    for row, mask in zip(credited.advantage.tolist(), batch.mask.tolist(), strict=True):
        own = {round(value, 12) for value, chosen in zip(row, mask, strict=True) if chosen}
        assert len(own) <= 1
