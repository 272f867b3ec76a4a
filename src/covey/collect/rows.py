"""Groups of rollouts as rows of tensors. The only place where ragged turns become a padded batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from covey.batch import Batch, Keep
from covey.types import STOPS, Group, Rollout


def rows(groups: Sequence[Group], weights: Mapping[str, float], dtype: torch.dtype = torch.float64) -> Batch:
    """One row per rollout, in order; `weights` are the weights that the reward declares for its components (1 if absent).

    A reward component that a scored rollout neither has nor failed is 0 there: it adds nothing to a weighted sum.
    A token whose logp is not finite under sampler or policy (outside a truncated support) leaves the mask.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    owner = torch.tensor([at for at, group in enumerate(groups) for _ in group.rollouts])
    names = reward_names(groups, weights)
    columns = [_flat(rollout) for rollout in rollouts]
    width = max((len(tokens) for tokens, *_ in columns), default=0)
    tokens = _padded([column[0] for column in columns], width, torch.long)
    chosen = _padded([column[1] for column in columns], width, torch.bool)
    sampled = _padded([column[2] for column in columns], width, dtype)
    policy = _padded([column[3] for column in columns], width, dtype)
    mask = chosen & sampled.isfinite() & policy.isfinite()
    zero = torch.zeros((), dtype=dtype)
    return Batch(
        prompts={at: group.prompt_tokens for at, group in enumerate(groups)},
        tokens=tokens,
        mask=mask,
        sampled_logp=torch.where(mask, sampled, zero),
        old_logp=torch.where(mask, policy, zero),
        turn=_padded([column[4] for column in columns], width, torch.long),
        version=_padded([column[5] for column in columns], width, torch.long),
        length=torch.tensor([len(column[0]) for column in columns]),
        group=owner,
        rollout=torch.arange(len(rollouts)),
        stop=torch.tensor([STOPS.index(rollout.stop) for rollout in rollouts]),
        limit=torch.tensor([rollout.limit for rollout in rollouts]),
        reward=torch.tensor([[_value(rollout, name) for name in names] for rollout in rollouts]).double(),
        reward_names=names,
        reward_weights=tuple(weights.get(name, 1.0) for name in names),
        keep=Keep.all(len(rollouts)),
    )


def reward_names(groups: Sequence[Group], weights: Mapping[str, float]) -> tuple[str, ...]:
    """The reward components that occur, scored or failed: those that the reward declares in its order, then the others."""
    found = dict.fromkeys(name for group in groups for r in group.rollouts for name in (*r.rewards, *r.failures))
    return tuple(dict.fromkeys([*(name for name in weights if name in found), *found]))


def _value(rollout: Rollout, name: str) -> float:
    """The value of a component: NaN if it could not be scored, 0 if a scored rollout has no such component.

    Rollouts of several sources, or with parts that do not apply to them, have different components.
    """
    if name in rollout.rewards:
        return rollout.rewards[name]
    return math.nan if name in rollout.failures or not rollout.rewards else 0.0


def _flat(rollout: Rollout) -> tuple[list[int], list[bool], list[float], list[float], list[int], list[int]]:
    """Tokens, whether the policy chose them, logp of the sampler and of the policy, turn and version, token by token."""
    tokens: list[int] = []
    chosen: list[bool] = []
    sampled: list[float] = []
    policy: list[float] = []
    turns: list[int] = []
    versions: list[int] = []
    for at, turn in enumerate(rollout.turns):
        count = len(turn.tokens)
        own = turn.sampled_logp or (0.0,) * count
        tokens += turn.tokens
        chosen += [turn.by == "policy" and turn.sampled_logp is not None] * count
        sampled += own
        policy += turn.policy_logp or own
        turns += [at] * count
        stamps = [version for length, version in turn.versions for _ in range(length)]
        versions += stamps or [0] * count
    return tokens, chosen, sampled, policy, turns, versions


def _padded(lists: Sequence[Sequence[float]], width: int, dtype: torch.dtype) -> Tensor:
    out = torch.zeros(len(lists), width, dtype=dtype)
    for at, values in enumerate(lists):
        out[at, : len(values)] = torch.tensor(values, dtype=dtype)
    return out
