"""A look at what the model writes: the best and the worst response of some groups, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from covey.observe.plain import clean, shorten
from covey.types import Group, Rollout

_FIXED = 16 + len("advantage") + len("length")
"""Columns of the table besides prompt, response and reward: frame, padding, advantage and stop."""


def completions(
    groups: Sequence[Group],
    advantages: Mapping[str, Sequence[float]],
    *,
    title: str,
    rows: int = 4,
    width: int = 100,
    ascii_only: bool = False,
) -> Table:
    """A table of prompt, response, reward, advantage and stop: best and worst of the groups with most signal.

    What the model wrote is cleaned of everything that acts on a terminal and shortened in the middle.
    """
    table = Table(title=Text(title), title_justify="left", expand=False, padding=(0, 1))
    for head in ("prompt", "response", "reward", "advantage", "stop"):
        table.add_column(head, justify="right" if head in ("reward", "advantage") else "left", overflow="fold")
    chosen = choose(groups, rows)
    rewards = [len(_rewards(group.rollouts[place])) for group, place in chosen]
    room = max(24, width - _FIXED - max([*rewards, len("reward")]))
    for group, place in chosen:
        rollout = group.rollouts[place]
        asked = group.prompt.messages[-1].content if group.prompt.messages else group.prompt.id
        credit = advantages.get(group.id, ())
        cells = (
            shorten(clean(asked, ascii_only=ascii_only), room // 3),
            shorten(clean(rollout.text, ascii_only=ascii_only), room - room // 3),
            _rewards(rollout),
            f"{credit[place]:+.2f}" if place < len(credit) else "",
            rollout.stop.value,
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def choose(groups: Sequence[Group], rows: int) -> list[tuple[Group, int]]:
    """Up to `rows` rollouts as (group, place): best and worst of each group, the widest difference first."""
    chosen: list[tuple[Group, int]] = []
    for group in sorted((group for group in groups if group.rollouts), key=lambda group: -_spread(group)):
        worth = [_worth(rollout) for rollout in group.rollouts]
        best, worst = worth.index(max(worth)), worth.index(min(worth))
        chosen += [(group, place) for place in dict.fromkeys((best, worst))]
    return chosen[:rows]


def signal(groups: Sequence[Group]) -> tuple[int, int]:
    """How many groups have outcomes that differ, of how many."""
    return sum(len({_outcome(rollout) for rollout in group.rollouts}) > 1 for group in groups), len(groups)


def _outcome(rollout: Rollout) -> float | None:
    """Component `correct`, else the first one: components beside it may have no weight at all."""
    return rollout.rewards.get("correct", next(iter(rollout.rewards.values()), None))


def _worth(rollout: Rollout) -> float:
    return sum(rollout.rewards.values())


def _spread(group: Group) -> float:
    worth = [_worth(rollout) for rollout in group.rollouts]
    return max(worth) - min(worth)


def _rewards(rollout: Rollout) -> str:
    """The outcome (first component), then what else is not 0 by name, then what failed."""
    values = list(rollout.rewards.items())
    parts = [f"{value:.3g}" for _, value in values[:1]]
    parts += [f"{clean(name)} {value:.3g}" for name, value in values[1:] if value]
    parts += [f"{clean(name)} failed" for name in rollout.failures]
    return ", ".join(parts)
