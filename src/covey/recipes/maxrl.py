"""MaxRL (arXiv 2602.02710): follow the likelihood of a right answer instead of its probability: divide by the group's success
rate, so that a prompt counts the more the rarer it is solved; one optimizer step per batch.

A = (R - mean_group) / mean_group, 0 without a right answer;  loss = mean over responses of -A log pi(response).

Use: outcomes of 0 and 1, hard prompts, large groups; where pass@k matters beside pass@1.
Avoid: graded or negative rewards (the mean is no success rate then), noisy verifiers: a lone false positive weighs G - 1.
Watch: group/all_wrong, advantage/abs, grad/norm, eval/pass@* of several k.
"""

from covey.recipes.rloo import rloo
from covey.stages.advantages import GroupNorm
from covey.stages.mix import WeightedSum

maxrl = rloo.but(
    name="maxrl",
    mix=WeightedSum(),
    advantage=GroupNorm(baseline="mean", scale="mean", eps=0.0),
)
