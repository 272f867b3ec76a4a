"""Clip-Cov (arXiv 2505.22617): a few random tokens among those whose advantage and log-probability covary most lose their
gradient, since these are the ones that use up the policy's entropy.

A as GRPO;  kappa = (A - mean A) (log pi - mean log pi), means over the tokens of the step;
loss = sum over tokens of -min(rho A, clip(rho, 0, 2) A) / tokens of the step, without 0.02 % of them drawn where 1 < kappa < 5.

Use: long runs in which entropy falls to 0 and the reward stops with it; it leaves all other tokens as they are.
Avoid: short runs and small steps, where 0.02 % is the one token that is always drawn: raise the share, or use kl_cov.
Watch: covariance/dropped, covariance/mean (positive while entropy falls), entropy/sampled, clip/high.
"""

from covey.recipes.grpo import grpo
from covey.stages.admit import Informative
from covey.stages.covariance import CovarianceClip
from covey.stages.weighting import TokenMean

clip_cov = grpo.but(
    name="clip_cov",
    admit=(Informative(),),
    weighting=TokenMean(),
    surrogate=CovarianceClip(low=1.0, high=1.0, share=2e-4, floor=1.0, ceiling=5.0),
    penalties=(),
)
