"""Claims about baselines and scales: what a row's reward is compared with, and what the difference is divided by."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from covey import recipes
from covey.recipes.claims.claim import Claim, Near
from covey.recipes.claims.clips import faster
from covey.recipes.claims.data import make_batch, prepare
from covey.recipes.claims.exact import (
    LOGITS,
    REWARD,
    expect_batch,
    expect_group,
    factor,
    scatter,
    true_gradient,
)
from covey.recipes.claims.learn import Plan, area, learn
from covey.recipes.claims.worlds import Addition, Lessons
from covey.recipes.recipe import Recipe
from covey.stages.advantages import BatchBaseline

ADDING = Plan(batches=50, prompts=16, lr=0.01)
"""200 optimizer steps, four per batch; the rate is small enough for the network to learn smoothly with any recipe."""


def _plain(name: str) -> Recipe:
    """A recipe without its penalties and with no weight but the mean over responses, so that gradients are comparable."""
    return recipes.get(name).but(penalties=())


def _worst(found: Tensor, truth: Tensor, scale: float = 1.0) -> float:
    """Largest distance from a multiple of the true gradient."""
    return float((found - scale * truth).abs().max())


def unbiased_batch_baseline(seed: int) -> Mapping[str, float]:
    """Distance of E[gradient] from the true one without a baseline, with the others' mean, and with the mean."""
    base, truth = recipes.get("reinforce"), true_gradient(LOGITS, REWARD)
    found = {
        kind: expect_batch(base.but(advantage=BatchBaseline(baseline=kind)), 3)
        for kind in ("leave_one_out", "none", "mean")
    }
    exact = max(_worst(found["leave_one_out"], truth), _worst(found["none"], truth))
    return {"largest error": exact, "error of (1 - 1/N) with the mean": _worst(found["mean"], truth, 2 / 3)}


def variance_of_baseline(seed: int) -> Mapping[str, float]:
    """How much less a batch's gradient scatters with a baseline where the mean reward is far from 0."""
    base = recipes.get("reinforce")
    without = scatter(base.but(advantage=BatchBaseline(baseline="none")), 3, shift=5)
    with_one = scatter(base.but(advantage=BatchBaseline(baseline="leave_one_out")), 3, shift=5)
    return {"1 - variance with / without": 1 - with_one / without}


def unbiased_leave_one_out(seed: int) -> Mapping[str, float]:
    """Distance of E[gradient] / true gradient from 1 for groups of 2 and 4; beside it what the group's own mean gives."""
    truth = true_gradient(LOGITS, REWARD)
    out = {}
    for name, recipe in (
        ("leave-one-out", _without_kl("rloo")),
        ("own mean", recipes.get("dr_grpo").but(**{"weighting.divisor": 1})),
    ):
        ratios = [expect_group(recipe, size, LOGITS, REWARD) / truth for size in (2, 4)]
        out[f"{name}, largest |ratio - 1|"] = float(torch.cat([ratio - 1 for ratio in ratios]).abs().max())
    return out


def _without_kl(name: str) -> Recipe:
    """The recipe with a plain sum of rewards in place of a KL in the reward, and without penalties."""
    return recipes.get(name).but(mix="weighted_sum", penalties=())


def difficulty_of_std(seed: int) -> Mapping[str, float]:
    """How unequally the group's std weighs prompts that are solved more or less often, G = 4: largest / smallest factor - 1."""
    recipe = _plain("grpo").but(**{"advantage.eps": 0.0})
    found = {p: factor(recipe, 4, p) for p in (0.024, 1 / 3, 0.909)}
    low, high = min(found.values()), max(found.values())
    return {"spread of factors": high / low - 1, **{f"factor at {p:.3g}": value for p, value in found.items()}}


def difficulty_without_std(seed: int) -> Mapping[str, float]:
    """The same spread without the std."""
    recipe = recipes.get("dr_grpo").but(**{"weighting.divisor": 1})
    found = [factor(recipe, 4, p) for p in (0.024, 1 / 3, 0.909)]
    return {"spread of factors": max(found) / min(found) - 1, "factor": found[0]}


def _factors(recipe: Recipe, seed: int, groups: int, draws: int = 30) -> list[float]:
    """E[gradient] / true gradient of one prompt solved with .05 and of one with .5, the rest of the batch drawn from both.

    The own group of four is enumerated by its number of right answers, the other groups are drawn.
    """
    draw, size, out = torch.Generator().manual_seed(seed), 4, []
    chance = torch.tensor([0.05, 0.5], dtype=torch.float64).repeat(groups)[: groups - 1]
    others = [
        (torch.rand(groups - 1, size, generator=draw, dtype=torch.float64) < chance[:, None]).double()
        for _ in range(draws)
    ]
    for p in (0.05, 0.5):
        total = 0.0
        for right in range(1, size):  # none or all right: no advantage from the own group
            own = (torch.arange(size) < right).double()
            weight = math.comb(size, right) * p**right * (1 - p) ** (size - right)
            total += weight * sum(_push(recipe, own, rest, p) for rest in others) / draws
        out.append(total / (p * (1 - p)))
    return out


def _push(recipe: Recipe, own: Tensor, rest: Tensor, p: float) -> float:
    """The mean of advantage * d log pi / d logit over the own group."""
    reward = torch.cat([own[None], rest]).flatten()
    group = torch.arange(len(rest) + 1).repeat_interleave(len(own))
    step = prepare(recipe, make_batch(reward.long()[:, None], reward, group))
    return float((step.advantage[: len(own), 0] * (own - p)).mean())


def difficulty_of_batch_std(seed: int) -> Mapping[str, float]:
    """How much nearer to each other the factors of an easy and a hard prompt are with the batch's std (32 prompts x 4)."""
    batchwise, groupwise = _without_kl("reinforce_plus_plus_baseline"), _plain("grpo")
    near = {n: _log_gap(_factors(batchwise, seed, n)) for n in (8, 32)}
    far = _log_gap(_factors(groupwise, seed, 2, draws=1))
    return {"gap of the group's std - gap": far - near[32], "gap, 32 prompts": near[32], "gap, 8 prompts": near[8]}


def _log_gap(factors: list[float]) -> float:
    return abs(math.log(factors[0] / factors[1]))


def held_out_gap(seed: int) -> Mapping[str, float]:
    """Held-out minus trained success on 8 prompts after 300 optimizer steps: global against group normalisation."""
    plan = Plan(batches=75, prompts=8, samples=8, lr=0.02)
    ends = {name: learn(_without_kl(name), Lessons, plan, seed)[-1] for name in ("reinforce_plus_plus", "grpo")}
    return {
        "gap - gap of group std": ends["reinforce_plus_plus"]["gap"] - ends["grpo"]["gap"],
        "held out, batch": ends["reinforce_plus_plus"]["held"],
        "held out, group": ends["grpo"]["held"],
        "trained, batch": ends["reinforce_plus_plus"]["success"],
        "trained, group": ends["grpo"]["success"],
    }


def group_baseline(seed: int) -> Mapping[str, float]:
    """Reward after 200 optimizer steps on one-digit sums with a group baseline minus that without any."""
    with_one = recipes.get("grpo")
    without = with_one.but(advantage=BatchBaseline(baseline="none"))
    ends = [learn(recipe, Addition, ADDING, seed) for recipe in (with_one, without)]
    return {
        "reward - reward without baseline": ends[0][-1]["success"] - ends[1][-1]["success"],
        "with": ends[0][-1]["success"],
        "without": ends[1][-1]["success"],
        "mean over the curve, difference": area(ends[0]) - area(ends[1]),
    }


def _classes(recipe: Recipe, chance: tuple[float, float], draw: torch.Generator) -> Tensor:
    """Advantages [8 8] of four easy and four hard prompts with eight samples each."""
    p = torch.tensor(chance, dtype=torch.float64).repeat_interleave(4)[:, None]
    reward = (torch.rand(8, 8, generator=draw, dtype=torch.float64) < p).double()
    group = torch.arange(8).repeat_interleave(8)
    batch = make_batch(reward.flatten().long()[:, None], reward.flatten(), group)
    return prepare(recipe, batch).advantage.reshape(8, 8)


def rare_failure(seed: int) -> Mapping[str, float]:
    """The largest |A| in 100 batches of easy (.98) and hard (.5) prompts: group std minus batch std."""
    out, easy = {}, {}
    for name in ("grpo", "lite_ppo"):
        draw = torch.Generator().manual_seed(seed)
        found = torch.stack([_classes(_plain(name), (0.98, 0.5), draw).abs() for _ in range(100)])
        out[name], easy[name] = float(found.max()), found[:, :4].amax((1, 2))
    mixed = easy["grpo"] > 0  # batches in which an easy prompt failed
    return {
        "largest |A|, group std - batch std": out["grpo"] - out["lite_ppo"],
        **out,
        "mean largest |A| of failed easy prompts, group std": float(easy["grpo"][mixed].mean()),
        "mean largest |A| of failed easy prompts, batch std": float(easy["lite_ppo"][mixed].mean()),
    }


def saturation(seed: int) -> Mapping[str, float]:
    """Variance of the easy class's squared advantages over batches as it saturates (.9 to .99): group std minus batch std."""
    out = {}
    for name in ("grpo", "lite_ppo"):
        draw = torch.Generator().manual_seed(seed)
        levels = [0.9 + 0.09 * at / 99 for at in range(100)]
        energy = torch.stack([_classes(_plain(name), (p, 0.5), draw)[:4].square().mean() for p in levels])
        out[name] = float(energy.var())
    return {"variance, group std - batch std": out["grpo"] - out["lite_ppo"], **out}


def two_tricks(seed: int) -> Mapping[str, float]:
    """Two tricks against what they are to beat, without refill."""
    return faster("lite_ppo", "dapo", seed)


claims = (
    Claim(
        name="unbiased-baseline",
        recipes=("reinforce",),
        says="A baseline that does not depend on the row leaves the gradient unbiased; one that holds the row itself scales it.",
        paper="Exact: E = gradient; (1 - 1/N) of it with the batch's own mean (Williams 1992).",
        measures="largest error of E[gradient], all batches of 3 draws from 3 arms enumerated",
        trial=unbiased_batch_baseline,
        rule=Near(0, 1e-8),
    ),
    Claim(
        name="baseline-variance",
        recipes=("reinforce",),
        says="A baseline takes variance away where the mean reward is far from 0.",
        paper="A direction, no number (Williams 1992).",
        measures="1 - variance with / variance without, rewards 5.2, 6 and 5.5, all batches enumerated",
        trial=variance_of_baseline,
    ),
    Claim(
        name="leave-one-out",
        recipes=("rloo",),
        says="The mean of the other responses is an unbiased baseline.",
        paper="Ratio 1 for every G; beats PPO, DPO and RAFT in win rate, which is not checked (arXiv 2402.14740).",
        measures="largest |E[gradient] / true gradient - 1|, 3 arms, G = 2 and 4 enumerated",
        trial=unbiased_leave_one_out,
        rule=Near(0, 1e-8),
    ),
    Claim(
        name="std-difficulty-bias",
        recipes=("grpo",),
        says="Division by the group's std weighs prompts by how hard they are.",
        paper="A bias is claimed, no number (arXiv 2503.20783).",
        measures="largest / smallest E[gradient] / true gradient - 1 over success rates .024, 1/3, .909; G = 4 enumerated",
        trial=difficulty_of_std,
    ),
    Claim(
        name="no-difficulty-bias",
        recipes=("dr_grpo",),
        says="Without the std all prompts weigh alike.",
        paper="No bias is claimed (arXiv 2503.20783).",
        measures="the same spread without the std",
        trial=difficulty_without_std,
        rule=Near(0, 1e-8),
    ),
    Claim(
        name="group-baseline-helps",
        recipes=("grpo",),
        says="A group baseline learns faster than none from the same number of tokens.",
        paper="GSM8K 82.9 -> 88.2, MATH 46.8 -> 51.7 over the instruct model (arXiv 2402.03300); no ablation of the baseline.",
        measures="reward after 200 optimizer steps (4 per batch) on one-digit sums, with minus without",
        trial=group_baseline,
        seeds=16,
    ),
    Claim(
        name="batch-std-alike",
        recipes=("reinforce_plus_plus_baseline",),
        says="One std for the whole batch weighs easy and hard prompts alike.",
        paper="The bias of local statistics vanishes as the batch grows (arXiv 2501.03262); no number.",
        measures="|log ratio of the factors at .05 and .5| with the group's std minus that with the batch's, 32 prompts x 4",
        trial=difficulty_of_batch_std,
        seeds=8,
    ),
    Claim(
        name="overfitting-few-prompts",
        recipes=("reinforce_plus_plus",),
        says="Trained on few prompts, global normalisation overfits less than the group's.",
        paper="30 problems: trained / AIME25 pass@1 = 95.0 / 0.0 with group std, 71.0 / 2.5 global (arXiv 2501.03262).",
        measures="held-out minus trained success after 300 optimizer steps on 8 prompts, global minus group",
        trial=held_out_gap,
        seeds=16,
        note="A linear policy on 24 features, 256 held-out prompts.",
    ),
    Claim(
        name="rare-failure",
        recipes=("lite_ppo",),
        says="The batch's std keeps a rare failure of an easy prompt from getting an outsized advantage.",
        paper="Group mean with batch std is most robust (arXiv 2508.08221 section 4.1); group std: |A| = 2.475 at G = 8.",
        measures="largest |A| with the group's std minus that with the batch's, prompts of .98 and .5, 8 x 8",
        trial=rare_failure,
        seeds=16,
        note="The largest of 100 batches says how small the batch's std may get; the means beside it are of the failures.",
    ),
    Claim(
        name="two-tricks-steps",
        recipes=("lite_ppo",),
        says="Group mean over batch std and a token mean learn faster than clip-higher and all that comes with it.",
        paper="Base models of 4B and 8B (arXiv 2508.08221, curves); aligned 8B: 62.17 against 60.66 on easy data.",
        measures="1 - batches to .9 success / those of dapo; four passes per batch, no refill in either",
        trial=two_tricks,
        seeds=16,
    ),
    Claim(
        name="saturating-class",
        recipes=("lite_ppo",),
        says="As easy prompts saturate, their advantages vary less from step to step.",
        paper="Gradient blow-up on concentrated rewards with the group's std (arXiv 2508.08221 section 4.1); no number.",
        measures="variance over 100 batches of the easy class's mean squared advantage, group's std minus batch's",
        trial=saturation,
        seeds=16,
    ),
)
