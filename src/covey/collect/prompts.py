"""The order of prompts: a pure function of (seed, position), so a cursor is all the state there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from covey.protocols import Task
from covey.types import Prompt


@dataclass(frozen=True, slots=True)
class Issued:
    """A prompt that was handed out: the `position`-th of the run, for the `visit`-th time."""

    prompt: Prompt
    position: int
    visit: int

    @property
    def id(self) -> str:
        """The id of the group that it becomes."""
        return f"{self.prompt.id}#{self.visit}"


class Prompts:
    """Hands out the training prompts of a task, one after the other; `cursor` is the next position."""

    def __init__(self, task: Task, seed: int, cursor: int = 0) -> None:
        self.task, self.seed, self.cursor = task, seed, cursor

    def issue(self, count: int) -> list[Issued]:
        """The next `count` prompts. A finite task starts again after its last item: the next visit."""
        positions = range(self.cursor, self.cursor + count)
        self.cursor += count
        return [Issued(self.task.train(self.seed, at), at, visit_of(self.task, at)) for at in positions]


def visit_of(task: Task, index: int) -> int:
    """How often the prompt at `index` came before: what the task says (`visit`), else the epoch of a finite one, else 0."""
    own: Callable[[int], int] | None = getattr(task, "visit", None)
    if own is not None:
        return own(index)
    size = task.size
    return index // size if size else 0
