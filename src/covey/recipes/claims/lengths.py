"""Claims about length: which recipes make responses longer or shorter than their worth says."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from covey import recipes
from covey.batch import Credited, Live
from covey.recipes.claims.claim import AtLeast, Claim, Near
from covey.recipes.claims.data import hold, make_batch
from covey.recipes.claims.learn import Curve, Plan, learn
from covey.recipes.claims.worlds import Filler
from covey.recipes.recipe import Recipe
from covey.stages.credit import weigh
from covey.stages.objective import objective

STOPS_AT = ((0.5, 60), (0.1, 330), (0.02, 1600))
"""Stop probabilities, and the length beyond which what is left of the geometric distribution is below rounding."""
FEW = Plan(batches=80, samples=8, lr=0.02)
MANY = Plan(batches=80, samples=16, lr=0.02)


def drift(recipe: Recipe, p: float, longest: int) -> float:
    """Expected push on the stop logit per unit of negative advantage, lengths geometric with stop probability p."""
    n = longest
    at, length = torch.arange(n)[None], torch.arange(1, n + 1)
    mask = at < length[:, None]
    logit = torch.tensor(math.log(p / (1 - p)), dtype=torch.float64, requires_grad=True)
    stop, go = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
    logp = torch.where(mask, torch.where(at == length[:, None] - 1, stop, go), torch.zeros((), dtype=torch.float64))
    batch = make_batch(torch.zeros(n, n, dtype=torch.long), torch.zeros(n), torch.arange(n) * 0, mask=mask)
    batch = hold(batch, logp, {"correction": mask.double()})
    step = weigh(recipe, Credited(**vars(batch), advantage=-mask.double(), weight=mask.double()))
    chance = p * (1 - p) ** (length.double() - 1)
    loss, _ = objective(recipe, Live(logp), step.with_(weight=step.weight * n * chance[:, None]), {})
    (gradient,) = torch.autograd.grad(-loss, logit)
    return -float(gradient)


def length_division(seed: int) -> Mapping[str, float]:
    """The smallest push towards longer wrong answers that the division by their length gives."""
    found = {p: drift(recipes.get("grpo").but(penalties=()), p, longest) for p, longest in STOPS_AT}
    return {
        "smallest drift": min(found.values()),
        **{f"at stop probability {p:g}": value for p, value in found.items()},
    }


def constant_divisor(seed: int) -> Mapping[str, float]:
    """The same with a constant divisor."""
    found = [drift(recipes.get("dr_grpo"), p, longest) * longest for p, longest in STOPS_AT]
    return {"largest drift": max(map(abs, found))}


def _late(curve: Curve, name: str) -> float:
    """The mean of the last ten batches: one batch's policy is noisy."""
    return sum(point[name] for point in curve[-10:]) / 10


def shorter(name: str, seed: int) -> Mapping[str, float]:
    """Mean length of right answers with some of 16 kept against all of 8 trained, after equally many steps; and what it costs.

    Both are the same recipe but for the filter: KL, entropy bonus, std and weights are alike.
    """
    recipe = recipes.get(name)
    many, few = learn(recipe, Filler, MANY, seed), learn(recipe.but(name="all", filters=()), Filler, FEW, seed)
    return {
        "right length of all of 8 - right length": _late(few, "right length") - _late(many, "right length"),
        "right length": _late(many, "right length"),
        "right length, all of 8": _late(few, "right length"),
        "length, right or wrong": _late(many, "length"),
        "length, right or wrong, all of 8": _late(few, "length"),
        "accuracy - accuracy of all of 8": _late(many, "success") - _late(few, "success"),
        "share of filler": _late(many, "filler"),
        "share of filler, all of 8": _late(few, "filler"),
    }


def shortest(seed: int) -> Mapping[str, float]:
    """The shortest half kept."""
    return shorter("gfpo", seed)


def efficient(seed: int) -> Mapping[str, float]:
    """The half with the most reward per token kept."""
    return shorter("gfpo_efficiency", seed)


def adaptive(seed: int) -> Mapping[str, float]:
    """The shortest kept, fewer of easy prompts."""
    return shorter("gfpo_adaptive", seed)


COST = "accuracy - accuracy of all of 8"


def accuracy(name: str, seed: int) -> Mapping[str, float]:
    """What the shorter responses cost, from the same runs."""
    return {COST: shorter(name, seed)[COST]}


def shortest_accuracy(seed: int) -> Mapping[str, float]:
    """The shortest half kept."""
    return accuracy("gfpo", seed)


def efficient_accuracy(seed: int) -> Mapping[str, float]:
    """The half with the most reward per token kept."""
    return accuracy("gfpo_efficiency", seed)


def adaptive_accuracy(seed: int) -> Mapping[str, float]:
    """The shortest kept, fewer of easy prompts."""
    return accuracy("gfpo_adaptive", seed)


FILLER = (
    "mean length of right answers after 320 optimizer steps (4 per batch), all of 8 trained minus 8 of 16 kept; a policy of "
    "useful, filler and stop tokens, length-aware reward, Adam"
)

LOSS = "accuracy of the same policies, 8 of 16 kept minus all of 8 trained; two points are allowed"

claims = (
    Claim(
        name="length-division-drift",
        recipes=("grpo",),
        says="Dividing by a response's length makes wrong answers longer.",
        paper="Wrong answers keep growing (arXiv 2503.20783, a curve). Closed form: .193147, .155843, .059837.",
        measures="push against the stop logit per unit of negative advantage, geometric lengths, the smallest of three",
        trial=length_division,
    ),
    Claim(
        name="constant-divisor-drift",
        recipes=("dr_grpo",),
        says="A constant divisor does not.",
        paper="Wrong answers stop growing (arXiv 2503.20783, a curve). Closed form: 0.",
        measures="the same push times the divisor, the largest of three",
        trial=constant_divisor,
        rule=Near(0, 1e-8),
    ),
    Claim(
        name="shortest-k-length",
        recipes=("gfpo",),
        says="Training on the shortest of more samples makes responses shorter.",
        paper="Excess length cut by 46 to 71 % with 4 of 24, accuracy 73.4 with 8 of 16 against 72.1 (arXiv 2508.09726).",
        measures=FILLER,
        trial=shortest,
        seeds=8,
        note="A model in which every token helps is no test: inside the kept half longer is still more often right there.",
    ),
    Claim(
        name="efficiency-length",
        recipes=("gfpo_efficiency",),
        says="Keeping the most reward per token cuts length most.",
        paper="Excess length cut by 71 to 85 % with 8 of 16, accuracy 71.7 against 72.1 (arXiv 2508.09726).",
        measures=FILLER,
        trial=efficient,
        seeds=8,
    ),
    Claim(
        name="adaptive-length",
        recipes=("gfpo_adaptive",),
        says="Keeping fewer of easy prompts cuts length too.",
        paper="Excess length cut by 35 to 53 %, accuracy 72.9 against 72.1 (arXiv 2508.09726).",
        measures=FILLER,
        trial=adaptive,
        seeds=8,
    ),
    Claim(
        name="shortest-k-accuracy",
        recipes=("gfpo",),
        says="The selection costs no accuracy.",
        paper="73.4 with 8 of 16 against 72.1, no significant difference (arXiv 2508.09726).",
        measures=LOSS,
        trial=shortest_accuracy,
        rule=AtLeast(-0.02),
        seeds=8,
    ),
    Claim(
        name="efficiency-accuracy",
        recipes=("gfpo_efficiency",),
        says="The selection costs no accuracy.",
        paper="71.7 with 8 of 16 against 72.1, no significant difference (arXiv 2508.09726).",
        measures=LOSS,
        trial=efficient_accuracy,
        rule=AtLeast(-0.02),
        seeds=8,
    ),
    Claim(
        name="adaptive-accuracy",
        recipes=("gfpo_adaptive",),
        says="The selection costs no accuracy.",
        paper="72.9 against 72.1, no significant difference (arXiv 2508.09726).",
        measures=LOSS,
        trial=adaptive_accuracy,
        rule=AtLeast(-0.02),
        seeds=8,
    ),
)
