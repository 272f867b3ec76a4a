"""The only composition of stages: from rewards to advantages once per rollout batch, to weights once per optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from covey.batch import Batch, Credited, Keep
from covey.metrics import Metric, Metrics, mean
from covey.registry import Component, Per, State
from covey.stages.masked import broadcast, masked

if TYPE_CHECKING:
    from covey.recipes.recipe import Recipe

States = Mapping[str, State]


def initial_states(recipe: Recipe) -> dict[str, State]:
    """The states of all components that have one, by `stage.kind`."""
    return {name_of(part): state for part in recipe.components() if (state := part.initial())}


def name_of(part: Component) -> str:
    """The name under which a component's state is kept."""
    return f"{part.stage}.{part.kind}"


def call(part: Component, states: dict[str, State], *inputs: Any) -> Any:
    """Run a credit stage; if it has state, read it from `states` and put the new one there."""
    name = name_of(part)
    if name not in states:
        return part(*inputs)  # type: ignore[operator]
    output, states[name] = part(*inputs, state=states[name])  # type: ignore[operator]
    return output


def credit(recipe: Recipe, batch: Batch, states: States) -> tuple[Credited, dict[str, State], Metrics]:
    """mix -> filters -> advantage -> shapers -> corrections, once per rollout batch, before anything is split.

    Returns the batch with advantages (float64) and the corrections' factors in the column `correction`, the advanced states and
    metrics. Rows whose score is NaN (not scorable) leave loss and statistics and stay in the denominators; of a score per
    component, rows in which no component could be scored.
    """
    after, acted = dict(states), dict[str, Metric]()
    score = call(recipe.mix, after, batch)
    scored = ~_unscorable(score, getattr(recipe.mix, "per", "row"))
    everyone = torch.ones_like(scored)
    keep = batch.keep & Keep(loss=scored, statistics=scored, denominator=everyone)
    batch = batch.with_(keep=keep, columns={**batch.columns, "score": score})
    for part in recipe.filters:
        found = call(part, after, batch)
        whole = found.loss & found.statistics & found.denominator
        acted[f"filter/{part.kind}"] = mean(float((~whole).sum()), batch.size)
        batch = batch.with_(keep=batch.keep & found)
    result = call(recipe.advantage, after, batch)
    advantage, made = result if isinstance(result, tuple) else (result, {})
    batch = batch.with_(columns={**batch.columns, **made})
    for part in recipe.shapers:
        shaped = call(part, after, advantage, batch)
        acted[f"shaper/{part.kind}"] = _mean_size(shaped - advantage, batch)
        advantage = shaped
    correction = broadcast(torch.ones(batch.size, dtype=torch.float64), batch.mask)
    for part in recipe.corrections:
        factor = call(part, after, batch)
        acted[f"correction/{part.kind}"] = _mean_size(factor - 1, batch)
        correction = correction * factor
    columns = {**batch.columns, "correction": correction}
    credited = Credited(
        **{**vars(batch), "columns": columns},
        advantage=masked(advantage, batch.mask),
        weight=torch.zeros_like(correction),
    )
    return credited, after, {**measure(recipe, credited), **acted, **_measure_states(recipe, after)}


def _mean_size(change: Tensor, batch: Batch) -> Metric:
    """How much a stage changed the tokens that it acts on."""
    return mean(float(masked(change, batch.mask).abs().sum()), float(batch.mask.sum()))


def _unscorable(score: Tensor, per: Per) -> Tensor:
    """Rows without a score."""
    if per == "row":
        return score.isnan()
    return score.isnan().all(1) if per == "component" else score.isnan().any(1)


def weigh(recipe: Recipe, step: Credited) -> Credited:
    """Form the weights of one optimizer step (whole groups): of the gain with
    filters and corrections, of each penalty and of the critic without.
    """
    if (
        getattr(recipe.mix, "per", "row") == "component"
    ):  # [N K] is nothing per row or token, and live stages read neither
        step = step.with_(columns={name: column for name, column in step.columns.items() if name != "score"})
    weight = recipe.weighting(step) * step.columns["correction"]  # type: ignore[operator]
    plain = step.with_(keep=Keep.all(step.size))
    penalty_weight = {part.kind: part.weighting(plain) for part in recipe.penalties}  # type: ignore[attr-defined]
    if recipe.critic is not None:
        penalty_weight[recipe.critic.kind] = recipe.critic.weigh(plain)  # type: ignore[attr-defined]
    return step.with_(weight=weight, penalty_weight=penalty_weight)


def measure(recipe: Recipe, batch: Credited) -> Metrics:
    """What credit did, for the run's record; shares of the tokens that the policy chose and of rows.

    A credit stage that has more to tell of itself has a method `measure(batch) -> Metrics`.
    """
    live = batch.mask & batch.keep.loss[:, None]
    advantage = batch.advantage[live]
    out = {
        "advantage/zero_frac": mean(float((advantage == 0).sum()), advantage.numel()),
        "advantage/abs": mean(float(advantage.abs().sum()), advantage.numel()),
        "keep/loss": mean(float(batch.keep.loss.sum()), batch.size),
    }
    for part in _credit_stages(recipe):
        if hasattr(part, "measure"):
            out |= part.measure(batch)
    return out


def _credit_stages(recipe: Recipe) -> tuple[Component, ...]:
    return (recipe.mix, *recipe.filters, recipe.advantage, *recipe.shapers, *recipe.corrections)


def _measure_states(recipe: Recipe, states: States) -> Metrics:
    """The states of credit stages after this batch: numbers as they are, of lists how many items they hold."""
    out = {}
    for part in _credit_stages(recipe):
        for key, value in states.get(name_of(part), {}).items():
            if isinstance(value, (int, float, list)):
                out[f"state/{part.kind}/{key}"] = mean(len(value) if isinstance(value, list) else value)
    return out
