"""GFPO by token efficiency (arXiv 2508.09726): keep the 8 responses of a group with the most reward per token instead of the
shortest.

S = the 8 of the group with the largest R / len;  A = [in S] (R - mean_S) / (std_S + 1e-6);
loss = that of GFPO: mean over all tokens of -min(rho A, clip(rho, 1 -+ 0.2) A), dual clip 3, + 0.001 k2 - 0.001 entropy.

Use: graded rewards, best on both sides of 0: long wrong answers then stay in S and are punished the most.
Avoid: rewards of 0 and 1: with 8 right ones or more S is all right and the group teaches nothing.
Watch: advantage/zero_frac, filter/kept_length against filter/all_length, reward/mean, eval/accuracy.
"""

from covey.recipes.gfpo import gfpo
from covey.stages.filters import KBest

gfpo_efficiency = gfpo.but(
    name="gfpo_efficiency",
    filters=(KBest(metric="efficiency", k=8, clamp=False),),
)
