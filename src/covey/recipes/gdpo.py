"""GDPO (arXiv 2601.05242): with several rewards normalise each inside the group before they are added, so that a rare one is
heard beside a common one; GRPO elsewhere, no KL.

A_k = (r_k - mean_group) / (std_group + 1e-6);  A = sum of w_k A_k, less its batch mean, over (its batch std + 1e-6);
loss = mean over responses of the token mean of -min(rho A, clip(rho, 1 -+ 0.2) A).

Use: two rewards or more of different rarity or scale (format and correctness, accuracy and length).
Avoid: one reward (the batch scale is all that is left: take grpo), batches in which most groups are all equal.
Watch: reward/* of each component, group/equal_* of each, shaper/whiten, advantage/zero_frac.
"""

from covey.recipes.grpo import grpo
from covey.stages.advantages import ComponentNorm
from covey.stages.mix import Separate
from covey.stages.shapers import Whiten

gdpo = grpo.but(
    name="gdpo",
    mix=Separate(),
    advantage=ComponentNorm(ddof=1, eps=1e-6),
    shapers=(Whiten(unit="rollout", ddof=1, eps=1e-6, inside=False, over="all"),),
    penalties=(),
)
