"""PPO with a critic (arXiv 1707.06347, 2203.02155): each token is compared with what a critic expected there, and the
distance to the reference is paid token by token in the reward; no groups needed.

r_t = [t is last] R - 0.05 (log pi_old - log pi_ref);  A = GAE(r, V; gamma 1, lam 0.95), whitened over tokens;
loss = token mean of -min(rho A, clip(rho, 1 -+ 0.2) A);  critic: token mean of max((V - ret)^2, (V_clipped - ret)^2) / 2.

Use: rewards on single tokens or turns, one sample per prompt, or many steps on a batch; long runs that pay for a critic.
Avoid: a verifier and several samples per prompt (a group mean is a baseline for nothing); memory for one model only.
Watch: critic/explained_variance (below 0 the critic adds noise), critic/loss, critic/clipped, kl/in_score, clip/high.
"""

from covey.recipes.recipe import Recipe
from covey.stages.gae import Gae
from covey.stages.mix import TokenKl
from covey.stages.ratios import TokenRatio
from covey.stages.shapers import Whiten
from covey.stages.surrogates import Clip
from covey.stages.values import SeparateCritic
from covey.stages.weighting import TokenMean

ppo = Recipe(
    name="ppo",
    mix=TokenKl(coef=0.05, estimator="k1"),
    advantage=Gae(gamma=1.0, lam=0.95),
    shapers=(Whiten(unit="token", center=True, ddof=1, eps=1e-8, inside=True),),
    weighting=TokenMean(),
    ratio=TokenRatio(anchor="old"),
    surrogate=Clip(low=0.2, high=0.2),
    critic=SeparateCritic(clip=0.2),
)
