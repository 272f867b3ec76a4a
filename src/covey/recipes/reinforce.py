"""REINFORCE with a batch baseline (Williams 1992): follow the reward against one mean of the whole batch: no group statistics,
no ratio, no clip, one optimizer step per batch.

A = R - mean_batch;  loss = mean over responses of -A log pi(response).

Use: as the plainest baseline of everything else, and where prompts have one sample each.
Avoid: prompts of very different difficulty (easy ones get only positive advantages), more than one optimizer step per batch.
Watch: reward/mean against advantage/abs, grad/norm, entropy/sampled.
"""

from covey.recipes.recipe import Recipe
from covey.stages.advantages import BatchBaseline
from covey.stages.mix import WeightedSum
from covey.stages.surrogates import PolicyGradient
from covey.stages.weighting import RolloutSum

reinforce = Recipe(
    name="reinforce",
    mix=WeightedSum(),
    advantage=BatchBaseline(baseline="mean"),
    weighting=RolloutSum(),
    surrogate=PolicyGradient(),
)
