"""REINFORCE++ (arXiv 2501.03262): no critic and no groups: returns to go with the KL of each token in the reward, whitened
over all tokens of the batch, under a token clip.

r_t = [t is the last] R - 0.001 (log pi_old - log pi_ref);  A = (sum of r from t on - mean_tokens) / sqrt(var_tokens + 1e-8);
loss = mean over tokens of -min(rho A, clip(rho, 1 -+ 0.2) A).

Use: one sample per prompt, symmetric rewards (-1 and 1), many different prompts; a KL that future tokens answer for.
Avoid: prompts of very different difficulty: nothing is compared with its own prompt (reinforce_plus_plus_baseline does).
Watch: kl/in_score, shaper/whiten, advantage/abs, the gap between training reward and eval/accuracy.
"""

from covey.recipes.recipe import Recipe
from covey.stages.mix import TokenKl
from covey.stages.ratios import TokenRatio
from covey.stages.returns import ReturnToGo
from covey.stages.shapers import Whiten
from covey.stages.surrogates import Clip
from covey.stages.weighting import TokenMean

reinforce_plus_plus = Recipe(
    name="reinforce_plus_plus",
    mix=TokenKl(coef=0.001, estimator="k1"),
    advantage=ReturnToGo(gamma=1.0),
    shapers=(Whiten(unit="token", ddof=1, eps=1e-8, inside=True),),
    weighting=TokenMean(),
    ratio=TokenRatio(anchor="old"),
    surrogate=Clip(low=0.2, high=0.2),
)
