"""RLOO (arXiv 2402.14740): REINFORCE whose baseline is the mean of the prompt's other responses, unbiased; a response is one
action, and its KL to the reference is part of its reward.

R' = R - 0.05 sum over tokens of (log pi_old - log pi_ref);  A = R' - mean of the others' R';
loss = mean over responses of -A log pi(response).

Use: two to eight samples per prompt and one optimizer step per batch; where an unbiased gradient matters.
Avoid: more optimizer steps per batch (there is no ratio), groups of one, long responses of very different length.
Watch: shaping/kl_sum, advantage/abs, grad/norm, length/mean.
"""

from covey.recipes.reinforce import reinforce
from covey.stages.advantages import GroupNorm
from covey.stages.mix import KlSum, WeightedSum

rloo = reinforce.but(
    name="rloo",
    mix=WeightedSum(shaping=(KlSum(coef=0.05),)),
    advantage=GroupNorm(baseline="leave_one_out", scale="none"),
)
