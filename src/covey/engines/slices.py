"""How the rows of a step are cut: into shares for ranks, and into micro-batches of whole groups by a token budget.

Nothing here changes a number: a slice's loss is a plain sum, so any cut gives the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from covey.batch import Batch, Keep

_KEEP = ("loss", "statistics", "denominator")
Plan = list[list[int]]
"""Row numbers per slice (or per rank)."""


def count_tokens(batch: Batch, rows: Sequence[int]) -> int:
    """Tokens of some rows, in prompt and response; a prompt counts once per group."""
    prompts = {int(batch.group[row]) for row in rows}
    return sum(len(batch.prompts[group]) for group in prompts) + sum(int(batch.length[row]) for row in rows)


def split_groups(batch: Batch) -> Plan:
    """The rows of each group, groups in order of appearance."""
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(batch.group.tolist()):
        groups.setdefault(group, []).append(row)
    return list(groups.values())


def plan_slices(batch: Batch, tokens_per_slice: int) -> tuple[Plan, bool]:
    """Micro-batches of whole groups that hold at most `tokens_per_slice` tokens; and whether every group is whole.

    A group above the budget is cut into several slices; a single row above it is a slice of its own. First fit, largest first.
    """
    lengths, whole = batch.length.tolist(), True
    pieces: list[tuple[int, list[int]]] = []
    for rows in split_groups(batch):
        prompt = len(batch.prompts[int(batch.group[rows[0]])])
        parts = [rows]
        if prompt + sum(lengths[row] for row in rows) > tokens_per_slice:
            parts = _pack([(lengths[row], [row]) for row in rows], tokens_per_slice - prompt)
            whole = whole and len(parts) == 1
        pieces += [(prompt + sum(lengths[row] for row in part), part) for part in parts]
    return _pack(pieces, tokens_per_slice), whole


def _pack(pieces: list[tuple[int, list[int]]], budget: int) -> Plan:
    bins: list[tuple[int, list[int]]] = []
    for cost, rows in sorted(pieces, key=lambda piece: -piece[0]):
        for at, (used, content) in enumerate(bins):
            if used + cost <= budget:
                bins[at] = (used + cost, content + rows)
                break
        else:
            bins.append((cost, rows))
    return [sorted(rows) for _, rows in bins]


def plan_shares(batch: Batch, ranks: int) -> Plan:
    """Whole groups dealt to ranks, largest first to the rank with the fewest tokens. A rank may get none."""
    if ranks == 1:
        return [list(range(batch.size))]
    loads, shares = [0] * ranks, [list[int]() for _ in range(ranks)]
    for cost, rows in sorted(
        ((count_tokens(batch, rows), rows) for rows in split_groups(batch)), key=lambda item: -item[0]
    ):
        rank = loads.index(min(loads))
        loads[rank] += cost
        shares[rank] += rows
    return [sorted(rows) for rows in shares]


def cheapest_row(batch: Batch) -> list[int]:
    """The row with the fewest tokens: what a rank without work repeats to stay in step."""
    return [min(range(batch.size), key=lambda row: count_tokens(batch, [row]))]


def is_token_level(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of a batch has a value per token ([N T] or [N T C]) rather than per row ([N], rewards [N K])."""
    return tensor.ndim >= 2 and name != "reward"


def map_tensors(batch: Batch, change: Callable[[str, Tensor], Tensor]) -> Any:
    """The batch (of the same class) with every tensor replaced by `change(name, tensor)`; names are `field` or `field/name`."""
    changes: dict[str, Any] = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, Tensor):
            changes[item.name] = change(item.name, value)
        elif isinstance(value, Keep):
            changes[item.name] = Keep(**{part: change(f"keep/{part}", getattr(value, part)) for part in _KEEP})
        elif isinstance(value, Mapping) and item.name != "prompts":
            changes[item.name] = {name: change(f"{item.name}/{name}", tensor) for name, tensor in value.items()}
    return batch.with_(**changes)


def cut(batch: Batch, rows: Sequence[int], device: torch.device) -> Any:
    """Some rows on a device, without the padding that none of them needs (the same class of batch)."""
    part = batch.rows(torch.tensor(rows, dtype=torch.int64, device=batch.tokens.device))
    width = int(part.length.max()) if part.size else 0

    def narrow(name: str, tensor: Tensor) -> Tensor:
        return (tensor[:, :width] if is_token_level(name, tensor) else tensor).to(device)

    return map_tensors(part, narrow)
