"""REINFORCE++-baseline (arXiv 2501.03262): compare a response with its group's mean, then scale over the whole batch, so that
no prompt's own std has a say; the KL is a loss by k2.

A' = R - mean_group;  A = (A' - mean_batch) / sqrt(var_batch + 1e-8);
loss = mean over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A) + 0.001 mean over tokens of (log pi - log pi_ref)^2 / 2.

Use: groups of samples per prompt and small prompt sets, where a division by each group's std overfits what is nearly solved.
Avoid: batches of a few groups: their std is noise; groups of one.
Watch: shaper/whiten, penalty/kl, group/mixed, the gap between training reward and eval/accuracy.
"""

from covey.recipes.reinforce_plus_plus import reinforce_plus_plus
from covey.stages.advantages import GroupNorm
from covey.stages.mix import WeightedSum
from covey.stages.penalties import Kl
from covey.stages.shapers import Whiten
from covey.stages.weighting import TokenMean

reinforce_plus_plus_baseline = reinforce_plus_plus.but(
    name="reinforce_plus_plus_baseline",
    mix=WeightedSum(),
    advantage=GroupNorm(baseline="mean", scale="none"),
    shapers=(Whiten(unit="rollout", ddof=1, eps=1e-8, inside=True),),
    penalties=(Kl(coef=0.001, estimator="k2", to="reference", weighting=TokenMean()),),
)
