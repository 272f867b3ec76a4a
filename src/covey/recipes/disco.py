"""DisCO (arXiv 2505.12366): good responses of a prompt are ranked above bad ones by their mean log-probability, whatever the
prompt's difficulty; a constraint on the step's divergence takes the place of clip and KL.

A = +1 or -1 by class (0 in groups of one class);  s = token mean of log pi;  D = token mean of rho - 1 - log rho;
loss = mean over groups of -(mean of s over good - 10 log mean of exp(s / 10) over bad) + sg(1000 max(D - 0.0001, 0)) D.

Use: binary rewards with many very hard or very easy prompts, where a std or a centred reward gives them hardly any weight.
Avoid: graded rewards (the threshold makes two classes of them); one optimizer step per batch, where the constraint never acts.
Watch: constraint/divergence and constraint/active, contrast/margin, contrast/both (the other groups teach nothing), entropy.
"""

from covey.recipes.grpo import grpo
from covey.stages.coupled import Contrast, TwoClasses
from covey.stages.penalties import Constraint
from covey.stages.weighting import GroupSum

disco = grpo.but(
    name="disco",
    advantage=TwoClasses(threshold=0.5),
    weighting=GroupSum(),
    ratio=None,
    surrogate=Contrast(score="likelihood", tau=10.0),
    penalties=(Constraint(coef=1000.0, limit=1e-4),),
)
