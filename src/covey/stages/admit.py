"""Stage `admit`: which groups a step may be made of. What is turned away is replaced by fresh prompts (refill)."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from covey.registry import Component, component
from covey.types import Group


class Admission(Component):
    """Decides on a group; runs in the collector, before the step is full."""

    max_waves: int = Field(
        default=10, ge=1, description="times that sampling is repeated before a step goes on with fewer groups"
    )
    oversample: float = Field(
        default=1.0, ge=1, description="prompts sampled per missing group and wave; surplus groups are dropped"
    )

    def admits(self, group: Group) -> bool:
        """True if the group may enter the step."""
        raise NotImplementedError


@component("admit", "informative")
class Informative(Admission):
    """Admits a group whose outcomes differ: max - min > tolerance (dynamic sampling, arXiv 2503.14476 section 3.2).

    The outcome is one reward component, never the shaped sum: shaping would make an all-correct group look mixed. Rollouts
    that could not be scored are left out; a group with fewer than two scored rollouts is not admitted.
    """

    outcome: str = Field(
        default="first", description="reward component that decides; 'first' is the reward's first one"
    )
    tolerance: float = Field(default=0.0, ge=0, description="largest max - min that still counts as all equal")

    def admits(self, group: Group) -> bool:
        """True if the scored outcomes of the group are not all equal."""
        outcomes = [
            value for rollout in group.rollouts if (value := outcome(rollout.rewards, self.outcome)) is not None
        ]
        return len(outcomes) > 1 and max(outcomes) - min(outcomes) > self.tolerance


def outcome(rewards: Mapping[str, float], name: str) -> float | None:
    """The reward component that says right or wrong; None if it could not be scored."""
    return next(iter(rewards.values()), None) if name == "first" else rewards.get(name)
