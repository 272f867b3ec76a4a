"""DisCO with ratios (arXiv 2505.12366): DisCO with the mean ratio of a response's tokens to the old policy as its score,
unclipped, and the temperature that the authors use with it.

A = +1 or -1 by class (0 in groups of one class);  s = token mean of rho;  D = token mean of rho - 1 - log rho;
loss = mean over groups of -(mean of s over good - log mean of exp(s) over bad) + sg(1000 max(D - 0.0001, 0)) D.

Use: as disco, where the pull should vanish with the response's probability: the slope of a token is its ratio.
Avoid: stale samples: a single large ratio can lead the mean, and nothing but the constraint holds it.
Watch: constraint/divergence, contrast/margin (0 in a batch's first optimizer step: all ratios are 1), contrast/hardest.
"""

from covey.recipes.disco import disco
from covey.stages.coupled import Contrast

disco_ratio = disco.but(name="disco_ratio", surrogate=Contrast(score="ratio", tau=1.0))
