"""What verl 0.9.1 runs with the defaults of its actor: token mean, clip 0.2, dual clip 3, no KL.

A preset is one undivided mini-batch with verl's global counts. Its `geo_mean` takes the mean of a micro-batch; not imitated.
"""

from __future__ import annotations

from covey.recipes.cispo import cispo
from covey.recipes.clip_cov import clip_cov
from covey.recipes.dppo import dppo
from covey.recipes.gdpo import gdpo
from covey.recipes.gmpo import gmpo
from covey.recipes.grpo import grpo
from covey.recipes.gspo_token import gspo_token
from covey.recipes.kl_cov import kl_cov
from covey.recipes.ppo import ppo
from covey.recipes.reinforce_plus_plus import reinforce_plus_plus
from covey.recipes.reinforce_plus_plus_baseline import reinforce_plus_plus_baseline
from covey.recipes.rloo import rloo
from covey.recipes.sapo import sapo
from covey.stages.covariance import CovarianceClip, CovarianceKl
from covey.stages.detached import DetachedWeight, DivergenceMask
from covey.stages.gae import Gae
from covey.stages.mix import WeightedSum
from covey.stages.ratios import SequenceTokenRatio, TokenRatio
from covey.stages.shapers import Whiten
from covey.stages.surrogates import Clip, GeometricMean
from covey.stages.values import SeparateCritic
from covey.stages.weighting import TokenMean

grpo_verl = grpo.but(
    name="grpo@verl",
    weighting=TokenMean(),
    surrogate=Clip(low=0.2, high=0.2, dual=3.0),
    penalties=(),
)
GRPO = """GRPO as verl 0.9.1 runs it for adv_estimator=grpo and else its defaults (arXiv 2402.03300): every token of the step
counts the same, no KL, and a dual clip of 3 that nothing switches off.

A = (R - mean_group) / (std_group + 1e-6);
loss = sum over tokens of -max(min(rho A, clip(rho, 1 -+ 0.2) A), 3 A if A < 0) / tokens of the mini-batch.

Use: to go on with a run of verl, or to compare with numbers made with it.
Avoid: as the paper's GRPO: that is a mean over responses (loss_agg_mode=seq-mean-token-mean) with 0.04 k3 (use_kl_loss).
Watch: clip/dual, the tokens whose unlearning the dual clip ends; a group of one, whose advantage is its raw reward in verl.
"""

gspo_verl = gspo_token.but(
    name="gspo@verl",
    ratio=SequenceTokenRatio(anchor="old", ceiling=10.0),
    surrogate=Clip(low=0.2, high=0.2),
    weighting=TokenMean(),
    waivers=("sequence_ratio_token_mean",),
)
GSPO = """GSPO as verl 0.9.1 runs it for loss_mode=gspo and else its defaults (arXiv 2507.18071): the token form under a token
mean, so that a response counts by its length; and GRPO's wide band.

A = (R - mean_group) / (std_group + 1e-6);  s_t = sg(s) exp(l_t - sg(l_t)), s = exp(mean over the response of log rho);
loss = sum over tokens of -min(s_t A, clip(s_t, 1 -+ 0.2) A) / tokens of the mini-batch.

Use: to see what such a run did.
Avoid: as GSPO: set loss_agg_mode=seq-mean-token-mean and a band of 3e-4 to 4e-4. Earlier and later verl force the mean over
responses for this loss; 0.9.1 follows loss_agg_mode, whose default is the token mean.
Watch: clip/low and clip/high, which stay near 0 in this band; lengths, since long responses weigh more.
"""

gmpo_verl = gmpo.but(name="gmpo@verl", surrogate=GeometricMean(low=0.2, high=0.2))
GMPO = """GMPO as verl 0.9.1 runs it for loss_mode=geo_mean and else its defaults (arXiv 2507.20673): its clip of 0.2 stands
in log space here, half of the paper's 0.4.

A = (R - mean_group) / (std_group + 1e-6);  d = min(log rho, 0.2) where A > 0, max(log rho, -0.2) where A < 0;
loss = mean over responses of -A exp(mean over the response of d).

Use: to see what such a run did; with clip_ratio_low=clip_ratio_high=0.4 it is gmpo.
Avoid: several micro-batches in verl: the loss is the mean over each, so the gradient grows with their number.
Watch: clip/low, clip/high; the learning rate, which belongs to the number of micro-batches it was tuned with.
"""

cispo_verl = cispo.but(name="cispo@verl", surrogate=DetachedWeight(low=0.8, high=1.2))
CISPO = """CISPO as verl 0.9.1 runs it for loss_mode=cispo and else its defaults (arXiv 2506.13585): the weight is held
between 0.8 and 1.2, while the paper has no lower bound.

A = (R - mean_group) / (std_group + 1e-6);
loss = sum over tokens of -sg(clip(rho, 0.8, 1.2)) A log pi / tokens of the mini-batch.

Use: to see what such a run did; clip_ratio_low=1 and clip_ratio_high=4 give cispo.
Avoid: where the policy has moved far: a token whose ratio fell below 0.8 counts more than its importance.
Watch: clip/weight_low, clip/weight_high, weight/mean.
"""

sapo_verl = sapo.but(name="sapo@verl")
SAPO = """SAPO as verl 0.9.1 runs it for loss_mode=sapo (arXiv 2511.20347): the paper's method, whatever loss_agg_mode says.

A = (R - mean_group) / (std_group + 1e-6);  tau = 1 where A > 0, 1.05 elsewhere;
loss = mean over responses of the token mean of -(4 / tau) sigmoid(tau (rho - 1)) A.

Use: as sapo; the two are one and the same.
Avoid: expecting loss_agg_mode to act: this loss does not heed it, verl's KL and entropy terms beside it do.
Watch: gate/mean, ratio/max.
"""

dppo_verl = dppo.but(
    name="dppo@verl",
    advantage=grpo.advantage,
    ratio=TokenRatio(anchor="old"),
    surrogate=DivergenceMask(divergence="tv", low=0.2, high=0.2, anchor="old", cap=3.0),
    weighting=TokenMean(),
)
DPPO = """DPPO as verl 0.9.1 runs it for loss_mode=dppo_tv and else its defaults (arXiv 2602.04879): anchored at the old
policy in place of the sampler, a bound of 0.2, and weights cut at 3.

A = (R - mean_group) / (std_group + 1e-6);  p, q = probability of the token now and at the start of the batch, rho = p / q;
loss = sum over tokens of -sg(min(rho, 3) M) A log pi / tokens of the mini-batch, M = 0 where p - q leaves +-0.2 along A.

Use: to see what such a run did.
Avoid: as DPPO: the loss asks for a cut at 20, but takes the actor's clip_ratio_c, whose default is 3.
Watch: clip/low, clip/high, clip/weight_high.
"""

clip_cov_verl = clip_cov.but(
    name="clip_cov@verl",
    admit=(),
    surrogate=CovarianceClip(low=0.2, high=0.2, share=2e-4, floor=1.0, ceiling=5.0),
    weighting=TokenMean(),
)
CLIP_COV = """Clip-Cov as verl 0.9.1 runs it for loss_mode=clip_cov and else its defaults (arXiv 2505.22617): beside the plain
clip of 0.2, two tokens in ten thousand whose covariance lies between 1 and 5 lose their gradient.

A = (R - mean_group) / (std_group + 1e-6);  kappa = (A - mean A) (log pi - mean log pi) over tokens;
loss = sum over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) / tokens of the mini-batch, without the tokens drawn.

Use: to see what such a run did; the tokens are drawn at random there and by seed, prompt and position here.
Avoid: several micro-batches in verl: share and means are taken inside each, at least one token from every one.
Watch: covariance/dropped, covariance/mean, entropy/sampled.
"""

kl_cov_verl = kl_cov.but(
    name="kl_cov@verl",
    admit=(),
    surrogate=CovarianceKl(share=2e-4, coef=0.1),
    weighting=TokenMean(),
)
KL_COV = """KL-Cov as verl 0.9.1 runs it for loss_mode=kl_cov and else its defaults (arXiv 2505.22617): two tokens in ten
thousand pay 0.1 times their distance from the old policy.

A = (R - mean_group) / (std_group + 1e-6);  kappa = (A - mean A) (log pi - mean log pi) over tokens;
loss = sum over tokens of -(rho A - 0.1 |log rho| [kappa is among the largest]) / tokens of the mini-batch.

Use: to see what such a run did.
Avoid: several micro-batches in verl: share and means are taken inside each, at least one token from every one.
Watch: covariance/held, covariance/moved, entropy/sampled.
"""

ppo_verl = ppo.but(
    name="ppo@verl",
    mix=WeightedSum(),
    advantage=Gae(gamma=1.0, lam=1.0),
    surrogate=Clip(low=0.2, high=0.2, dual=3.0),
    critic=SeparateCritic(clip=0.5, lr_factor=10.0),
)
PPO = """PPO as verl 0.9.1 runs it with its defaults (arXiv 1707.06347): lam 1, a dual clip of 3, values clipped at 0.5, a
critic of its own that learns ten times as fast, no KL.

A = GAE(R on the last token, V; gamma 1, lam 1), whitened over tokens;
loss = token mean of -max(min(rho A, clip(rho, 1 -+ 0.2) A), 3 A if A < 0);  critic: token mean of the clipped error, halved.

Use: to go on with a run of verl; its trainer's default estimator is this one.
Avoid: with a critic that is not worth its memory: at lam 1 it is a baseline and nothing else.
Watch: critic/explained_variance, critic/clipped, clip/dual.
"""

CLIPPED = Clip(low=0.2, high=0.2, dual=3.0)
TOKENS = Whiten(unit="token", ddof=1, eps=1e-8, inside=True)

rloo_verl = rloo.but(
    name="rloo@verl",
    mix=WeightedSum(),
    ratio=TokenRatio(anchor="old"),
    surrogate=CLIPPED,
    weighting=TokenMean(),
)
RLOO = """RLOO as verl 0.9.1 runs it for adv_estimator=rloo and else its defaults (arXiv 2402.14740): the leave-one-out
advantage on top of a token clip and a token mean; no KL.

A = R - mean of the others' R;
loss = sum over tokens of -max(min(rho A, clip(rho, 1 -+ 0.2) A), 3 A if A < 0) / tokens of the mini-batch.

Use: to go on with a run of verl; several optimizer steps per batch.
Avoid: as the paper's RLOO, where the response is one action, its KL is in the reward and nothing is clipped.
Watch: clip/high, clip/dual, length: a token mean gives long responses more weight than the sum of the paper's.
"""

reinforce_plus_plus_verl = reinforce_plus_plus.but(
    name="reinforce_plus_plus@verl",
    mix=WeightedSum(),
    surrogate=CLIPPED,
)
REINFORCE = """REINFORCE++ as verl 0.9.1 runs it for adv_estimator=reinforce_plus_plus and else its defaults (arXiv
2501.03262): no KL in the reward unless use_kl_in_reward is set, and a dual clip of 3.

A = (R - mean_tokens) / sqrt(var_tokens + 1e-8), the reward being at the last token;
loss = sum over tokens of -max(min(rho A, clip(rho, 1 -+ 0.2) A), 3 A if A < 0) / tokens of the mini-batch.

Use: to go on with a run of verl; `recipe.mix=token_kl` is its use_kl_in_reward.
Avoid: responses whose length goes with the reward: whitening over tokens shifts every advantage then.
Watch: shaper/whiten, length/mean, clip/dual.
"""

reinforce_plus_plus_baseline_verl = reinforce_plus_plus_baseline.but(
    name="reinforce_plus_plus_baseline@verl",
    shapers=(TOKENS,),
    surrogate=CLIPPED,
    penalties=(),
)
BASELINE = """REINFORCE++-baseline as verl 0.9.1 runs it for adv_estimator=reinforce_plus_plus_baseline and else its defaults
(arXiv 2501.03262): whitened over tokens, without the paper's k2 loss.

A' = R - mean_group;  A = (A' - mean_tokens) / sqrt(var_tokens + 1e-8);
loss = sum over tokens of -max(min(rho A, clip(rho, 1 -+ 0.2) A), 3 A if A < 0) / tokens of the mini-batch.

Use: to go on with a run of verl.
Avoid: expecting a KL: verl's kl_loss_type does nothing until use_kl_loss is set.
Watch: shaper/whiten, length/mean, clip/dual.
"""

gdpo_verl = gdpo.but(
    name="gdpo@verl",
    shapers=(TOKENS,),
    weighting=TokenMean(),
    surrogate=CLIPPED,
)
GDPO = """GDPO as verl 0.9.1 runs it for adv_estimator=gdpo and else its defaults (arXiv 2601.05242): the last step whitens
over tokens in place of responses, so that it also shifts.

A_k = (r_k - mean_group) / (std_group + 1e-6);  A = (sum of w_k A_k - mean_tokens) / sqrt(var_tokens + 1e-8);
loss = sum over tokens of -max(min(rho A, clip(rho, 1 -+ 0.2) A), 3 A if A < 0) / tokens of the mini-batch.

Use: to go on with a run of verl, which takes this advantage in float32.
Avoid: a KL in the reward or an overlong term: verl takes the components straight from the reward function and drops both.
Watch: group/equal_* of each reward, shaper/whiten, length by correctness.
"""

presets = (
    (grpo_verl, GRPO),
    (gspo_verl, GSPO),
    (gmpo_verl, GMPO),
    (cispo_verl, CISPO),
    (sapo_verl, SAPO),
    (dppo_verl, DPPO),
    (clip_cov_verl, CLIP_COV),
    (kl_cov_verl, KL_COV),
    (ppo_verl, PPO),
    (rloo_verl, RLOO),
    (reinforce_plus_plus_verl, REINFORCE),
    (reinforce_plus_plus_baseline_verl, BASELINE),
    (gdpo_verl, GDPO),
)
