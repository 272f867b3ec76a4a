"""DPPO (arXiv 2602.04879): a token is left out when its probability moved too far from the sampler's, not when its ratio
did: rare tokens may move freely, frequent ones may not; on the advantage and weights of Dr.GRPO.

A as Dr.GRPO, R - mean_group;  p, q = probability of the token under policy and sampler, rho = p / q;
loss = sum over tokens of -sg(rho M) A log pi / (N * C), M = 0 where A > 0 and p - q > 0.15 or A < 0 and q - p > 0.15.

Use: sampler and learner that differ (other engine, other precision): ratio and mask are anchored at the sampler.
Avoid: top-p or top-k sampling (refused: the sampler's probabilities are not the learner's).
Watch: clip/low, clip/high, ratio/divergence, kl/sampled_vs_old, ratio/max (no weight is cut).
"""

from covey.recipes.dr_grpo import dr_grpo
from covey.stages.detached import DivergenceMask
from covey.stages.ratios import TokenRatio

dppo = dr_grpo.but(
    name="dppo",
    ratio=TokenRatio(anchor="sampled"),
    surrogate=DivergenceMask(divergence="tv", low=0.15, high=0.15, anchor="sampled"),
)
