"""Claims about scores: several rewards, sets of samples, likelihood, and objectives that are no weighted log-probability."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product

import torch

from covey import recipes
from covey.recipes.claims.claim import Claim, Near
from covey.recipes.claims.data import hold, loss_of, make_batch, prepare
from covey.recipes.claims.exact import expect_group, factor, two_arms
from covey.recipes.claims.learn import Plan, area, at_level, learn, reached
from covey.recipes.claims.worlds import Arms, Phrases
from covey.recipes.recipe import Recipe
from covey.stages.penalties import Kl

TWO = Plan(batches=120, prompts=8, samples=8, lr=0.05)
QUESTIONS = Plan(batches=250, prompts=3, samples=8, lr=0.2, adam=False, until=0.85)
SETS = Plan(batches=30, prompts=8, samples=8)


def without_kl(name: str) -> Recipe:
    """The recipe without its penalties."""
    return recipes.get(name).but(penalties=())


def distinct(recipe: Recipe, size: int, components: int = 2) -> int:
    """How many different (sorted) vectors of advantages a group gets, over all assignments of binary rewards.

    Equal to four digits is equal: beside a std the recipes' eps tells (0, 1) and (0, 2) from each other in the sixth.
    """
    values = list(product(product((0.0, 1.0), repeat=components), repeat=size))
    reward = torch.tensor(values, dtype=torch.float64).flatten(0, 1)
    group = torch.arange(len(values)).repeat_interleave(size)
    step = prepare(recipe, make_batch(torch.zeros(len(group), 1, dtype=torch.long), reward, group))
    return len({tuple(sorted(round(a, 4) + 0.0 for a in row)) for row in step.advantage.reshape(-1, size).tolist()})


def resolution(seed: int) -> Mapping[str, float]:
    """Distinct vectors for G = 4 and two rewards, apart minus summed; beside them the counts."""
    known = {"apart": "gdpo", "sum without std": "dr_grpo", "sum": "grpo"}
    found = {label: distinct(without_kl(name), 4) for label, name in known.items()}
    more = {f"{label}, G = 5": float(distinct(without_kl(name), 5)) for label, name in known.items()}
    return {"apart - sum": float(found["apart"] - found["sum"]), **{k: float(v) for k, v in found.items()}, **more}


def two_rewards(seed: int) -> Arms:
    """Eight prompts with four arms: well-formed or not (.9), right or not (.05)."""
    form, right = torch.tensor([1.0, 0, 1, 0]), torch.tensor([1.0, 1, 0, 0])
    start = torch.where(form == 1, 0.9, 0.1) * torch.where(right == 1, 0.05, 0.95)
    return Arms(start.repeat(8, 1), torch.stack([form, right], 1).repeat(8, 1, 1), ("form", "right"))


def both_rewards(seed: int) -> Mapping[str, float]:
    """Batches until both rewards reach .9, summed minus apart."""
    apart, summed = (learn(without_kl(name), two_rewards, TWO, seed) for name in ("gdpo", "grpo"))
    batches = [reached(curve, 0.9, of="least") for curve in (apart, summed)]
    return {
        "batches summed - apart": batches[1] - batches[0],
        "batches, apart": batches[0],
        "batches, summed": batches[1],
        "least reward over the curve, apart - summed": area(apart, "least") - area(summed, "least"),
    }


def fit(recipe: Recipe, seed: int, steps: int = 3000) -> float:
    """KL(policy, optimum) of six arms worth 0 to 1 after Adam on samples of the uniform reference, coefficient .3."""
    draw, worth = torch.Generator().manual_seed(seed), torch.linspace(0, 1, 6, dtype=torch.float64)
    logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.01)
    for _ in range(steps):
        draws = torch.randint(6, (32, 8), generator=draw)
        batch = make_batch(draws.flatten()[:, None], worth[draws.flatten()], torch.arange(32).repeat_interleave(8))
        uniform = {"ref_logp": torch.full_like(batch.old_logp, -math.log(6))}
        batch = hold(batch, logits.detach().log_softmax(0)[batch.tokens], uniform)
        optimizer.zero_grad()
        loss_of(recipe, logits, prepare(recipe, batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    logp, best = logits.detach().log_softmax(0), (worth / 0.3).log_softmax(0)
    return float((logp.exp() * (logp - best)).sum())


def optimum(seed: int) -> Mapping[str, float]:
    """How far the regression and the penalised gradient end from the optimum of the KL-regularised reward."""
    regressed = recipes.get("gvpo").but(**{"surrogate.coef": 0.3, "surrogate.anchor": "reference"})
    penalised = recipes.get("grpo").but(penalties=(Kl(coef=0.3, estimator="k3"),))
    found = [fit(regressed, seed), fit(penalised, seed)]
    return {"KL to the optimum": found[0], "KL, group std and k3 on the same samples": found[1]}


def scale(recipe: Recipe, p: float, size: int = 8) -> float:
    """The expected push on the logit of a question solved with probability p, given groups with both outcomes."""
    both = 1 - p**size - (1 - p) ** size
    return float(expect_group(recipe, size, *two_arms(p))[0]) / both


def difficulty(seed: int) -> Mapping[str, float]:
    """The push of a hard question (.05) over that of a medium one (.5), given both outcomes."""
    names = ("disco", "grpo", "dr_grpo")
    ratios = {name: scale(without_kl(name), 0.05) / scale(without_kl(name), 0.5) for name in names}
    return {"hard / medium": ratios["disco"], **{f"{name}, hard / medium": ratios[name] for name in names[1:]}}


def questions(seed: int) -> Arms:
    """Three questions with two answers, solved with .05, .5 and .95."""
    p = torch.tensor([0.05, 0.5, 0.95])
    return Arms(torch.stack([p, 1 - p], 1), torch.tensor([[[1.0], [0.0]]] * 3))


def hard_question(seed: int) -> Mapping[str, float]:
    """Success on the hard question when the mean reaches .8: classes against group std."""
    return _hard("disco", seed)


def hard_question_by_ratio(seed: int) -> Mapping[str, float]:
    """The same with ratios as scores."""
    return _hard("disco_ratio", seed)


def _hard(name: str, seed: int) -> Mapping[str, float]:
    classes, std = (
        learn(recipes.get(name), questions, QUESTIONS, seed),
        learn(without_kl("grpo"), questions, QUESTIONS, seed),
    )
    hard = [at_level(curve, "prompt0", 0.8) for curve in (classes, std)]
    return {
        "hard, classes - group std": hard[0] - hard[1],
        "hard, classes": hard[0],
        "hard, group std": hard[1],
        "entropy, classes - group std": at_level(classes, "entropy", 0.8) - at_level(std, "entropy", 0.8),
        "batches, classes": reached(classes, 0.8),
        "batches, group std": reached(std, 0.8),
    }


def sets(seed: int) -> Mapping[str, float]:
    """pass@4 over the curve, sets of samples against single ones."""
    by_sets = recipes.get("pass_k_training")
    curves = [learn(recipe, Phrases, SETS, seed) for recipe in (by_sets, by_sets.but(advantage="group_norm"))]
    by_set, single = curves
    return {
        "pass@4, sets - single": area(by_set, "pass4") - area(single, "pass4"),
        "pass@1, sets - single": area(by_set) - area(single),
        "entropy at the end, sets - single": by_set[-1]["entropy"] - single[-1]["entropy"],
        "pass@4 at the end, sets": by_set[-1]["pass4"],
        "pass@4 at the end, single": single[-1]["pass4"],
    }


def likelihood(seed: int) -> Mapping[str, float]:
    """Distance of the expected gradient to that of the likelihood's expansion to G - 1 terms; beside it the limit 1/p."""
    recipe = without_kl("maxrl").but(weighting="rollout_mean", **{"advantage.eps": 0.0})
    worst = max(abs(_over_likelihood(recipe, 4, p, 3) - 1) for p in (0.05, 0.3, 0.9))
    shares = {f"share of 1/p at p = .3, G = {g}": factor(recipe, g, 0.3) * 0.3 for g in (2, 4, 8)}
    return {"largest relative error": worst, **shares}


def _over_likelihood(recipe: Recipe, size: int, p: float, terms: int) -> float:
    return factor(recipe, size, p) * p / (1 - (1 - p) ** terms)


claims = (
    Claim(
        name="distinct-advantages",
        recipes=("gdpo",),
        says="Rewards normalised apart tell more outcomes from each other than their sum does.",
        paper="More distinct groups of advantages (arXiv 2601.05242, a figure). By count 14, 10, 7 at G = 4.",
        measures="distinct sorted advantage vectors of a group of 4, all assignments of two binary rewards, apart minus summed",
        trial=resolution,
    ),
    Claim(
        name="two-rewards",
        recipes=("gdpo",),
        says="Both an easy and a hard reward are learnt sooner where they are normalised apart.",
        paper="BFCL-v3, 1.5B: accuracy 30.18 -> 32.81, format 76.33 -> 80.66 (arXiv 2601.05242).",
        measures="batches until both rewards reach .9, summed minus apart; from form .9 and right .05, four passes per batch",
        trial=both_rewards,
        seeds=16,
    ),
    Claim(
        name="optimum-off-policy",
        recipes=("gvpo",),
        says="The optimum pi_ref exp(R / beta) is reached from samples of another policy.",
        paper="A unique optimum under any sampler with full support (arXiv 2504.19599): KL 0.",
        measures="KL(policy, optimum) after 3000 Adam steps on uniform samples, 6 arms, beta .3, 32 x 8",
        trial=optimum,
        rule=Near(0, 1e-4),
        seeds=3,
        quick=2,
    ),
    Claim(
        name="no-difficulty-weight",
        recipes=("disco",),
        says="A question's weight does not depend on how hard it is.",
        paper="Weight 1 against sqrt(p (1 - p)) with the group's std (arXiv 2505.12366): .2179 / .5 = .436.",
        measures="push of a question solved with .05 over that of one with .5, given both outcomes; G = 8 enumerated",
        trial=difficulty,
        rule=Near(1),
    ),
    Claim(
        name="hard-question",
        recipes=("disco",),
        says="Hard questions improve more than with the group's std.",
        paper="Six mathematics sets .533 against .457, 1.5B (arXiv 2505.12366).",
        measures="success on the hard of three questions (from .05) when their mean is .8, classes minus group std; four passes",
        trial=hard_question,
        seeds=16,
        note="At equal mean success, so that the size of steps has no say.",
    ),
    Claim(
        name="hard-question-ratio",
        recipes=("disco_ratio",),
        says="Hard questions improve more than with the group's std, ratios as scores.",
        paper="A direction; its number for this form was not read (arXiv 2505.12366).",
        measures="success on the hard of three questions (from .05) when their mean is .8, classes minus group std; four passes",
        trial=hard_question_by_ratio,
        seeds=16,
    ),
    Claim(
        name="sets-of-samples",
        recipes=("pass_k_training",),
        says="Training on pass@k raises it above what training on pass@1 gives.",
        paper="pass@k rises where training on pass@1 stands still, at no cost in pass@1 (arXiv 2508.10751, curves).",
        measures="mean pass@4 over 30 batches of four passes, sets of 4 minus single samples",
        trial=sets,
        seeds=16,
    ),
    Claim(
        name="likelihood-gradient",
        recipes=("maxrl",),
        says="Division by the group's mean gives the gradient of the log-likelihood, up to as many terms as samples allow.",
        paper="More samples approach maximum likelihood, weight 1/p (arXiv 2602.02710).",
        measures="largest relative error of E[gradient] / true gradient to (1 - (1 - p)^(G-1)) / p; p = .05, .3, .9, G = 4",
        trial=likelihood,
        rule=Near(0),
    ),
)
