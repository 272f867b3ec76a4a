"""Stage `admit`: which groups a step may be made of. What is turned away is replaced by fresh prompts (refill)."""

from __future__ import annotations

from pydantic import Field, model_validator

from covey.errors import ConfigError, did_you_mean
from covey.registry import Component, component
from covey.stages.tex import number
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

    With a threshold, for graded outcomes, a group in which some but not all outcomes reach it.
    The outcome is one reward component, never the shaped sum: shaping would make an all-correct group look mixed. Rollouts
    that could not be scored are left out; a group with fewer than two scored rollouts is not admitted.
    """

    outcome: str = Field(
        default="first", description="reward component that decides; 'first' is the reward's first one"
    )

    def component(self, group: Group) -> str | None:
        """The name of the deciding component; None if no rollout of the group was scored in full, which hides the first."""
        if self.outcome == "first":
            whole = (rollout.rewards for rollout in group.rollouts if rollout.rewards and not rollout.failures)
            return next((next(iter(rewards)) for rewards in whole), None)
        known = {name for rollout in group.rollouts for name in (*rollout.rewards, *rollout.failures)}
        if known and self.outcome not in known:
            where = "recipe.admit.informative.outcome"
            raise ConfigError(where, f"the reward has no component '{self.outcome}'", did_you_mean(self.outcome, known))
        return self.outcome

    tolerance: float = Field(default=0.0, ge=0, description="largest max - min that still counts as all equal")
    threshold: float | None = Field(
        default=None, description="outcome from which a graded answer is right; null: outcomes are compared as they are"
    )

    @model_validator(mode="after")
    def _read(self) -> Informative:
        if self.threshold is not None and self.tolerance:
            raise ConfigError(
                "recipe.admit.informative.tolerance", "nobody reads it beside a threshold", "Leave it out."
            )
        return self

    def admits(self, group: Group) -> bool:
        """True if the scored outcomes of the group are not all equal, or not all on one side of the threshold."""
        name = self.component(group)
        if name is None:
            return False
        outcomes = [rollout.rewards[name] for rollout in group.rollouts if name in rollout.rewards]
        if self.threshold is not None:
            return len({outcome >= self.threshold for outcome in outcomes}) == 2
        return len(outcomes) > 1 and max(outcomes) - min(outcomes) > self.tolerance

    def latex(self) -> str:
        """The condition on the outcomes o of the group."""
        if self.threshold is not None:
            return rf"0<\big|\{{j\in g:o_j\ge {number(self.threshold)}\}}\big|<G"
        return rf"\max_{{j\in g}}o_j-\min_{{j\in g}}o_j>{number(self.tolerance)}"
