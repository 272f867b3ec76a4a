"""GFPO by difficulty (arXiv 2508.09726): how many responses of a group are kept follows how hard its prompt is among all seen
so far.

k = 8, 8, 6, 4 from the hardest quarter of prompts to the easiest (8 in the first 5 batches);  S = the k shortest;
A = [in S] (R - mean_S) / (std_S + 1e-6);
loss = that of GFPO: mean over all tokens of -min(rho A, clip(rho, 1 -+ 0.2) A), dual clip 3, + 0.001 k2 - 0.001 entropy.

Use: prompts of mixed difficulty in groups of 16: the easy ones are shortened most.
Avoid: groups of 8 or fewer, rewards with two values only: the quartiles of the means then collapse into ties.
Watch: filter/kept_per_group, state/k_best_by_difficulty/means, length/mean, eval/accuracy.
"""

from covey.recipes.gfpo import gfpo
from covey.stages.filters import KBestByDifficulty

gfpo_adaptive = gfpo.but(
    name="gfpo_adaptive",
    filters=(KBestByDifficulty(metric="shortest", k=8, k_by_quartile=(8, 8, 6, 4), warmup=5),),
)
