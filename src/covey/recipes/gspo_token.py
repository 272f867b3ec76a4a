"""GSPO-token (arXiv 2507.18071): the sequence ratio's value with each token's own gradient, so that an advantage may differ
from token to token; with one per response it is GSPO.

A = (R - mean_group) / (std_group + eps);  s_t = sg(s) exp(l_t - sg(l_t)), s = exp(mean over the response of log rho);
loss = mean over responses of the token mean of -min(s_t A_t, clip(s_t, 1 - 0.0003, 1 + 0.0004) A_t).

Use: several turns or steps with rewards of their own, beside an advantage per token.
Avoid: one advantage per response: gspo says the same with less.
Watch: clip/low and clip/high apart: with mixed signs a response is clipped on one side only; ratio/abs_log against the band.
"""

from covey.recipes.gspo import gspo
from covey.stages.ratios import SequenceTokenRatio

gspo_token = gspo.but(name="gspo_token", ratio=SequenceTokenRatio(anchor="old"))
