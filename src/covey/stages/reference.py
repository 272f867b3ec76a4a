"""Stage `reference`: which policy is the reference that `ref_logp` is of. A value only: engines keep and move the weights."""

from __future__ import annotations

from pydantic import Field

from covey.registry import Component, component


@component("reference", "initial")
class InitialReference(Component):
    """The policy as it was at the start of the run, frozen."""


@component("reference", "moving")
class MovingReference(Component):
    """A reference that is drawn after the policy: after every `every` steps, reference <- mix * policy + (1 - mix) * reference.

    `mix` = 1 replaces it by the policy (a hard update of arXiv 2404.09656; the reset of arXiv 2505.24864), a smaller one is a
    soft update, and `every` = 1 with a small mix an exponential moving average. Weights are mixed; of adapters their two
    factors, so that the product of the mixed factors is the reference's.
    """

    every: int = Field(default=50, ge=1, description="steps of the run between two moves")
    mix: float = Field(default=1.0, gt=0, le=1, description="share of the policy in the reference after a move")
