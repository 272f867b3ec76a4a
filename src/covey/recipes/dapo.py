"""DAPO (arXiv 2503.14476): GRPO that refills uninformative groups, softens overlong punishment, masks truncated answers, clips
higher and counts every token of the step the same; no KL.

A as GRPO on R + overlong(len);  loss = sum over tokens of -min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A) / tokens of the step.

Use: base models on hard data (token mean), long chains of thought; clip-higher pays on aligned models and at 8B up to 0.28.
Avoid: very long budgets for the overlong mask (it then hides repetition); aligned models prefer a mean over responses.
Watch: admit/kept, admit/waves, shaping/soft_overlong, stop/truncated, clip/high, entropy/sampled, tokens/sampled.
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
