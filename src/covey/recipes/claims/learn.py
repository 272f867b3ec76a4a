"""Training in a small world with a recipe's own stages: credit once per batch, then optimizer steps on parts of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from covey.batch import Batch, Credited, Live
from covey.metrics import Metrics, merge
from covey.metrics import values as numbers
from covey.recipes.claims.data import make_batch
from covey.recipes.claims.worlds import World
from covey.recipes.recipe import Recipe
from covey.registry import State
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.objective import advance, objective, outputs
from covey.types import STOPS, Group, Prompt, Rollout, RolloutKey, Stop, Turn

Curve = tuple[Mapping[str, float], ...]
"""What was measured after each rollout batch; the first entry is the policy at the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is learnt from what: `batches` of `prompts` x `samples`, each used for `passes` over `parts` of its groups."""

    batches: int = 60
    prompts: int = 8
    samples: int = 8
    passes: int = 4
    parts: int = 1
    lr: float = 0.1
    adam: bool = True
    until: float = math.inf
    waves: int = 10


@cache
def learn(recipe: Recipe, make: Callable[[int], World], plan: Plan, seed: int) -> Curve:
    """The learning curve; cached, because several claims look at the same run.

    It ends early once success reaches `plan.until`. The reference is the policy at the start.
    """
    world, draw = make(seed), torch.Generator().manual_seed(seed)
    start, states = world.fresh(), dict[str, State](initial_states(recipe))
    kind = torch.optim.Adam if plan.adam else torch.optim.SGD
    optimizer = kind(world.parameters, lr=plan.lr)
    curve, sampled = [dict(world.facts()) | {"sampled": 0.0}], 0
    for _ in range(plan.batches):
        batch, drawn = collect(recipe, world, plan, draw)
        sampled += drawn
        if batch is not None:
            batch = batch.with_(columns=reference(world, batch, start) | noise(batch, draw))
            credited, states, found = credit(recipe, batch, states)
            reports: list[Metrics] = [found]
            for part in _parts(credited, plan, draw):
                step = weigh(recipe, credited.rows(part))
                loss, metrics = objective(recipe, forward(world, step, outputs(recipe)), step, states)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                states = advance(recipe, states, metrics)
                reports.append(metrics)
            seen = {"sampled": float(sampled), **_watch(world, credited)}
            curve.append(numbers(merge(reports)) | dict(world.facts()) | seen)
        if curve[-1]["success"] >= plan.until:
            break
    return tuple(curve)


def collect(recipe: Recipe, world: World, plan: Plan, draw: torch.Generator) -> tuple[Batch | None, int]:
    """A batch of admitted groups and how many tokens were sampled for it; None if no group was admitted."""
    kept: list[Batch] = []
    found, sampled = 0, 0
    for _ in range(plan.waves if recipe.admit else 1):
        wave = sample(world, plan, draw)
        sampled += int(wave.mask.sum())
        good = [at for at in range(plan.prompts) if _admits(recipe, world, wave, at)][: plan.prompts - found]
        kept.append(wave.rows(torch.isin(wave.group, torch.tensor(good, dtype=torch.long)).nonzero().squeeze(1)))
        found += len(good)
        if found == plan.prompts:
            break
    return (_join(kept, world) if found else None), sampled


def sample(world: World, plan: Plan, draw: torch.Generator) -> Batch:
    """Responses of the policy to some prompts, scored; every prompt once if there are as many as the plan asks for."""
    chosen = torch.arange(world.prompts)
    if plan.prompts != world.prompts:
        chosen = torch.randperm(world.prompts, generator=draw)[: plan.prompts]
    prompt = chosen.repeat_interleave(plan.samples)
    tokens, mask = world.sample(prompt, draw)
    reward = world.reward(prompt, tokens, mask.sum(1), draw)
    group = torch.arange(plan.prompts).repeat_interleave(plan.samples)
    batch = make_batch(
        tokens, reward, group, mask=mask, prompts=chosen.tolist(), limit=world.limit, names=world.rewards
    )
    held = forward(world, batch, ()).logp.detach()
    cut = torch.zeros_like(mask[:, 0])
    if world.stop is not None:
        cut = mask[:, -1] & (tokens[:, -1] != world.stop)
    stop = torch.where(cut, STOPS.index(Stop.LENGTH), STOPS.index(Stop.END))
    limit = batch.limit if world.stop is not None else 4 * batch.limit  # nothing to say of length where there is none
    return batch.with_(old_logp=held, sampled_logp=held, stop=stop, limit=limit)


def forward(world: World, batch: Batch, wanted: Sequence[str]) -> Live:
    """logp of every token, and the live outputs that a recipe asks for."""
    prompt = torch.tensor([batch.prompts[int(group)][0] for group in batch.group])
    logp = world.logits(prompt, batch.tokens).log_softmax(-1)
    chosen = torch.where(batch.mask, logp.gather(-1, batch.tokens[..., None]).squeeze(-1), 0.0)
    made = {"entropy": -(logp.exp() * logp).sum(-1)} if "entropy" in wanted else {}
    return Live(chosen, {name: made[name] for name in wanted})


def reference(world: World, batch: Batch, start: Sequence[Tensor]) -> dict[str, Tensor]:
    """`ref_logp` under the parameters of the start."""
    now = world.fresh()
    with torch.no_grad():
        for parameter, value in zip(world.parameters, start, strict=True):
            parameter.copy_(value)
        found = forward(world, batch, ()).logp
        for parameter, value in zip(world.parameters, now, strict=True):
            parameter.copy_(value)
    return {"ref_logp": found}


def noise(batch: Batch, draw: torch.Generator) -> dict[str, Tensor]:
    """`noise`, uniform in [0, 1) per token, for components that pick tokens at random."""
    return {"noise": torch.rand(batch.mask.shape, generator=draw, dtype=torch.float64)}


def area(curve: Curve, name: str = "success") -> float:
    """The mean of a number over the whole curve: how high and how early."""
    return sum(point[name] for point in curve) / len(curve)


def reached(curve: Curve, level: float, *, of: str = "success", by: str | None = None) -> float:
    """When a number first reached a level, between batches on a line: in batches, or in another number's units; NaN if never."""
    for at, (before, after) in enumerate(pairwise(curve)):
        if after[of] >= level:
            share = (level - before[of]) / (after[of] - before[of]) if after[of] > before[of] else 0.0
            share = min(max(share, 0.0), 1.0)
            return at + share if by is None else before[by] + share * (after[by] - before[by])
    return math.nan


def at_level(curve: Curve, name: str, level: float) -> float:
    """A number when success first reached a level, between batches on a line; NaN if it never did."""
    for before, after in pairwise(curve):
        if after["success"] >= level:
            share = (level - before["success"]) / max(after["success"] - before["success"], 1e-12)
            return before[name] + min(max(share, 0.0), 1.0) * (after[name] - before[name])
    return math.nan


def _watch(world: World, batch: Credited) -> dict[str, float]:
    """The range of token log-ratios over the whole batch, and the covariance of logp and advantage when it was drawn."""
    with torch.no_grad():
        moved = (forward(world, batch, ()).logp - batch.old_logp)[batch.mask]
    advantage, logp = batch.advantage[batch.mask], batch.old_logp[batch.mask]
    together = ((advantage - advantage.mean()) * (logp - logp.mean())).mean()
    return {"spread": float(moved.max() - moved.min()), "covariance": float(together)}


def _parts(batch: Batch, plan: Plan, draw: torch.Generator) -> list[Tensor]:
    """The rows of each optimizer step: whole groups, in a new order for every pass."""
    ids = torch.tensor(sorted(batch.prompts))
    out = []
    for _ in range(plan.passes):
        shuffled = ids[torch.randperm(len(ids), generator=draw)] if plan.parts > 1 else ids
        pieces = [piece for piece in shuffled.tensor_split(plan.parts) if len(piece)]
        out += [torch.isin(batch.group, piece).nonzero().squeeze(1) for piece in pieces]
    return out


def _admits(recipe: Recipe, world: World, batch: Batch, at: int) -> bool:
    if not recipe.admit:
        return True
    scores = batch.reward[batch.group == at].tolist()
    rollouts = [
        Rollout(RolloutKey("", i), (Turn((), None),), Stop.END, 1, rewards=dict(zip(world.rewards, row, strict=True)))
        for i, row in enumerate(scores)
    ]
    group = Group(str(at), Prompt("", (), None, ""), (), tuple(rollouts))
    return all(part.admits(group) for part in recipe.admit)  # type: ignore[attr-defined]


def _join(waves: Sequence[Batch], world: World) -> Batch:
    """Waves as one batch, groups and rollouts numbered anew."""
    if len(waves) == 1:
        return waves[0]
    rows, prompts, shift = [], dict[int, tuple[int, ...]](), 0
    for wave in waves:
        rows.append(wave.group + shift)
        prompts |= {group + shift: prompt for group, prompt in wave.prompts.items()}
        shift += 1000
    tensors = {
        name: torch.cat([getattr(wave, name) for wave in waves])
        for name in ("tokens", "mask", "old_logp", "sampled_logp", "reward", "stop", "limit")
    }
    joined = make_batch(
        tensors["tokens"], tensors["reward"], torch.cat(rows), mask=tensors["mask"],
        prompts=[prompts.get(g, (0,))[0] for g in range(shift)], names=world.rewards,
    )  # fmt: skip
    return joined.with_(**{name: tensors[name] for name in ("old_logp", "sampled_logp", "stop", "limit")})
