"""Pass@k training (arXiv 2508.10751): reward a set of k responses for one right answer in it: what each response is worth to
all sets of its group, in closed form; DAPO's clip and token mean, no KL.

W wrong of G: q = C(W, k) / C(G, k), s = sqrt(q (1 - q));
A = q / (s + 1e-6) if right, (q - C(W-1, k-1) / C(G-1, k-1)) / (s + 1e-6) if wrong;
loss = mean over tokens of -min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A).

Use: hard prompts and a policy that stopped exploring; before training for pass@1; groups of 2k or more.
Avoid: as the last stage for pass@1: a group with fewer than k wrong responses teaches nothing.
Watch: group/pass_at_k, advantage/zero_frac, entropy/sampled, eval/pass@* of several k.
"""

from covey.recipes.grpo import grpo
from covey.stages.setwise import PassAtK
from covey.stages.surrogates import Clip
from covey.stages.weighting import TokenMean

pass_k_training = grpo.but(
    name="pass_k_training",
    advantage=PassAtK(k=4, scale="sets", eps=1e-6),
    surrogate=Clip(low=0.2, high=0.28),
    weighting=TokenMean(),
    penalties=(),
)
