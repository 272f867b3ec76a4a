"""The seams of covey on one screen: whatever has these methods can take the place of the part that ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from covey.batch import Batch, Credited, Live
from covey.metrics import Metrics
from covey.types import Group, Prompt, Request, Rollout, Sample, Sampling, Score

Objective = Callable[[Live, Credited], tuple[Tensor, Metrics]]
"""The loss of a slice, a plain sum, so that slices only add up; and what there is to report of it."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one improvement did: metrics, and the mean advantage of each rollout by group id."""

    metrics: Metrics
    advantages: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


class Reward(Protocol):
    """Scores all rollouts of one prompt; returns one Score per rollout, in order."""

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> Sequence[Score]: ...


class Task(Protocol):
    """Where prompts come from. Items are pure functions of (seed, index): O(1), nothing to save.

    A task of several parts may also have `sources` (tasks) and `visit(index)`, how often that prompt came before; one that
    reads data a `digest` of it, and `notes()` for what is worth knowing before a run.
    """

    @property
    def size(self) -> int | None:
        """How many different training items there are; None: a new one for every index."""

    @property
    def reward(self) -> Reward: ...

    @property
    def main_set(self) -> str:
        """The evaluation set whose accuracy is `eval/accuracy`."""

    def train(self, seed: int, index: int) -> Prompt: ...

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        """Evaluation sets by name, disjoint from everything `train` returns, the same for every index and order."""


class Sampler(Protocol):
    """Continues token sequences. The tokens of a sample depend on its request and noise key alone, never on its batch."""

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]: ...

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None: ...


class Learner(Protocol):
    """Owns the trained weights. Slices are sums: how rows are split cannot change a gradient."""

    def forward(self, batch: Batch, outputs: Sequence[str], temperature: float) -> Live:
        """Log-probabilities (and other outputs) without gradient, rows in the order of `batch`."""

    def backward(self, batch: Credited, objective: Objective, outputs: Sequence[str], temperature: float) -> Metrics:
        """Add the gradient of the objective, slice by slice."""

    def step(self, lr: float) -> Metrics:
        """Clip, apply and clear the gradient."""

    def weights(self) -> Mapping[str, Tensor]:
        """The whole weights under transformers' names."""


class Column(Protocol):
    """Provides named data per row or token, once per rollout batch."""

    def provide(self, batch: Batch) -> Mapping[str, Tensor]: ...


@runtime_checkable
class TrainedColumn(Column, Protocol):
    """A column that learns beside the policy, by an optimizer of its own: a critic."""

    def fit(self, step: Credited, lr: float, *, alone: bool) -> Metrics:
        """Learn from the rows of one optimizer step, given the policy's rate; `alone`: the policy does not."""


class Collector(Protocol):
    """Turns prompts into scored, admitted groups."""

    async def take(self, count: int) -> tuple[list[Group], Metrics]: ...


class Improver(Protocol):
    """Turns groups into a better policy: a gradient step, or an edited context."""

    def improve(self, groups: Sequence[Group], step: int) -> Update: ...


class Sink(Protocol):
    """Receives what a run reports."""

    def write(self, kind: str, record: Mapping[str, Any]) -> None: ...
