"""The loss of a slice: a plain sum of weighted gains and costs, so that slices only add up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from covey.batch import Credited, Live
from covey.metrics import Metric, Metrics, highest, mean, total
from covey.registry import Component, Couples, State
from covey.stages.credit import name_of
from covey.stages.masked import LOG_RATIO_LIMIT, masked

if TYPE_CHECKING:
    from covey.recipes.recipe import Recipe

SUMS = "sums/"
"""Prefix of the totals from which live components advance their state; they travel with the metrics and are not written."""


def objective(recipe: Recipe, live: Live, batch: Credited, states: Mapping[str, State]) -> tuple[Tensor, Metrics]:
    """loss = -(weight * gain).sum() + sum_k coef_k * (weight_k * cost_k).sum(), and what there is to report of it.

    Exact on any slice of rows when no component couples rows; otherwise on whole units (see `couples`).
    """
    if recipe.objective is not None:
        loss = _call(recipe.objective, states, live, batch)
        return loss, _join([_shared(live, batch), _sums(recipe.objective, live, batch)], loss)
    if recipe.surrogate is None:
        raise TypeError("a recipe has a surrogate or an objective")
    log_ratio = None if recipe.ratio is None else _call(recipe.ratio, states, live, batch)
    gain = _call(recipe.surrogate, states, log_ratio, live, batch)
    loss = -(batch.weight.to(gain.dtype) * gain).sum()
    still = Live.of({name: value.detach() for name, value in live.tensors().items()})
    reports = [_shared(live, batch), _sums(recipe.surrogate, live, batch)]
    if recipe.ratio is not None and log_ratio is not None:
        reports += [_sums(recipe.ratio, live, batch), _ratio(recipe.ratio, log_ratio.detach(), still, batch)]
    moved = torch.zeros_like(still.logp) if log_ratio is None else log_ratio.detach()
    reports.append(recipe.surrogate.measure(moved, still, batch))  # type: ignore[attr-defined]
    for part in recipe.penalties:
        cost = _call(part, states, live, batch)
        loss = loss + part.coef * (batch.penalty_weight[part.kind].to(cost.dtype) * cost).sum()  # type: ignore[attr-defined]
        reports += [part.measure(cost.detach(), batch), _sums(part, live, batch)]  # type: ignore[attr-defined]
        reports.append(_observed(part, states, still, batch))
    if recipe.joint_critic is not None:
        own, metrics = recipe.joint_critic.loss(live, batch)
        loss = loss + own
        reports.append(metrics)
    return loss, _join(reports, loss)


def couples(recipe: Recipe) -> Couples:
    """The widest coupling of the recipe's live components."""
    order: list[Couples] = ["row", "group", "step"]
    return max((part.couples for part in recipe.live_components()), key=order.index)


def outputs(recipe: Recipe) -> tuple[str, ...]:
    """The live outputs besides logp that the recipe asks the forward for, without repeats."""
    return tuple(dict.fromkeys(name for part in recipe.live_components() for name in part.live))


def live_states(recipe: Recipe, states: Mapping[str, State]) -> dict[str, State]:
    """The states that the loss reads: what every rank is told at every step, without those of credit, which may be long."""
    return {name: states[name] for part in recipe.live_components() if (name := name_of(part)) in states}


def advance(recipe: Recipe, states: Mapping[str, State], metrics: Metrics) -> dict[str, State]:
    """Move the state of live components on by one optimizer step, from totals over all slices and ranks.

    Totals with a number that is not finite move nothing: such a step leaves the weights alone too, and a state is for ever.
    """
    after = dict(states)
    for part in recipe.live_components():
        name = name_of(part)
        if name in after and hasattr(part, "advance"):
            prefix = f"{SUMS}{name}/"
            sums = {key.removeprefix(prefix): metric.value for key, metric in metrics.items() if key.startswith(prefix)}
            if all(map(math.isfinite, sums.values())):
                after[name] = part.advance(after[name], sums)
    return after


def reported(metrics: Metrics) -> dict[str, Metric]:
    """The metrics without the totals that only serve `advance`."""
    return {name: metric for name, metric in metrics.items() if not name.startswith(SUMS)}


def _call(part: Component, states: Mapping[str, State], *inputs: Any) -> Tensor:
    name = name_of(part)
    result: Tensor = part(*inputs, state=states[name]) if name in states else part(*inputs)  # type: ignore[operator]
    return result


def _observed(part: Component, states: Mapping[str, State], live: Live, batch: Credited) -> Metrics:
    """What a penalty reports beside its cost: `observe` is called like the penalty itself, on detached outputs."""
    if not hasattr(part, "observe"):
        return {}
    name = name_of(part)
    found: Metrics = part.observe(live, batch, state=states[name]) if name in states else part.observe(live, batch)
    return found


def _join(reports: Iterable[Metrics], loss: Tensor) -> Metrics:
    joined = {name: metric for report in reports for name, metric in report.items()}
    return joined | {"loss/value": total(float(loss.detach()))}


def _sums(part: Component, live: Live, batch: Credited) -> Metrics:
    if not hasattr(part, "sums"):
        return {}
    return {f"{SUMS}{name_of(part)}/{key}": total(value) for key, value in part.sums(live, batch).items()}


def _shared(live: Live, batch: Credited) -> Metrics:
    """Distances of the policy from the sampler, on the tokens that the policy chose."""
    tokens = float(batch.mask.sum())
    gap = masked(live.logp.detach().double() - batch.sampled_logp.double(), batch.mask).clamp(
        -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT
    )
    out = {
        "kl/sampled_vs_policy": mean(float((torch.expm1(gap) - gap).sum()), tokens),
        "logp/mean": mean(float(masked(live.logp.detach(), batch.mask).double().sum()), tokens),
        "tokens/trained": total(float((batch.weight != 0).sum())),
    }
    if "entropy" in live.outputs:
        out["entropy/mean"] = mean(float(masked(live.outputs["entropy"].detach(), batch.mask).double().sum()), tokens)
    return out


def _ratio(part: Component, log_ratio: Tensor, still: Live, batch: Credited) -> Metrics:
    """The ratio on tokens that carry weight; clamped is a token whose own log-ratio was cut, or what the row made of it."""
    counted, ceiling = batch.weight != 0, getattr(part, "ceiling", LOG_RATIO_LIMIT)
    ratio, tokens = masked(log_ratio.exp(), counted), float(counted.sum())
    cut = (log_ratio >= ceiling) | (log_ratio <= -LOG_RATIO_LIMIT)
    if hasattr(part, "tokenwise"):  # a mean over the row hides what was cut before it
        cut = cut | (part.tokenwise(still, batch).abs() >= LOG_RATIO_LIMIT)
    clamped = counted & cut
    return {
        "ratio/mean": mean(float(ratio.double().sum()), tokens),
        "ratio/max": highest(float(ratio.max()) if tokens else 0.0),
        "ratio/abs_log": mean(float(masked(log_ratio.abs(), counted).double().sum()), tokens),
        "ratio/clamped": mean(float(clamped.sum()), tokens),
    }
