"""The improver that takes gradient steps: columns -> credit -> weights -> (critic) -> objective -> optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from covey.batch import Batch, Credited
from covey.collect.rows import rows
from covey.columns.noise import keys
from covey.metrics import Metric, Metrics, highest, mean, merge
from covey.protocols import Column, TrainedColumn, Update
from covey.random import permutation
from covey.recipes.recipe import Recipe
from covey.registry import Couples, State
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.objective import advance, couples, live_states, outputs, reported
from covey.types import Group


class Engine(Protocol):
    """What the improver asks of the learner, over all ranks."""

    def update(self, step: Credited, *, couples: Couples, outputs: Sequence[str], temperature: float, lr: float,
               states: Mapping[str, State]) -> Metrics: ...  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a rollout batch is used: `passes` over it, each in `steps_per_pass` optimizer steps of whole groups."""

    passes: int
    steps_per_pass: int
    seed: int
    temperature: float
    lr: Callable[[int], float]


class GradientImprover:
    """Turns groups into a better policy; holds the components' states and counts optimizer steps."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        columns: Sequence[Column],
        schedule: Schedule,
        weights: Mapping[str, float],
    ) -> None:
        self.recipe, self.engine, self.columns, self.schedule, self.weights = recipe, engine, columns, schedule, weights
        self.trained: list[TrainedColumn] = [column for column in columns if isinstance(column, TrainedColumn)]
        self.states: dict[str, State] = initial_states(recipe)
        self.optimizer_steps = 0

    def improve(self, groups: Sequence[Group], step: int) -> Update:
        """One rollout batch: credit once, then every optimizer step with weights of its own."""
        batch = rows(groups, self.weights)
        batch = batch.with_(columns={"key": keys(groups, self.schedule.seed)})
        columns = [column.provide(batch) for column in self.columns]
        batch = batch.with_(columns={name: value for made in columns for name, value in made.items()})
        credited, self.states, metrics = credit(self.recipe, batch, self.states)
        reports: list[Metrics] = [metrics]
        warming_up = step < getattr(self.recipe.critic, "warm_up_steps", 0)
        for at, index in enumerate(self.parts(batch, step)):
            part, lr = weigh(self.recipe, credited.rows(index)), self.schedule.lr(self.optimizer_steps)
            reports += [column.fit(part, lr, alone=warming_up) for column in self.trained]
            found = {"lr": highest(lr)} if warming_up else self.optimize(part, lr)
            if at == 0 and "kl/sampled_vs_policy" in found:  # nothing has moved yet
                found["kl/sampled_vs_old"] = found["kl/sampled_vs_policy"]
            reports.append(found)
            self.optimizer_steps += 1
        return Update(merge(reports), _per_rollout(credited, groups))

    def optimize(self, part: Credited, lr: float) -> dict[str, Metric]:
        """One optimizer step on a set of whole groups; a batch's loss is the mean over its steps."""
        metrics = self.engine.update(
            part, couples=couples(self.recipe), outputs=outputs(self.recipe), temperature=self.schedule.temperature,
            lr=lr, states=live_states(self.recipe, self.states),
        )  # fmt: skip
        self.states = advance(self.recipe, self.states, metrics)
        return {**reported(metrics), "loss/value": mean(metrics["loss/value"].value), "lr": highest(lr)}

    def parts(self, batch: Batch, step: int) -> list[Tensor]:
        """The rows of each optimizer step: whole groups, in a new order for every pass, in nearly equal parts."""
        ids, plan = sorted(batch.prompts), self.schedule
        count = min(plan.steps_per_pass, len(ids))
        out = []
        for at in range(plan.passes):
            order = (
                permutation(len(ids), plan.seed, "optimizer steps", step, at)
                if plan.passes * count > 1
                else range(len(ids))
            )
            shuffled = [ids[i] for i in order]
            for part in range(count):
                chosen = torch.tensor(shuffled[part * len(ids) // count : (part + 1) * len(ids) // count])
                out.append(torch.isin(batch.group, chosen).nonzero().squeeze(1))
        return out


def _per_rollout(batch: Credited, groups: Sequence[Group]) -> dict[str, tuple[float, ...]]:
    """The mean advantage over each rollout's tokens, by group id in the order of its rollouts."""
    values = iter((batch.advantage.sum(1) / batch.mask.sum(1).clamp(min=1)).tolist())
    return {group.id: tuple(next(values) for _ in group.rollouts) for group in groups}
