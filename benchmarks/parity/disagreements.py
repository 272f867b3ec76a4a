"""Where peers disagree: one small case each that shows it, by the peers' own code where it can be run here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.parity.data import Case


@dataclass(frozen=True)
class Row:
    """A disagreement: the case in words, what each side made of it, and on which side covey and its presets are.

    `ran` is False where no peer's code could be run here, so that only covey's own options show what is at stake.
    """

    name: str
    topic: str
    case: str
    shown: tuple[tuple[str, str], ...]
    side: str
    ran: bool = True


def figures(values: Tensor | Iterable[float] | float, digits: int = 6) -> str:
    """Numbers as they stand on the page."""
    listed = values.tolist() if isinstance(values, Tensor) else values
    listed = [listed] if isinstance(listed, (int, float)) else list(listed)
    texts = (f"{value:.{digits}f}".rstrip("0").rstrip(".") for value in listed)
    return ", ".join("0" if text == "-0" else text for text in texts)


def tiny(
    lengths: Sequence[int],
    *,
    advantage: Sequence[float] = (),
    log_ratio: Sequence[Sequence[float]] | float = 0.0,
    reward: Sequence[Sequence[float]] = (),
    groups: int = 1,
    width: int = 0,
) -> Case:
    """A batch written by hand: rows of these lengths; the policy's logp is -1, the old one's what the log-ratio makes of it."""
    n, width = len(lengths), width or max(lengths)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    ratio = torch.zeros(n, width, dtype=torch.float64)
    for i in range(n):
        row = [log_ratio] * lengths[i] if isinstance(log_ratio, float) else list(log_ratio[i])
        ratio[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    logp = torch.where(mask, -1.0, 0.0).double()
    scores = [list(row) for row in reward] or [[0.0]] * n
    return Case(
        mask=mask,
        logp=logp,
        old_logp=torch.where(mask, logp - ratio, 0.0),
        ref_logp=logp.clone(),
        advantage=torch.tensor(list(advantage) or [0.0] * n, dtype=torch.float64),
        reward=torch.tensor(scores, dtype=torch.float64),
        value=torch.zeros(n, width, dtype=torch.float64),
        group=torch.arange(groups).repeat_interleave(n // groups),
        cut=torch.zeros(n, dtype=torch.bool),
        limit=max(lengths),
    )


def first(values: Tensor) -> Tensor:
    """The first token's number of each row."""
    return values[:, 0]


def all_rows() -> list[Row]:
    """D1 to D32."""
    from benchmarks.parity import (
        rows_advantages,
        rows_defaults,
        rows_filters,
        rows_losses,
    )  # they are made of the words above

    makers: list[Callable[[], Row]] = [
        *rows_losses.ROWS,
        *rows_advantages.ROWS,
        *rows_filters.ROWS,
        *rows_defaults.ROWS,
    ]
    return sorted((make() for make in makers), key=lambda row: int(row.name[1:]))
