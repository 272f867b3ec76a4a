"""GSPO (arXiv 2507.18071): ratio and clip are of whole responses, as the reward is: GRPO with the length-normalised
sequence ratio, a band a thousand times narrower, no KL.

A = (R - mean_group) / (std_group + eps);  s = exp(mean over the response of log rho);
loss = mean over responses of -min(s A, clip(s, 1 - 0.0003, 1 + 0.0004) A).

Use: mixtures of experts and long responses, where single tokens' ratios are noise; four or so optimizer steps per batch.
Avoid: one optimizer step per batch (it is GRPO then), an advantage per token (gspo_token), a noisy sampler with this band.
Watch: clip/low, clip/high (here whole responses), ratio/abs_log against the band, kl/sampled_vs_old.
"""

from covey.recipes.grpo import grpo
from covey.stages.ratios import SequenceRatio
from covey.stages.surrogates import Clip

gspo = grpo.but(
    name="gspo",
    ratio=SequenceRatio(anchor="old"),
    surrogate=Clip(low=3e-4, high=4e-4),
    penalties=(),
)
