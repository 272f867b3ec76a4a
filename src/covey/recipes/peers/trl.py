"""What TRL 1.16 runs: `GRPOTrainer`, `RLOOTrainer` and the experimental `GMPOTrainer` with their defaults.

A preset is one undivided batch. In TRL the denominators of `bnpo` and of the trainers that take a mean are those of a
micro-batch, so its gradient moves with `per_device_train_batch_size`; that is not imitated.
"""

from __future__ import annotations

from covey.recipes.cispo import cispo
from covey.recipes.dapo import dapo
from covey.recipes.dr_grpo import dr_grpo
from covey.recipes.gdpo import gdpo
from covey.recipes.gmpo import gmpo
from covey.recipes.grpo import grpo
from covey.recipes.gspo import gspo
from covey.recipes.rloo import rloo
from covey.recipes.sapo import sapo
from covey.stages.ratios import SequenceSumRatio
from covey.stages.shapers import Whiten
from covey.stages.surrogates import Clip
from covey.stages.weighting import RolloutMean, TokenMean

EPS = 1e-4
"""TRL adds it to every standard deviation."""

grpo_trl = grpo.but(
    **{"advantage.eps": EPS},
    name="grpo@trl",
    weighting=TokenMean(),
    penalties=(),
)
GRPO = """GRPO as TRL 1.16's GRPOTrainer runs it (arXiv 2402.03300): loss_type="dapo" and beta=0, so every token of the step
counts the same and there is no KL.

A = (R - mean_group) / (std_group + 1e-4);
loss = sum over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) / tokens of the step.

Use: to go on with a run of TRL, or to compare with published numbers that were made with its defaults.
Avoid: as "the paper's GRPO": that is a mean over responses with 0.04 k3. In TRL it takes loss_type="grpo", beta=0.04 and, since
1.16, use_bias_correction_kl=False: the default multiplies k3 by the ratio, which turns its gradient from forward to reverse.
Watch: clip/low, clip/high, length of wrong answers; TRL counts tokens over its accumulation window, covey over the step.
"""

dr_grpo_trl = dr_grpo.but(name="dr_grpo@trl")
DR_GRPO = """Dr.GRPO by TRL 1.16's loss_type="dr_grpo" with scale_rewards="none" (arXiv 2503.20783): the paper's method,
constant divisor included.

A = R - mean_group;
loss = sum over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) / (N * C), C = max_completion_length.

Use: as dr_grpo; the two are one and the same.
Avoid: scale_rewards left at its default "group": then the divisor is the paper's and the advantage is not.
Watch: length of right and wrong answers; TRL divides by the rows of the micro-batch, equal only for equal micro-batches.
"""

dapo_trl = dapo.but(
    **{"advantage.eps": EPS, "filters.overlong.denominator": "kept"},
    name="dapo@trl",
    admit=(),
)
DAPO = """DAPO as far as TRL 1.16 has it (arXiv 2503.14476): clip-higher, token mean, soft overlong reward and
mask_truncated_completions; no dynamic sampling, so groups with equal rewards stay in the denominator.

A = (R - mean_group) / (std_group + 1e-4), R with the overlong term;
loss = sum over tokens of -min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A) / tokens of whole responses of the step.

Use: to compare with TRL's recipe of its paper index.
Avoid: as DAPO: loss_type="dapo" alone changes the denominator and nothing else, and refilling is what the paper gains most by.
Watch: advantage/zero_frac, the share of groups that teach nothing; keep/loss, the share of responses that were not cut off.
"""

gspo_trl = gspo.but(
    **{"advantage.eps": EPS},
    name="gspo@trl",
    surrogate=Clip(low=0.2, high=0.2),
    weighting=TokenMean(),
    waivers=("sequence_ratio_token_mean",),
)
GSPO = """GSPO as TRL 1.16 runs it for importance_sampling_level="sequence" and else its defaults (arXiv 2507.18071): the
sequence ratio under a token mean, so that a response counts by its length; and GRPO's wide band.

A = (R - mean_group) / (std_group + 1e-4);  s = exp(mean over the response of log rho);
loss = sum over responses of -L min(s A, clip(s, 1 -+ 0.2) A) / tokens of the step.

Use: to see what such a run did.
Avoid: as GSPO: the paper takes a mean over responses and a band of 3e-4 to 4e-4. In TRL that takes loss_type="grpo",
epsilon=3e-4 and epsilon_high=4e-4; loss_type="luspo" weighs by length on purpose.
Watch: clip/low and clip/high, which stay near 0 here: a mean over many tokens hardly ever leaves 0.8 to 1.2.
"""

gmpo_trl = gmpo.but(**{"advantage.eps": EPS}, name="gmpo@trl")
GMPO = """GMPO as TRL 1.16's experimental GMPOTrainer runs it (arXiv 2507.20673): the paper's, but for what is added to the
std.

A = (R - mean_group) / (std_group + 1e-4);  d = min(log rho, 0.4) where A > 0, max(log rho, -0.4) where A < 0;
loss = mean over responses of -A exp(mean over the response of d).

Use: as gmpo.
Avoid: with a sampler of its own (vLLM): the trainer never applies the importance ratio that its flag asks for by default.
Watch: clip/low, clip/high, and kl/sampled_vs_policy for a mismatch that nothing corrects.
"""

cispo_trl = cispo.but(
    **{"advantage.eps": EPS, "surrogate.high": 0.2},
    name="cispo@trl",
    waivers=("weight_below_one",),
)
CISPO = """CISPO by TRL 1.16's loss_type="cispo" with no other option (arXiv 2506.13585): epsilon_high falls back to
epsilon=0.2 and is an absolute bound here, so every weight is at most 0.2.

A = (R - mean_group) / (std_group + 1e-4);
loss = sum over tokens of -sg(min(rho, 0.2)) A log pi / tokens of the step.

Use: to see what such a run did: a policy gradient at a fifth of its size, whatever the ratio. With epsilon_high=5.0, which
TRL's text recommends, it is cispo but for what is added to the std (`recipe.surrogate.high=5`).
Avoid: as CISPO: even tokens that the policy has just sampled count 0.2.
Watch: clip/weight_high, near 1 here; TRL's own cispo_clip_ratio counts positive advantages alone.
"""

sapo_trl = sapo.but(**{"advantage.eps": EPS}, name="sapo@trl")
SAPO = """SAPO by TRL 1.16's loss_type="sapo" (arXiv 2511.20347): the paper's, but for what is added to the std.

A = (R - mean_group) / (std_group + 1e-4);  tau = 1 where A > 0, 1.05 elsewhere;
loss = mean over responses of the token mean of -(4 / tau) sigmoid(tau (rho - 1)) A.

Use: as sapo.
Avoid: micro-batches of different sizes: TRL takes the mean over the responses of each.
Watch: gate/mean, ratio/max.
"""

gdpo_trl = gdpo.but(
    **{"advantage.eps": EPS},
    name="gdpo@trl",
    shapers=(Whiten(unit="rollout", ddof=1, eps=EPS, inside=False),),
    weighting=TokenMean(),
)
GDPO = """GDPO as TRL 1.16 runs it for multi_objective_aggregation="normalize_then_sum" and else its defaults (arXiv
2601.05242): the paper's advantage under a token mean.

A_k = (r_k - mean_group) / (std_group + 1e-4);  A = sum of w_k A_k, less its batch mean, over (its batch std + 1e-4);
loss = sum over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) / tokens of the step.

Use: as gdpo.
Avoid: one reward: TRL scales it over the batch all the same, which makes batches with many equal groups loud.
Watch: group/equal_* of each reward, shaper/whiten.
"""

rloo_trl = rloo.but(
    name="rloo@trl",
    ratio=SequenceSumRatio(anchor="old"),
    surrogate=Clip(low=0.2, high=0.2),
    weighting=RolloutMean(),
)
RLOO = """RLOO as TRL 1.16's RLOOTrainer runs it (arXiv 2402.14740): the paper's advantage, but a clipped ratio of whole
responses in place of the policy gradient.

R' = R - 0.05 sum over tokens of (log pi_old - log pi_ref);  A = R' - mean of the others' R';
S = product over the response of rho;  loss = mean over responses of -min(S A, clip(S, 1 -+ 0.2) A).

Use: to go on with a run of TRL; with one optimizer step per batch its gradient is rloo's.
Avoid: many optimizer steps on long responses: S is a product over tokens and leaves the band after a small step.
Watch: clip/low, clip/high (here whole responses), ratio/clamped.
"""

presets = (
    (grpo_trl, GRPO),
    (dr_grpo_trl, DR_GRPO),
    (dapo_trl, DAPO),
    (gspo_trl, GSPO),
    (gmpo_trl, GMPO),
    (cispo_trl, CISPO),
    (sapo_trl, SAPO),
    (gdpo_trl, GDPO),
    (rloo_trl, RLOO),
)
