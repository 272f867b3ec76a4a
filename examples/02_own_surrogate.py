"""Add a surrogate in a dozen lines and use it as a recipe: gradients of tokens far from the old policy fade out smoothly."""

import torch
from pydantic import Field

import covey
from covey.batch import Credited, Live
from covey.recipes import get
from covey.registry import component
from covey.stages.masked import masked
from covey.stages.surrogates import Surrogate


@component("surrogate", "fade")
class Fade(Surrogate):
    """gain = rho A / (1 + (|log rho| / width)^4), the factor detached: no hard edge as a clip has."""

    width: float = Field(default=0.2, gt=0, description="log-ratio at which a token counts half")

    def __call__(self, log_ratio: torch.Tensor, live: Live, batch: Credited) -> torch.Tensor:
        """The gain [N T]."""
        factor = 1 / (1 + (log_ratio.detach().abs() / self.width) ** 4)
        return masked(log_ratio.exp() * batch.advantage.to(log_ratio.dtype) * factor, batch.mask)


recipe = get("dr_grpo").but(name="faded", surrogate=Fade(width=0.1))
run = covey.train(recipe=recipe, steps=10, **{"budget.optimizer_steps_per_pass": 4, "budget.eval_problems": 50})
print(recipe.digest[:16], run.metrics()[-1]["eval/accuracy"])
