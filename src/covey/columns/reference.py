"""The reference policy's log-probabilities, for penalties and rewards that hold the policy near it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from covey.batch import Batch, Live

Score = Callable[[Batch, Sequence[str], float, str], Live]
"""A forward pass without gradient: (rows, outputs, temperature, "policy" or "reference")."""


class ReferenceLogp:
    """`ref_logp` [N T]: the frozen initial policy at the sampling temperature."""

    def __init__(self, score: Score, temperature: float) -> None:
        self.score, self.temperature = score, temperature

    def provide(self, batch: Batch) -> Mapping[str, Tensor]:
        """The column for these rows."""
        return {"ref_logp": self.score(batch, (), self.temperature, "reference").logp}
