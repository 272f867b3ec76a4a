"""CISPO (arXiv 2506.13585): the importance weight is truncated and detached instead of the update being clipped, so that no
token loses its gradient; every token of the step counts the same, no KL.

A = (R - mean_group) / (std_group + eps);
loss = sum over tokens of -sg(clip(rho, 0, 5)) A log pi / tokens of the step.

Use: many optimizer steps per batch, where a clip would drop the rare tokens that start a reflection; base models.
Avoid: where drift has to be bounded: nothing here stops it; a bound below 1 (refused: it would shrink every gradient).
Watch: clip/weight_high and its share with A < 0, weight/mean, kl/sampled_vs_policy, entropy/sampled.
"""

from covey.recipes.grpo import grpo
from covey.stages.detached import DetachedWeight
from covey.stages.weighting import TokenMean

cispo = grpo.but(
    name="cispo",
    weighting=TokenMean(),
    surrogate=DetachedWeight(low=0.0, high=5.0),
    penalties=(),
)
