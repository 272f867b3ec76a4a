"""Dr.GRPO with a tanh for its clip: the gain saturates smoothly on both sides, so that no gradient is cut off at an edge.

A = R - mean_group;  gain = A * width * tanh((rho - 1) / width);  the slope at ratio 1 is A, as of every surrogate of the family.

Use: where tokens that crossed a clip's edge should still be drawn back.
Avoid: very large steps: a saturated token has next to no gradient in either direction.
Watch: ratio/max, ratio/abs_log.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from covey.batch import Credited, Live
from covey.recipes import get
from covey.registry import component
from covey.stages.masked import masked
from covey.stages.surrogates import Surrogate


@component("surrogate", "tanh")
class Tanh(Surrogate):
    """gain = A * width * tanh((rho - 1) / width)."""

    width: float = Field(default=0.2, gt=0, description="distance from 1 at which a ratio begins to saturate")

    def __call__(self, log_ratio: Float[Tensor, "N T"], live: Live, batch: Credited) -> Float[Tensor, "N T"]:
        """The gain [N T]."""
        moved = self.width * ((log_ratio.exp() - 1) / self.width).tanh()
        return masked(batch.advantage.to(moved.dtype) * moved, batch.mask)

    def latex(self) -> str:
        """The gain with this width."""
        return rf"{self.width:g}\,A_{{n,t}}\tanh\left(\frac{{\rho_{{n,t}}-1}}{{{self.width:g}}}\right)"


dr_grpo_tanh = get("dr_grpo").but(name="dr_grpo_tanh", surrogate=Tanh())
