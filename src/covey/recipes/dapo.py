"""DAPO (arXiv 2503.14476): refill uninformative groups, soften overlong punishment, mask truncated answers, clip higher,
every token of the step counts the same, no KL.

A as GRPO on R + overlong(len);  loss = sum over tokens of -min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A) / tokens of the step.
"""

from covey.recipes.grpo import grpo
from covey.stages.admit import Informative
from covey.stages.filters import Overlong
from covey.stages.mix import SoftOverlong, WeightedSum
from covey.stages.surrogates import Clip
from covey.stages.weighting import TokenMean

dapo = grpo.but(
    name="dapo",
    admit=(Informative(),),
    mix=WeightedSum(shaping=(SoftOverlong(),)),
    filters=(Overlong(mode="mask"),),
    surrogate=Clip(low=0.2, high=0.28),
    weighting=TokenMean(),
    penalties=(),
)
