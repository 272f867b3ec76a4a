"""Dr.GRPO (arXiv 2503.20783): GRPO without the std and without the length division, so that
neither difficulty nor length biases it; no KL.

A = R - mean_group;  loss = sum over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) / (N * C), C = the run's token budget.
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
