"""GMPO (arXiv 2507.20673): the geometric mean of a response's token ratios in place of the arithmetic one, each cut on the
side of its advantage and in log space; an outlier among the tokens weighs little, so that the band may be wide; no KL.

A = (R - mean_group) / (std_group + eps);  d = min(log rho, 0.4) where A > 0, max(log rho, -0.4) where A < 0;
loss = mean over responses of -A exp(mean over the response of d).

Use: several optimizer steps per batch with a few far-off tokens per response, where a token clip is unstable.
Avoid: an advantage per token (refused), bounds of a linear clip (0.2 and 0.28 mean something else in log space).
Watch: clip/low, clip/high, ratio/out_of_band, ratio/max, entropy/sampled.
"""

from covey.recipes.grpo import grpo
from covey.stages.surrogates import GeometricMean

gmpo = grpo.but(
    name="gmpo",
    surrogate=GeometricMean(low=0.4, high=0.4),
    penalties=(),
)
