"""SAPO (arXiv 2511.20347): a smooth gate replaces the clip, so that a token's gradient fades with its distance instead of
ending, faster where the advantage is negative; no KL.

A = (R - mean_group) / (std_group + eps);  tau = 1 where A > 0, 1.05 elsewhere;
loss = mean over responses of the token mean of -(4 / tau) sigmoid(tau (rho - 1)) A.

Use: several optimizer steps per batch, mixtures of experts: one far-off token does not silence its response.
Avoid: where a hard bound is wanted: at rho = 2 the gate still lets 0.79 through, and it is no function of the divergence.
Watch: gate/mean, ratio/max, kl/sampled_vs_policy; the value of the loss is not comparable (2 A / tau at rho = 1).
"""

from covey.recipes.grpo import grpo
from covey.stages.surrogates import SoftGate

sapo = grpo.but(
    name="sapo",
    surrogate=SoftGate(positive=1.0, negative=1.05),
    penalties=(),
)
