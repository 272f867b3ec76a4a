"""GFPO (arXiv 2508.09726): sample more, learn from less: only the shortest 8 responses of each group of GRPO have an advantage.

S = the 8 shortest of the group;  A = [in S] (R - mean_S) / (std_S + 1e-6), the population std;
loss = mean over all tokens of -min(rho A, clip(rho, 1 -+ 0.2) A), dual clip 3, + 0.001 k2 - 0.001 entropy.

Use: groups of 16 or more and answers that have grown without getting better; a reward that is graded or sees length.
Avoid: groups of 8 or fewer (nothing is rejected), a length that right answers need.
Watch: filter/kept_per_group, filter/kept_length against filter/all_length, length/mean, eval/accuracy, clip/dual.
"""

from covey.recipes.grpo import grpo
from covey.stages.advantages import GroupNorm
from covey.stages.filters import KBest
from covey.stages.penalties import Entropy, Kl
from covey.stages.surrogates import Clip
from covey.stages.weighting import TokenMean

gfpo = grpo.but(
    name="gfpo",
    filters=(KBest(metric="shortest", k=8),),
    advantage=GroupNorm(baseline="mean", scale="group", ddof=0, eps=1e-6),
    surrogate=Clip(low=0.2, high=0.2, dual=3.0),
    weighting=TokenMean(),
    penalties=(
        Kl(coef=0.001, estimator="k2", to="reference", weighting=TokenMean()),
        Entropy(coef=0.001, weighting=TokenMean()),
    ),
)
