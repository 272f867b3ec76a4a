"""What OpenRLHF 0.11.2 runs with the defaults of its PPO command: token mean, clip 0.2, KL (k1) of 0.01 in the reward.

The KL is taken from every token's reward after the baseline, so no baseline sees it. Batch statistics are those of the
population, over tokens, in float32.
"""

from __future__ import annotations

from covey.recipes.dr_grpo import dr_grpo
from covey.recipes.grpo import grpo
from covey.recipes.gspo import gspo
from covey.recipes.ppo import ppo
from covey.recipes.recipe import Recipe
from covey.recipes.reinforce_plus_plus import reinforce_plus_plus
from covey.recipes.reinforce_plus_plus_baseline import reinforce_plus_plus_baseline
from covey.recipes.rloo import rloo
from covey.stages.gae import Gae
from covey.stages.mix import TokenKl, WeightedSum
from covey.stages.ratios import TokenRatio
from covey.stages.shapers import KlToGo, Whiten
from covey.stages.surrogates import Clip
from covey.stages.values import SeparateCritic
from covey.stages.weighting import TokenMean

KL = KlToGo(coef=0.01)
TOKENS = Whiten(unit="token", ddof=0, eps=0.0)


def _clipped(parent: Recipe, **changes: object) -> Recipe:
    """The parent under OpenRLHF's policy loss."""
    policy = {"ratio": TokenRatio(anchor="old"), "surrogate": Clip(low=0.2, high=0.2), "weighting": TokenMean()}
    return parent.but(**{**policy, "penalties": (), **changes})


presets = (
    (
        _clipped(grpo, name="grpo@openrlhf", shapers=(KL,), **{"advantage.eps": 1e-9}),
        """GRPO by OpenRLHF 0.11.2's estimator group_norm and else its defaults (arXiv 2402.03300): a token mean, and a KL in the
reward that is neither compared with the group nor divided by its std.

A_t = (R - mean_group) / (std_group + 1e-9) - 0.01 sum from t on of (log pi_old - log pi_ref);
loss = sum over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) / tokens of the step.

Use: to go on with a run of OpenRLHF.
Avoid: as the paper's GRPO, whose KL is a loss (algo.kl.use_loss, estimator k3) beside a mean over responses.
Watch: shaper/kl_to_go, clip/low, clip/high.
""",
    ),
    (
        _clipped(dr_grpo, name="dr_grpo@openrlhf", shapers=(KL,)),
        """Dr.GRPO by OpenRLHF 0.11.2's estimator dr_grpo and else its defaults (arXiv 2503.20783): the paper's advantage
alone; the divisor is the number of tokens, not a constant.

A_t = R - mean_group - 0.01 sum from t on of (log pi_old - log pi_ref);
loss = sum over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) / tokens of the step.

Use: to go on with a run of OpenRLHF.
Avoid: as Dr.GRPO: the bias by length that it removes is back in part, and it has no KL.
Watch: length of right and wrong answers, shaper/kl_to_go.
""",
    ),
    (
        gspo.but(**{"advantage.eps": 1e-9}, name="gspo@openrlhf", surrogate=Clip(low=0.2, high=0.2)),
        """GSPO by OpenRLHF 0.11.2's policy_loss_type=gspo with group_norm and algo.kl.init_coef=0 (arXiv 2507.18071): a mean
over responses as in the paper, in GRPO's wide band.

A = (R - mean_group) / (std_group + 1e-9);  s = exp(mean over the response of log rho);
loss = mean over responses of -min(s A, clip(s, 1 -+ 0.2) A).

Use: to go on with a run of OpenRLHF.
Avoid: its default KL of 0.01, which gives every token an advantage of its own: under a sequence ratio each token then gets the
mean of all, which is not the policy gradient even at ratio 1. Nor its correction for the sampler, which enters the ratio itself.
Watch: clip/low and clip/high, which stay near 0 in this band.
""",
    ),
    (
        _clipped(rloo, name="rloo@openrlhf", mix=WeightedSum(), shapers=(KL,)),
        """RLOO by OpenRLHF 0.11.2's estimator rloo and else its defaults (arXiv 2402.14740): leave-one-out on the reward
alone, the KL from each token on taken off afterwards, under a token clip.

A_t = R - mean of the others' R - 0.01 sum from t on of (log pi_old - log pi_ref);
loss = sum over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) / tokens of the step.

Use: to go on with a run of OpenRLHF.
Avoid: as the paper's RLOO: there the whole KL of a response is part of the reward that the others are compared with.
Watch: shaper/kl_to_go, clip/high, length/mean.
""",
    ),
    (
        _clipped(
            reinforce_plus_plus,
            name="reinforce_plus_plus@openrlhf",
            mix=TokenKl(coef=0.01, estimator="k1"),
            shapers=(TOKENS,),
        ),
        """REINFORCE++ by OpenRLHF 0.11.2's estimator reinforce and else its defaults (arXiv 2501.03262, the authors' own
code): ten times our KL, and the variance of the population.

r_t = [t is the last] R - 0.01 (log pi_old - log pi_ref);  A = (sum of r from t on - mean_tokens) / std_tokens;
loss = sum over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) / tokens of the step.

Use: to go on with a run of OpenRLHF.
Avoid: prompts of very different difficulty: nothing is compared with its own prompt.
Watch: kl/in_score, shaper/whiten.
""",
    ),
    (
        _clipped(reinforce_plus_plus_baseline, name="reinforce_plus_plus_baseline@openrlhf", shapers=(KL, TOKENS)),
        """REINFORCE++-baseline by OpenRLHF 0.11.2's estimator reinforce_baseline and else its defaults (arXiv 2501.03262):
the KL stays in the reward, while the paper has it as a k2 loss, and whitening is over tokens.

A'_t = R - mean_group - 0.01 sum from t on of (log pi_old - log pi_ref);  A = (A' - mean_tokens) / std_tokens;
loss = sum over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) / tokens of the step.

Use: to go on with a run of OpenRLHF; its algo.kl.use_loss with estimator k2 is the paper's form.
Avoid: responses whose length goes with the reward: whitening over tokens shifts every advantage then.
Watch: shaper/kl_to_go, shaper/whiten, length/mean.
""",
    ),
    (
        _clipped(
            ppo,
            name="ppo@openrlhf",
            mix=TokenKl(coef=0.01, estimator="k1"),
            advantage=Gae(gamma=1.0, lam=1.0),
            shapers=(TOKENS,),
            critic=SeparateCritic(clip=0.5, lr_factor=9.0),
        ),
        """PPO by OpenRLHF 0.11.2's default estimator (arXiv 1707.06347): lam 1, KL of 0.01 in the reward, values clipped at
0.5, a critic of its own that learns nine times as fast.

r_t = [t is the last] R - 0.01 (log pi_old - log pi_ref);  A = GAE(r, V; gamma 1, lam 1), whitened over tokens;
loss = token mean of -min(rho A, clip(rho, 1 -+ 0.2) A);  critic: token mean of the clipped error, halved.

Use: to go on with a run of OpenRLHF.
Avoid: lam below 1 with tokens of tools in a response: its recursion reads a value of 0 there, covey passes over them.
Watch: critic/explained_variance, critic/clipped, kl/in_score.
""",
    ),
)
