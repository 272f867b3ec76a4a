"""Dr.GRPO (arXiv 2503.20783): GRPO without the std and without the length division, so that neither difficulty nor length
biases it; no KL.

A = R - mean_group;  loss = sum over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) / (N * C), C = the run's token budget.

Use: as a default: no reference model, no bias by length; rewards that are concentrated (easy data), where a std blows up.
Avoid: a budget that changes on the way (C is the step size), rewards on very different scales.
Watch: length/mean of right and wrong answers, grad/norm, group/mixed, clip/low and clip/high.
"""

from covey.recipes.grpo import grpo
from covey.stages.advantages import GroupNorm
from covey.stages.weighting import Constant

dr_grpo = grpo.but(
    name="dr_grpo",
    advantage=GroupNorm(baseline="mean", scale="none"),
    weighting=Constant(),
    penalties=(),
)
