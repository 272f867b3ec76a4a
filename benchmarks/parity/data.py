"""The tensors that both sides see: one undivided batch in float64, with masks of many lengths and holes in them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from covey.batch import Batch, Keep
from covey.types import STOPS, Stop

COMPONENTS = ("correct", "format")
"""The names of the reward's components."""


@dataclass(frozen=True)
class Case:
    """N rows of T positions, in groups that stand together, as the peers demand.

    `advantage` is one number per row (what most peers' losses take); `reward` is [N K]; `cut` marks responses that were cut off.
    """

    mask: Tensor
    logp: Tensor
    old_logp: Tensor
    ref_logp: Tensor
    advantage: Tensor
    reward: Tensor
    value: Tensor
    group: Tensor
    cut: Tensor
    limit: int

    @property
    def token_advantage(self) -> Tensor:
        """An advantage per token, of both signs within a row: the row's own, moved by the critic's values."""
        return torch.where(self.mask, self.advantage[:, None] + 2 * self.value, 0.0)

    @property
    def returns(self) -> Tensor:
        """What a critic is to learn: the row's reward on each of its tokens."""
        return torch.where(self.mask, self.reward.sum(1)[:, None], 0.0)

    @property
    def new_value(self) -> Tensor:
        """What the critic says now, on both sides of every bound around `value`."""
        return self.value + 2 * (self.logp - self.old_logp)

    @property
    def size(self) -> int:
        """N."""
        return int(self.mask.shape[0])

    @property
    def tokens(self) -> int:
        """The tokens that count."""
        return int(self.mask.sum())

    def batch(self) -> Batch:
        """The same as covey's rows."""
        n, zeros = self.size, torch.zeros(self.mask.shape, dtype=torch.long)
        return Batch(
            prompts={int(g): (1, 2) for g in self.group.unique()},
            tokens=zeros,
            mask=self.mask,
            sampled_logp=self.old_logp,
            old_logp=self.old_logp,
            turn=zeros,
            version=zeros,
            length=self.mask.shape[1] - self.mask.flip(1).long().argmax(1),
            group=self.group,
            rollout=torch.arange(n),
            stop=torch.where(self.cut, STOPS.index(Stop.LENGTH), STOPS.index(Stop.END)),
            limit=torch.full((n,), self.limit),
            reward=self.reward,
            reward_names=COMPONENTS[: self.reward.shape[1]],
            reward_weights=(1.0,) * self.reward.shape[1],
            keep=Keep.all(n),
            columns={"ref_logp": self.ref_logp, "value": self.value, "noise": torch.zeros(self.mask.shape).double()},
        )

    def plain(self) -> dict[str, Any]:
        """For JSON: Python writes a float64 with all its digits."""
        return {name: v.tolist() if isinstance(v, Tensor) else v for name, v in vars(self).items()}

    @classmethod
    def of(cls, data: dict[str, Any]) -> Case:
        """The inverse of `plain`."""
        kinds = {"mask": torch.bool, "cut": torch.bool, "group": torch.long}
        made = {
            item.name: torch.tensor(data[item.name], dtype=kinds.get(item.name, torch.float64))
            for item in fields(cls)
            if item.name != "limit"
        }
        return cls(**made, limit=data["limit"])


def draw(seed: int, *, groups: int = 2, samples: int = 4, width: int = 20, hole: float = 0.1) -> Case:
    """A random batch: ratios on both sides of every clip bound, advantages of both signs, graded rewards."""
    generator = torch.Generator().manual_seed(seed)
    n = groups * samples
    shape = (n, width)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    length = torch.randint(width // 2, width + 1, (n,), generator=generator)
    length[0] = width
    mask = torch.arange(width)[None] < length[:, None]
    holes = torch.rand(shape, generator=generator) < hole  # tokens of a tool or an environment
    holes[torch.arange(n), length - 1] = False
    mask = mask & ~holes

    def logp(values: Tensor) -> Tensor:
        return torch.where(mask, values.clamp(max=-0.01), 0.0)

    new = -0.05 - 2.5 * torch.rand(shape, generator=generator, dtype=torch.float64)
    old = new + 0.35 * normal(*shape) + 0.15 * normal(n, 1)
    return Case(
        mask=mask,
        logp=logp(new),
        old_logp=logp(old),
        ref_logp=logp(new + 0.3 * normal(*shape)),
        advantage=normal(n),
        reward=normal(n, len(COMPONENTS)).mul(8).round().div(8),
        value=torch.where(mask, 0.5 * normal(*shape), 0.0),
        group=torch.arange(groups).repeat_interleave(samples),
        cut=torch.zeros(n, dtype=torch.bool),
        limit=width + 4,  # a budget that no response used up: the padded width must not stand in for it
    )


def draw_all(seed: int) -> dict[str, Case]:
    """The batches of a comparison: `ragged`, `solid` (no holes, for peers that know none), `cut` (two rows are truncated)."""
    ragged = draw(seed)
    cut = torch.arange(ragged.size) % 5 == 1
    return {"ragged": ragged, "solid": draw(seed + 1000, hole=0.0), "cut": with_(ragged, cut=cut)}


def with_(case: Case, **changes: Any) -> Case:
    """A copy with some fields replaced."""
    return Case(**{**vars(case), **changes})
