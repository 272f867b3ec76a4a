"""KL-Cov (arXiv 2505.22617): the few tokens whose advantage and log-probability covary most are held near the old policy,
since these are the ones that use up the policy's entropy; all other tokens follow the plain ratio.

A as GRPO;  kappa = (A - mean A) (log pi - mean log pi), means over the tokens of the step;
loss = sum over tokens of (-rho A + |log rho| where kappa is among the top 0.2 %) / tokens of the step.

Use: long runs in which entropy falls to 0; steadier than clip_cov, as the held tokens still learn.
Avoid: one optimizer step per batch, where the penalty has no gradient yet; and where drift has to be bounded: nothing is clipped.
Watch: covariance/held and covariance/moved, covariance/mean, ratio/max, entropy/sampled.
"""

from covey.recipes.grpo import grpo
from covey.stages.admit import Informative
from covey.stages.covariance import CovarianceKl
from covey.stages.weighting import TokenMean

kl_cov = grpo.but(
    name="kl_cov",
    admit=(Informative(),),
    weighting=TokenMean(),
    surrogate=CovarianceKl(share=2e-3, coef=1.0),
    penalties=(),
)
