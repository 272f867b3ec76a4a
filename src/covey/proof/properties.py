"""What has to hold for every recipe, one function per property: each yields how far single cases are from it.

A case without rounding in it has the limit 0; equality of gradients is relative L2 distance, at most 1e-12 in float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from covey.batch import Batch, Live
from covey.engines.slices import plan_shares
from covey.metrics import Metrics
from covey.proof.data import GARBAGE, Policy, distance, widen
from covey.proof.gradients import (
    add_up,
    bare,
    case,
    deal,
    divided,
    in_two_passes,
    packed,
    prepare,
    slice_gradient,
    two_pass,
    whole,
)
from covey.recipes.recipe import Recipe
from covey.stages.objective import advance, couples, objective, outputs
from covey.types import STOPS, Stop

EXACT, CLOSE, SINGLE = 1e-12, 1e-9, 1e-6
"""Limits: gradients in float64, numbers that are reported, gradients in float32."""
REWARDS = (0.0, 1.0, 0.1, -0.3, 1 / 3, 1e9)


@dataclass(frozen=True, slots=True)
class Gap:
    """How far one case is from its property, relative; `what` names the case and what of it was looked at.

    A size of NaN means that there is no distance: `what` says what went wrong. An infinite one comes from a number that is not
    finite.
    """

    what: str
    size: float
    limit: float = 0.0

    @property
    def holds(self) -> bool:
        """True if the case is as near as it has to be; NaN is not."""
        return self.size <= self.limit


def slices(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """Random slices add up to the undivided gradient, metrics and state."""
    policy, batch = case(recipe, seed)
    found, metrics = divided(recipe, policy, batch, seed)
    step, states = prepare(recipe, batch)
    expected, reported = slice_gradient(recipe, policy, step, states)
    yield Gap("the gradient in slices", distance(found, expected), EXACT)
    yield _same_metrics(metrics, reported)
    moved, once = advance(recipe, states, metrics), advance(recipe, states, reported)
    yield Gap("the state after slices", _apart(moved, once), CLOSE)


def float32(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """The same in single precision, in slices and in two passes."""
    policy, batch = case(recipe, seed, torch.float32)
    expected = whole(recipe, policy, batch)
    yield Gap("the gradient in slices", distance(divided(recipe, policy, batch, seed)[0], expected), SINGLE)
    if couples(recipe) != "row":
        yield Gap("the gradient in two passes", distance(two_pass(recipe, policy, batch, seed)[0], expected), SINGLE)


def two_passes(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """A coupled term over slices smaller than its unit: coefficients first, then slice by slice, is the same gradient."""
    policy, batch = case(recipe, seed)
    found = two_pass(recipe, policy, batch, seed)[0]
    yield Gap("the gradient in two passes", distance(found, whole(recipe, policy, batch)), EXACT)


def ranks(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """Worlds of 1, 2 and 4 ranks: groups dealt as the engine deals them, and rows dealt at random."""
    policy, batch = case(recipe, seed)
    step, states = prepare(recipe, batch)
    expected, coupling = slice_gradient(recipe, policy, step, states)[0], couples(recipe)
    for size in (1, 2, 4):
        plans = {"groups": plan_shares(step, size), "rows": deal(step, size, seed)}
        for of, plan in plans.items():
            parted = coupling == "step" or (coupling == "group" and of == "rows")
            run = in_two_passes if parted else add_up
            gap = distance(run(recipe, policy, step, states, plan)[0], expected)
            yield Gap(f"{of} over {size} ranks", gap, EXACT)


def order(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """Neither the order of rows nor the numbers that groups and rollouts are called by have a say."""
    policy, batch = case(recipe, seed)
    expected = whole(recipe, policy, batch)
    shuffled = torch.randperm(batch.size, generator=torch.Generator().manual_seed(seed))
    yield Gap("rows in another order", distance(whole(recipe, policy, batch.rows(shuffled)), expected), EXACT)
    prompts = {3 * group + 7: prompt for group, prompt in batch.prompts.items()}
    renamed = batch.with_(group=3 * batch.group + 7, rollout=5 * batch.rollout + 1, prompts=prompts)
    yield Gap("other ids", distance(whole(recipe, policy, renamed), expected), EXACT)


def padding(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """Width and content of the padding: slices as narrow as their longest row; NaN, inf and overflow outside the mask."""
    policy, batch = case(recipe, seed)
    expected = whole(recipe, policy, batch)
    narrowed = distance(packed(recipe, policy, batch, seed), expected)
    yield Gap("the gradient in slices without common padding", narrowed, EXACT)
    for at, filler in enumerate(GARBAGE):
        extra = (seed + at) % 5
        found = whole(recipe, policy, widen(batch, extra, filler))
        yield Gap(f"{extra} more positions, {filler} in the padding", distance(found, expected), EXACT)


def garbage(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """Whatever the forward returns at padding, the loss keeps its value and sends exactly 0 back there."""
    policy, batch = case(recipe, seed)
    step, states = prepare(recipe, batch)
    live = policy.forward(step, outputs(recipe)).tensors()
    expected = float(objective(recipe, Live.of(live), step, states)[0].detach())
    for filler in GARBAGE:
        leaves = {n: torch.where(step.mask, v.detach(), filler).requires_grad_() for n, v in live.items()}
        loss, metrics = objective(recipe, Live.of(leaves), step, states)
        yield Gap(f"the loss with {filler} at padding", _apart(float(loss.detach()), expected))
        lost = [name for name, metric in metrics.items() if math.isnan(metric.total)]
        yield Gap(f"metrics with {filler} at padding ({', '.join(lost)})", math.inf if lost else 0.0)
        for name, grad in _gradients(loss, leaves).items():
            yield Gap(f"d loss / d {name} with {filler} at padding", _largest(grad[~step.mask]))
            yield _finite(f"d loss / d {name} with {filler} at padding", grad)


def nothing(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """An empty mask, no rows at all, no scored reward: loss and gradient are 0, not NaN."""
    policy, batch = case(recipe, seed)
    cases = {
        "an empty mask": batch.with_(mask=torch.zeros_like(batch.mask)),
        "no rows": batch.rows(torch.zeros(0, dtype=torch.long)),
    }
    for what, empty in cases.items():
        step, states = prepare(recipe, empty)
        loss, _ = objective(recipe, policy.forward(step, outputs(recipe)), step, states)
        yield Gap(f"the loss of {what}", abs(float(loss.detach())))
        yield Gap(f"the gradient of {what}", _largest(policy.gradient(loss)))
    unscored = batch.with_(reward=torch.full_like(batch.reward, math.nan))
    yield Gap("the gradient where no reward was scored", _largest(whole(bare(recipe), policy, unscored)))
    some = torch.where(torch.arange(batch.size)[:, None] % 3 == seed % 3, math.nan, batch.reward)
    yield _finite("the gradient where some rewards were not scored", whole(recipe, policy, batch.with_(reward=some)))


def equal_rewards(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """Rewards that are all equal teach exactly nothing; with room enough that shaping by length does not act."""
    policy, batch = case(recipe, seed)
    quiet = batch.with_(limit=batch.limit * 100)
    for value in REWARDS:
        equal = quiet.with_(reward=torch.full_like(batch.reward, value))
        yield Gap(f"the gradient of rewards that are all {value:.3g}", _largest(whole(bare(recipe), policy, equal)))


def first_step(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """Where the policy has not moved the gradient is that of -sum weight * A * logp."""
    lean = bare(recipe)
    policy, batch = case(recipe, seed)
    batch = batch.with_(old_logp=_own(policy, batch))
    step, states = prepare(lean, batch)
    logp = torch.where(step.mask, policy.forward(step).logp, 0.0)
    expected = policy.gradient(-(step.weight * step.advantage * logp).sum())
    found, _ = slice_gradient(lean, policy, step, states)
    yield Gap("the gradient at ratio 1", distance(found, expected), EXACT)


def group_of_one(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """Groups of one rollout, by themselves and beside others: finite."""
    policy, batch = case(recipe, seed)
    first = {group: int((batch.group == group).nonzero()[0]) for group in batch.prompts}
    alone = [int((batch.rollout[row] == batch.rollout).nonzero()[0]) for row in first.values()]
    for what, rows in {"groups of one": alone, "a single row": alone[:1]}.items():
        gradient = whole(recipe, policy, batch.rows(torch.tensor(rows)))
        yield _finite(f"the gradient of {what}", gradient)
    others = batch.group != batch.group[alone[0]]
    others[alone[0]] = True
    yield _finite("a group of one among others", whole(recipe, policy, batch.rows(others.nonzero().squeeze(1))))


def truncated_group(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """Every response of a group, or of all groups, was cut off at the budget: finite."""
    policy, batch = case(recipe, seed)
    cut_off = torch.full_like(batch.stop, STOPS.index(Stop.LENGTH))
    some = torch.where(batch.group == batch.group[0], cut_off, batch.stop)
    for what, stop in {"one group": some, "all groups": cut_off}.items():
        gradient = whole(recipe, policy, batch.with_(stop=stop))
        yield _finite(f"the gradient where {what} was cut off", gradient)


def ruled_out_token(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """logp = -inf under the learner: no NaN goes back, and rows that are not coupled to it keep their gradient."""
    policy, batch = case(recipe, seed)
    step, states = prepare(recipe, batch)
    live = {name: value.detach() for name, value in policy.forward(step, outputs(recipe)).tensors().items()}
    chosen = step.mask.nonzero()
    if not len(chosen):
        return
    row, token = (int(i) for i in chosen[seed % len(chosen)])
    gradients = []
    for value in (-1.0, -math.inf):
        leaves = {name: tensor.clone() for name, tensor in live.items()}
        leaves["logp"][row, token] = value
        leaves = {name: tensor.requires_grad_() for name, tensor in leaves.items()}
        loss, _ = objective(recipe, Live.of(leaves), step, states)
        gradients.append(_gradients(loss, leaves))
    for name, grad in gradients[1].items():
        yield _finite(f"d loss / d {name} where a token has logp -inf", grad)
        if couples(recipe) == "row" and name in gradients[0]:
            others = torch.arange(step.size) != row
            gap = distance(grad[others], gradients[0][name][others])
            yield Gap(f"d loss / d {name} of other rows where a token has logp -inf", gap, EXACT)


def repeats(recipe: Recipe, seed: int) -> Iterator[Gap]:
    """The same step twice is the same: nothing is remembered but the state, and the state is plain data."""
    policy, batch = case(recipe, seed)
    first, states = prepare(recipe, batch)
    gradient, metrics = slice_gradient(recipe, policy, first, states)
    second, again = prepare(recipe, batch)
    yield Gap("the gradient of the same step", distance(slice_gradient(recipe, policy, second, again)[0], gradient))
    yield Gap("the state after the same step", _apart(again, states))
    after = advance(recipe, states, metrics)
    yield Gap("the state through JSON", _apart(json.loads(json.dumps(_plain(after))), _plain(after)))


def _same_metrics(found: Metrics, expected: Metrics) -> Gap:
    if found.keys() != expected.keys():
        return Gap(f"only some slices report {', '.join(sorted(found.keys() ^ expected.keys()))}", math.nan)
    gaps = {name: _apart(found[name].value, expected[name].value) for name in expected}
    worst = max(gaps, key=lambda name: gaps[name], default="none")
    return Gap(f"the metric {worst} in slices", gaps.get(worst, 0.0), CLOSE)


def _apart(found: Any, expected: Any) -> float:
    """The largest difference of two pieces of plain data, relative to 1 or more; infinite if they are built differently."""
    if isinstance(expected, Mapping):
        same = isinstance(found, Mapping) and found.keys() == expected.keys()
        return max((_apart(found[k], expected[k]) for k in expected), default=0.0) if same else math.inf
    if isinstance(expected, (list, tuple)):
        same = isinstance(found, (list, tuple)) and len(found) == len(expected)
        return max((_apart(*pair) for pair in zip(found, expected, strict=True)), default=0.0) if same else math.inf
    if isinstance(expected, float) and isinstance(found, (int, float)):
        if found == expected or (math.isnan(found) and math.isnan(expected)):
            return 0.0
        gap = abs(found - expected) / max(abs(expected), 1.0)
        return math.inf if math.isnan(gap) else gap
    return 0.0 if found == expected else math.inf


def _plain(value: Any) -> Any:
    """State as JSON keeps it: keys are text, sequences are lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _largest(value: Tensor) -> float:
    """The largest magnitude; infinite if there is a NaN."""
    largest = float(value.abs().max()) if value.numel() else 0.0
    return math.inf if math.isnan(largest) else largest


def _finite(what: str, value: Tensor) -> Gap:
    """A case that only has to be finite."""
    return Gap(what, 0.0 if bool(value.isfinite().all()) else math.inf)


def _gradients(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not loss.requires_grad:
        return {}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}


def _own(policy: Policy, batch: Batch) -> Tensor:
    """What the policy itself says of the batch's tokens."""
    with torch.no_grad():
        return torch.where(batch.mask, policy.forward(batch).logp, 0.0)


@dataclass(frozen=True, slots=True)
class Property:
    """A property: its sentence, the cases of a seed, and what to look for where it does not hold."""

    sentence: str
    cases: Callable[[Recipe, int], Iterator[Gap]]
    hint: str


PROPERTIES: Mapping[str, Property] = {
    "slices": Property(
        "micro-batches of any rows add up to the undivided gradient",
        slices,
        "A live component averages over the rows at hand, or depends on other rows without saying so: declare `couples`.",
    ),
    "two_passes": Property(
        "a coupled term is the same over slices smaller than its unit",
        two_passes,
        "It depends on more rows than `couples` says.",
    ),
    "float32": Property(
        "the same in single precision",
        float32,
        "A sum of large terms cancels: keep counts and credit in float64, and logs of ratios instead of ratios.",
    ),
    "ranks": Property(
        "1, 2 and 4 ranks give one gradient",
        ranks,
        "A live component normalises by its own rows: normalise in a weighting, which sees the whole step.",
    ),
    "order": Property(
        "the order of rows and the names of groups have no say",
        order,
        "Use ids (`batch.group`, `batch.rollout`), never positions.",
    ),
    "padding": Property(
        "width and content of the padding have no say",
        padding,
        "Count `batch.mask`, never the width T, and mask before any arithmetic.",
    ),
    "garbage": Property(
        "NaN, inf and overflow of the forward at padding have no say",
        garbage,
        "Mask with `masked(...)` before `exp`: 0 * inf is NaN.",
    ),
    "nothing": Property(
        "an empty mask, no rows and unscored rewards give exactly 0",
        nothing,
        "Divide with `divide(...)`, which is 0 over 0.",
    ),
    "equal_rewards": Property(
        "equal rewards give exactly zero gradient",
        equal_rewards,
        "The advantage keeps a part of the reward itself; if it is meant to, say so in `exemptions()`.",
    ),
    "first_step": Property(
        "at ratio 1 it is the policy gradient",
        first_step,
        "The slope of the gain at ratio 1 is not A; if it is meant not to be, say so in `exemptions()`.",
    ),
    "group_of_one": Property(
        "a group of one is finite", group_of_one, "A spread over one value is 0 or undefined: use `moments_by`."
    ),
    "truncated_group": Property(
        "a group that is cut off as a whole is finite", truncated_group, "A filter leaves nothing to divide by."
    ),
    "ruled_out_token": Property(
        "a token of logp -inf spoils nothing", ruled_out_token, "Clamp log-ratios with `log_ratio(...)`."
    ),
    "repeats": Property(
        "the same step twice is the same, and state is plain data",
        repeats,
        "Keep what has to be remembered in the state, as numbers, text, lists and mappings.",
    ),
}
"""Every property by its name, in the order in which they are shown."""

EXEMPTABLE = ("equal_rewards", "first_step")
"""What a component may break on purpose, with a reason; all others always have to hold."""
