"""Claims about what replaces a clip: smooth gates, masks by divergence, and tokens picked by their covariance."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from covey import recipes
from covey.recipes.claims.claim import Claim, Near
from covey.recipes.claims.clips import WORDS, entropy_at, faster, rise, share_without_gradient, slopes_apart
from covey.recipes.claims.learn import area, learn, reached
from covey.recipes.claims.worlds import Phrases
from covey.stages.surrogates import Clip


def smooth(seed: int) -> Mapping[str, float]:
    """Share of log-ratios in [-3, 3] without any gradient, both signs of A; beside it how much is left far out."""
    gate, far = recipes.get("sapo"), torch.tensor([1.0, 2.0, 8.0], dtype=torch.float64)
    share = (share_without_gradient(gate) + share_without_gradient(gate, -1.0)) / 2
    slope = slopes_apart(gate, far.log()).tolist()
    return {"share without gradient": share} | {f"slope at rho = {int(r)}": s for r, s in zip(far, slope, strict=True)}


def gentle_unlearning(seed: int) -> Mapping[str, float]:
    """How much less gradient a token of ratio 2 has where A < 0 than where A > 0."""
    gate = recipes.get("sapo")
    good, bad = (abs(float(slopes_apart(gate, torch.tensor([2.0]).double().log(), a)[0])) for a in (1.0, -1.0))
    return {"slope, A > 0 - A < 0": good - bad, "A > 0": good, "A < 0": bad}


def gate_steps(seed: int) -> Mapping[str, float]:
    """Gate against clip."""
    return faster("sapo", "grpo", seed)


def gate_against_sequence(seed: int) -> Mapping[str, float]:
    """Gate against a clip of whole sequences."""
    return faster("sapo", "gspo", seed)


def mask_of_rare(seed: int) -> Mapping[str, float]:
    """How much further a rare token (.01) rises within a batch under a mask by divergence than under the clip."""
    masked, clipped = rise("dppo"), rise("dr_grpo")
    return {"rise - rise of the clip": masked - clipped, "rises to": masked, "rises to, clip": clipped}


def mask_of_frequent(seed: int) -> Mapping[str, float]:
    """Fall of a frequent token (.99) that is still pushed down: how much probability may go, clip minus mask."""
    levels, fall = torch.arange(1, 990, dtype=torch.float64) / 1000, {}
    for name in ("dr_grpo", "dppo"):
        pushed = slopes_apart(recipes.get(name), levels.log() - math.log(0.99), -1.0, levels.log()[:, None]) != 0
        fall[name] = 0.99 - float(levels[pushed].min())
    return {
        "fall of the clip - of the mask": fall["dr_grpo"] - fall["dppo"],
        "clip": fall["dr_grpo"],
        "mask": fall["dppo"],
    }


def mask_steps(seed: int) -> Mapping[str, float]:
    """Mask against clip, advantages alike."""
    return faster("dppo", "dr_grpo", seed)


def held_entropy(name: str, seed: int) -> Mapping[str, float]:
    """Entropy at equal success, with minus without the picked tokens' treatment: the plain recipe has the clip at .2."""
    picked = recipes.get(name).but(admit=())
    plain, bare = picked.but(surrogate="clip"), picked.but(surrogate=Clip(low=1.0, high=20.0))
    curves = [learn(recipe, Phrases, WORDS, seed) for recipe in (picked, plain, bare)]
    return {
        "entropy with - without": entropy_at(curves[0]) - entropy_at(curves[1]),
        "entropy with": entropy_at(curves[0]),
        "entropy without": entropy_at(curves[1]),
        "entropy with - of no clip at all": entropy_at(curves[0]) - entropy_at(curves[2]),
        "batches to .8 with - without": reached(curves[0], 0.8) - reached(curves[1], 0.8),
    }


def dropped_covariance(seed: int) -> Mapping[str, float]:
    """Tokens of large covariance dropped."""
    return held_entropy("clip_cov", seed)


def held_covariance(seed: int) -> Mapping[str, float]:
    """Tokens of large covariance held."""
    return held_entropy("kl_cov", seed)


def covariance(seed: int) -> Mapping[str, float]:
    """The mean covariance of advantage and logp along training with the plain clip."""
    curve = learn(recipes.get("grpo").but(penalties=()), Phrases, WORDS, seed)
    return {
        "covariance": area(curve[1:], "covariance"),
        "entropy lost": curve[0]["entropy"] - curve[-1]["entropy"],
    }


claims = (
    Claim(
        name="smooth-gate",
        recipes=("sapo",),
        says="The gate never ends a token's gradient, it lets it fade.",
        paper="A continuous trust region in place of a hard one (arXiv 2511.20347); no number.",
        measures="share of log-ratios in [-3, 3] without gradient, both signs of A",
        trial=smooth,
        rule=Near(0),
    ),
    Claim(
        name="gentle-unlearning",
        recipes=("sapo",),
        says="Off-policy tokens with A < 0 fade faster than those with A > 0.",
        paper="tau 1.05 against 1 steadies training (arXiv 2511.20347, curves).",
        measures="slope at ratio 2, A > 0 minus |slope| where A < 0",
        trial=gentle_unlearning,
    ),
    Claim(
        name="gate-steps",
        recipes=("sapo",),
        says="The gate learns faster than the token clip.",
        paper="Steadier and higher pass@1 under equal budgets (arXiv 2511.20347, curves).",
        measures="1 - batches to .9 success / those of the clip at .2; four passes per batch",
        trial=gate_steps,
        seeds=16,
    ),
    Claim(
        name="gate-steps-sequence",
        recipes=("sapo", "gspo"),
        says="The gate learns faster than a clip of sequences.",
        paper="Steadier and higher pass@1 under equal budgets (arXiv 2511.20347, curves).",
        measures="1 - batches to .9 success / those of the sequence clip; four passes per batch",
        trial=gate_against_sequence,
        seeds=16,
        note="The sequence clip's band of 3e-4 and 4e-4 is meant for long responses; here they have three words.",
    ),
    Claim(
        name="divergence-mask-rare",
        recipes=("dppo",),
        says="A clip of ratios holds rare tokens back too much.",
        paper="Ratio clipping over-constrains rare tokens (arXiv 2602.04879); a bound of .15 lets .01 rise to .16.",
        measures="probability of a rare arm (.01) after 200 steps on one batch, mask minus clip at .2",
        trial=mask_of_rare,
    ),
    Claim(
        name="divergence-mask-frequent",
        recipes=("dppo",),
        says="A clip of ratios lets frequent tokens fall too far.",
        paper="Ratio clipping under-constrains frequent tokens (arXiv 2602.04879); .99 may lose .15 against .198.",
        measures="probability that a token of .99 may lose while it is still pushed down, clip at .2 minus mask",
        trial=mask_of_frequent,
    ),
    Claim(
        name="divergence-mask-steps",
        recipes=("dppo",),
        says="The mask learns faster than the clip.",
        paper="Steadier and more efficient than clipped baselines (arXiv 2602.04879, curves).",
        measures="1 - batches to .9 success / those of the clip at .2; four passes per batch, advantages alike",
        trial=mask_steps,
        seeds=16,
    ),
    Claim(
        name="covariance-sign",
        recipes=("clip_cov", "kl_cov"),
        says="Advantage and log-probability covary, which is what lowers the entropy.",
        paper="The covariance stays positive in training while entropy falls (arXiv 2505.22617, curves).",
        measures="mean covariance over tokens and batches until .95 success, plain clip at .2",
        trial=covariance,
        seeds=16,
    ),
    Claim(
        name="clip-cov-entropy",
        recipes=("clip_cov",),
        says="Dropping a few tokens of large covariance keeps entropy up at equal reward.",
        paper="Entropy stays up late in training (arXiv 2505.22617, curves); +2.0 % (7B), +6.4 % (32B).",
        measures="entropy in nats per word when success reaches .8, with minus plain clip at .2; four passes per batch",
        trial=dropped_covariance,
        seeds=16,
        note="Its share of 0.02 % is one token of 192 here.",
    ),
    Claim(
        name="kl-cov-entropy",
        recipes=("kl_cov",),
        says="Holding a few tokens of large covariance keeps entropy up at equal reward.",
        paper="Entropy stays up late in training (arXiv 2505.22617, curves); +2.0 % (7B), +6.4 % (32B).",
        measures="entropy in nats per word when success reaches .8, with minus plain clip at .2; four passes per batch",
        trial=held_covariance,
        seeds=16,
        note="Its share of 0.2 % is one token of 192 here.",
    ),
)
