"""LitePPO (arXiv 2508.08221): two tricks are enough: GRPO's group mean over the std of the whole batch, and a mean over
tokens; no critic, no KL, no filter, no higher clip.

A = (R - mean_group) / (std_batch + 1e-6), the std of all raw rewards;
loss = mean over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A).

Use: base models, hard data above all: there it beats grpo and dapo in its paper with nothing else on top.
Avoid: aligned models (a mean over responses learns faster there), rewards concentrated on one value (drop the std: dr_grpo).
Watch: advantage/abs as the easy prompts saturate, clip/low and clip/high, entropy/sampled, length/mean.
"""

from covey.recipes.grpo import grpo
from covey.stages.advantages import GroupNorm
from covey.stages.weighting import TokenMean

lite_ppo = grpo.but(
    name="lite_ppo",
    advantage=GroupNorm(baseline="mean", scale="batch", ddof=1, eps=1e-6),
    weighting=TokenMean(),
    penalties=(),
)
