"""GRPO (arXiv 2402.03300): rewards are normalised inside each prompt's group instead of by a critic; the parent of most
other recipes.

A = (R - mean_group) / (std_group + 1e-6);
loss = mean over responses of the token mean of -min(rho A, clip(rho, 1 -+ 0.2) A) + 0.04 k3.

Use: verifiable rewards and groups of eight or more; to compare with papers. Instruct models like its mean over responses.
Avoid: long wrong answers (the mean over responses spares them: dr_grpo), prompts that are nearly solved (a std near 0).
Watch: group/mixed, penalty/kl, clip/low and clip/high, length/mean of right and wrong answers, entropy/sampled.
"""

from covey.recipes.recipe import Recipe
from covey.stages.advantages import GroupNorm
from covey.stages.mix import WeightedSum
from covey.stages.penalties import Kl
from covey.stages.ratios import TokenRatio
from covey.stages.surrogates import Clip
from covey.stages.weighting import RolloutMean

grpo = Recipe(
    name="grpo",
    mix=WeightedSum(),
    advantage=GroupNorm(baseline="mean", scale="group", ddof=1, eps=1e-6),
    weighting=RolloutMean(),
    ratio=TokenRatio(anchor="old"),
    surrogate=Clip(low=0.2, high=0.2),
    penalties=(Kl(coef=0.04, estimator="k3", to="reference", weighting=RolloutMean()),),
)
