"""GFPO by difficulty (arXiv 2508.09726): how many responses of a group are kept follows how hard its prompt is among all seen
so far.

k = 8, 8, 6, 4 from the hardest quarter of prompts to the easiest (8 in the first 5 batches);  S = the k shortest;  loss as GFPO.

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
