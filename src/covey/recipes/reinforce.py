"""REINFORCE with a batch baseline (Williams 1992): one mean for the whole batch, no ratio, no clip; one optimizer step per batch.

A = R - mean_batch;  loss = mean over responses of -A log pi(response).
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
