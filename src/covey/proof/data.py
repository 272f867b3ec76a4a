"""Random ragged batches and the one policy that all proofs differentiate."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from covey.batch import Batch, Keep, Live
from covey.types import STOPS

VOCABULARY = 5
GARBAGE = (math.nan, math.inf, -math.inf, 200.0, -200.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a random batch is like: groups of one to `most` rollouts, rows of up to `width` positions, reward components.

    Rewards are 0 or 1, or `graded`; each is `unscored` (NaN) with that probability.
    """

    groups: int = 3
    most: int = 4
    width: int = 5
    components: int = 2
    graded: bool = False
    unscored: float = 0.0
    columns: Sequence[str] = ("ref_logp",)


def draw_batch(seed: int, **options: Any) -> Batch:
    """Rows in random order, group and rollout ids with gaps, holes in the mask, empty rows, rollouts of two rows.

    The options are those of `Shape`.
    """
    draw, shape = random.Random(seed), Shape(**options)
    width, components = shape.width, shape.components
    ids = draw.sample(range(1000), shape.groups)
    rows: list[tuple[int, int]] = []
    names = iter(draw.sample(range(10_000), shape.groups * shape.most * 2))
    for group in ids:
        for _ in range(draw.randint(1, shape.most)):
            rollout = next(names)
            rows += [(group, rollout)] * (2 if draw.random() < 0.2 else 1)
    draw.shuffle(rows)
    n = len(rows)
    lengths = [draw.randint(0, width) for _ in rows]
    mask = [[t < length and draw.random() < 0.85 for t in range(width)] for length in lengths]

    def value() -> float:
        return draw.gauss(0, 1) if shape.graded else float(draw.randint(0, 1))

    worth = {rollout: [value() for _ in range(components)] for _, rollout in rows}
    worth = {r: [math.nan if draw.random() < shape.unscored else v for v in values] for r, values in worth.items()}
    chosen = torch.tensor(mask, dtype=torch.bool).reshape(n, width)

    def logps() -> Tensor:
        values = [[-3 * draw.random() for _ in range(width)] for _ in rows]
        return torch.where(chosen, torch.tensor(values, dtype=torch.float64).reshape(n, width), 0.0)

    whole = torch.tensor([[draw.randrange(VOCABULARY) for _ in range(width)] for _ in rows]).reshape(n, width)
    return Batch(
        prompts={group: (group % VOCABULARY, 1) for group in ids},
        tokens=whole,
        mask=chosen,
        sampled_logp=logps(),
        old_logp=logps(),
        turn=torch.zeros(n, width, dtype=torch.long),
        version=torch.zeros(n, width, dtype=torch.long),
        length=torch.tensor(lengths),
        group=torch.tensor([group for group, _ in rows]),
        rollout=torch.tensor([rollout for _, rollout in rows]),
        stop=torch.tensor([draw.randrange(len(STOPS)) for _ in rows]),
        limit=torch.tensor([width for _ in rows]),
        reward=torch.tensor([worth[rollout] for _, rollout in rows], dtype=torch.float64).reshape(n, components),
        reward_names=tuple(f"part{k}" for k in range(components)),
        reward_weights=tuple(1.0 + k for k in range(components)),
        keep=Keep.all(n),
        columns={name: logps() for name in shape.columns},
    )


def widen(batch: Batch, extra: int, filler: float) -> Batch:
    """The same rows `extra` positions wider, with `filler` at every position outside the mask."""

    def wide(value: Tensor) -> Tensor:
        padded = torch.cat([value, value.new_zeros((batch.size, extra))], 1)
        return torch.where(mask, padded, filler) if value.is_floating_point() else padded

    def fill(value: Tensor) -> Tensor:
        return wide(value) if value.dim() == 2 else value

    mask = torch.cat([batch.mask, batch.mask.new_zeros((batch.size, extra))], 1)
    names = ("tokens", "sampled_logp", "old_logp", "turn", "version")
    changes = {name: wide(getattr(batch, name)) for name in names}
    return batch.with_(mask=mask, columns={name: fill(value) for name, value in batch.columns.items()}, **changes)


class Policy:
    """A language model small enough to see through: logits of a position plus logits of the token before."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64, width: int = 16) -> None:
        draw = torch.Generator().manual_seed(seed)
        shapes = ((width, VOCABULARY), (VOCABULARY, VOCABULARY))
        self.parameters = [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def forward(self, batch: Batch, outputs: Sequence[str] = ()) -> Live:
        """logp of every token (padding too), and per name an output that depends on all parameters."""
        position, before = self.parameters
        first = torch.tensor([batch.prompts[int(group)][0] for group in batch.group], dtype=torch.long)
        previous = torch.cat([first[:, None], batch.tokens], 1)[:, : batch.tokens.shape[1]]
        logits = position[: batch.tokens.shape[1]][None] + before[previous]
        logp = logits.log_softmax(-1)
        made = {"entropy": -(logp.exp() * logp).sum(-1)}
        odd = {name: (logits * torch.linspace(-1, 1, VOCABULARY, dtype=logits.dtype)).sum(-1) for name in outputs}
        chosen = logp.gather(-1, batch.tokens[..., None]).squeeze(-1)
        return Live(chosen, {name: made.get(name, odd[name]) for name in outputs})

    def on(self, batch: Batch, seed: int, noise: float = 0.3) -> Batch:
        """The batch as if a policy near this one had sampled it: ratios spread around 1."""
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            logp = self.forward(batch).logp

        def near(value: Tensor) -> Tensor:
            moved = value + noise * torch.randn(value.shape, generator=draw, dtype=torch.float64).to(value.dtype)
            return torch.where(batch.mask, moved, 0.0)

        old = near(logp)
        columns = {name: value.to(logp.dtype) for name, value in batch.columns.items()}
        return replace(batch, old_logp=old, sampled_logp=near(old), columns=columns)

    def gradient(self, loss: Tensor) -> Tensor:
        """The gradient of a loss by all parameters, as one vector; zero for a loss that depends on none."""
        if not loss.requires_grad:
            return torch.cat([torch.zeros_like(p).flatten() for p in self.parameters])
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        parts = zip(found, self.parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in parts])


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative L2 distance; NaN counts as infinitely far."""
    gap, size = float((found - expected).double().norm()), float(expected.double().norm())
    if math.isnan(gap) or math.isnan(size):
        return math.inf
    return gap / size if size else gap
