"""GVPO (arXiv 2504.19599): the log-ratio of a response is read as its implicit reward, and regressed on the reward, both
centred in the group; no clip, no KL term, and samples may come from any policy.

A = R - mean_group;  Q = 0.1 (log pi(y) - log pi_old(y)), summed over tokens;  e = (Q - mean_group Q) - A;
loss = mean over groups of sum e^2 / (2 (G - 1)); truncated responses leave their group.

Use: rewards that differ in size, many steps per batch, stale samples: its optimum pi_old exp(R / 0.1) holds under any sampler.
Avoid: very long responses at this coef, since Q is a sum over tokens: lower coef with length; tasks that truncate most answers.
Watch: residual/mse against residual/actual_var (1 - their ratio is what is explained), kl/sampled_vs_policy, keep/loss.
"""

from covey.recipes.grpo import grpo
from covey.stages.advantages import GroupNorm
from covey.stages.coupled import Residual
from covey.stages.filters import Overlong
from covey.stages.weighting import GroupSum

gvpo = grpo.but(
    name="gvpo",
    filters=(Overlong(mode="exclude"),),
    advantage=GroupNorm(baseline="mean", scale="none"),
    weighting=GroupSum(),
    ratio=None,
    surrogate=Residual(coef=0.1, anchor="old"),
    penalties=(),
)
