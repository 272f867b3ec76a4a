"""Claims about estimators of the divergence: which gradient each has in expectation, as a loss and as a reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from covey import recipes
from covey.recipes.claims.claim import Claim, Near
from covey.recipes.claims.data import bandit, hold, loss_of, prepare
from covey.recipes.claims.exact import LOGITS
from covey.recipes.recipe import Recipe
from covey.stages.advantages import BatchBaseline
from covey.stages.kl import Estimator
from covey.stages.mix import KlSum, WeightedSum
from covey.stages.penalties import Kl

REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
"""Probabilities of the reference; the policy's logits are those of the bandit."""


def exact(direction: Literal["reverse", "forward"]) -> Tensor:
    """The gradient of KL(policy, reference), or of KL(reference, policy), by the logits."""
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    reverse = (logp.exp() * (logp - REFERENCE.log())).sum()
    forward = (REFERENCE * (REFERENCE.log() - logp)).sum()
    (gradient,) = torch.autograd.grad(reverse if direction == "reverse" else forward, logits)
    return gradient


def expect(recipe: Recipe) -> Tensor:
    """The expected gradient of a recipe's loss where all rewards are 0: every arm once, weighted by its chance."""
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    batch = bandit([(0, 1, 2)], torch.zeros(3, dtype=torch.float64))
    columns = {"ref_logp": REFERENCE.log()[batch.tokens]}
    step = prepare(recipe, hold(batch, logp[batch.tokens], columns))
    chance = (3 * logp.detach().exp())[:, None]
    weights = {name: weight * chance for name, weight in step.penalty_weight.items()}
    step = step.with_(weight=step.weight * chance, penalty_weight=weights)
    (gradient,) = torch.autograd.grad(loss_of(recipe, logits, step), logits)
    return gradient


def as_loss(estimator: Estimator) -> Tensor:
    """The expected gradient of an estimator as a loss with the coefficient 1."""
    plain = recipes.get("reinforce")
    return expect(plain.but(penalties=(Kl(coef=1, estimator=estimator),), waivers=("k1_as_loss",)))


def _apart(found: Tensor, first: Literal["reverse", "forward"] = "reverse") -> Mapping[str, float]:
    """Distances to the two exact gradients."""
    other: Literal["reverse", "forward"] = "forward" if first == "reverse" else "reverse"
    return {f"distance to the {d} gradient": float((found - exact(d)).abs().max()) for d in (first, other)}


def k1_as_loss(seed: int) -> Mapping[str, float]:
    """The largest entry of k1's expected gradient."""
    return {"largest entry": float(as_loss("k1").abs().max())}


def k2_as_loss(seed: int) -> Mapping[str, float]:
    """k2 against the reverse divergence."""
    return _apart(as_loss("k2"))


def k3_as_loss(seed: int) -> Mapping[str, float]:
    """k3 against the forward divergence."""
    return _apart(as_loss("k3"), "forward")


def k3_weighted(seed: int) -> Mapping[str, float]:
    """Both mended forms of k3 against the reverse divergence."""
    found = [_apart(as_loss(name)) for name in ("k3_importance", "k3_straight_through")]
    return {"largest distance to the reverse gradient": max(next(iter(one.values())) for one in found)}


def k1_as_reward(seed: int) -> Mapping[str, float]:
    """k1 in the reward against the reverse divergence."""
    mix = WeightedSum(shaping=(KlSum(coef=1),))
    return _apart(expect(recipes.get("reinforce").but(mix=mix, advantage=BatchBaseline(baseline="none"))))


WHERE = "3 arms, policy logits (.3, -.2, .1), reference (.2, .5, .3), enumerated"

claims = (
    Claim(
        name="kl-k1-loss",
        recipes=(),
        says="k1 as a loss regularises nothing.",
        paper="Gradient 0 in expectation (arXiv 2510.01555).",
        measures=f"largest entry of the expected gradient; {WHERE}",
        trial=k1_as_loss,
        rule=Near(0),
    ),
    Claim(
        name="kl-k2-loss",
        recipes=(),
        says="k2 as a loss has the gradient of the reverse divergence.",
        paper="Equal (arXiv 2510.01555).",
        measures=f"largest distance of the expected gradient to it; {WHERE}",
        trial=k2_as_loss,
        rule=Near(0),
    ),
    Claim(
        name="kl-k3-loss",
        recipes=("grpo",),
        says="k3 as a loss, as the method writes it, has the gradient of the forward divergence, not the reverse one.",
        paper="A biased first-order approximation (arXiv 2510.01555); unbiased in value (arXiv 2402.03300 eq. 4).",
        measures=f"largest distance of the expected gradient to that of KL(reference, policy); {WHERE}",
        trial=k3_as_loss,
        rule=Near(0),
    ),
    Claim(
        name="kl-k3-mended",
        recipes=(),
        says="k3 times the ratio, and the value of k3 with the gradient of k2, have that of the reverse divergence.",
        paper="Equal; the ratio form is that of DeepSeek-V3.2, no number.",
        measures=f"largest distance of the two expected gradients to it; {WHERE}",
        trial=k3_weighted,
        rule=Near(0),
    ),
    Claim(
        name="kl-k1-reward",
        recipes=("rloo", "ppo"),
        says="k1 in the reward has the gradient of the reverse divergence.",
        paper="Equal (arXiv 2510.01555).",
        measures=f"largest distance of the expected gradient to it; {WHERE}",
        trial=k1_as_reward,
        rule=Near(0),
    ),
)
