"""The task `mixture`: several sources of problems, dealt so that every batch holds each in proportion to its weight."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from covey.errors import ConfigError, did_you_mean
from covey.protocols import Reward, Task
from covey.registry import Component, build, component
from covey.types import Prompt, Rollout, Score

ALL = "all"
"""The evaluation set of a mixture that holds the main sets of all sources."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_BLOCK = 1024


class Deal:
    """Which source stands at which position: source k has w_k of every W = sum of w positions, evenly spread.

    At every position n the number of earlier ones that went to k differs from n w_k / W by less than 1. Of the sources whose
    next turn may come (count < (n + 1) w_k / W) the one whose turn has to come first (at ceil((count + 1) W / w_k)) is taken:
    earliest deadline first, which finds such a sequence because there is one (Tijdeman 1980, "The chairman assignment
    problem"). It repeats after W positions and is worked out as far as it is asked for.
    """

    def __init__(self, weights: tuple[int, ...]) -> None:
        self.weights, self.total = weights, sum(weights)
        self._sources = array("H")
        self._counts = [0] * len(weights)
        self._blocks: list[tuple[int, ...]] = []

    def at(self, index: int) -> tuple[int, int]:
        """The source at a position, and how many earlier positions went to it."""
        lap, place = divmod(index, self.total)
        while len(self._sources) <= place:
            self._extend()
        source, start = self._sources[place], place - place % _BLOCK
        before = self._blocks[start // _BLOCK][source] + self._sources[start:place].count(source)
        return source, lap * self.weights[source] + before

    def _extend(self) -> None:
        n, total, counts = len(self._sources), self.total, self._counts
        if n % _BLOCK == 0:
            self._blocks.append(tuple(counts))
        due = [
            (-(-(count + 1) * total // weight), k)
            for k, (count, weight) in enumerate(zip(counts, self.weights, strict=True))
            if count * total < (n + 1) * weight
        ]
        _, source = min(due)
        self._sources.append(source)
        counts[source] += 1


@lru_cache(maxsize=16)
def deal(weights: tuple[float, ...]) -> Deal:
    """The deal of positive weights, read as the decimal fractions that they are written as: 0.1 is one tenth."""
    parts = [Fraction(str(weight)) for weight in weights]
    common = math.lcm(*(part.denominator for part in parts))
    whole = [int(part * common) for part in parts]
    return Deal(tuple(count // math.gcd(*whole) for count in whole))


@dataclass(frozen=True, slots=True)
class Source:
    """A task under a name: its prompts say that they are from there, in their ids too."""

    name: str
    task: Task

    @property
    def size(self) -> int | None:
        """The task's."""
        return self.task.size

    @property
    def reward(self) -> Reward:
        """The task's."""
        return self.task.reward

    @property
    def digest(self) -> str | None:
        """The task's; None for one that reads no data."""
        return getattr(self.task, "digest", None)

    @property
    def main_set(self) -> str:
        """The task's, under the source's name."""
        return f"{self.name}.{self.task.main_set}"

    def train(self, seed: int, index: int) -> Prompt:
        """The task's prompt, named after the source."""
        return self._name(self.task.train(seed, index))

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        """The task's sets, named after the source: `maths.held_out`."""
        sets = self.task.held_out(seed).items()
        return {f"{self.name}.{name}": [self._name(prompt) for prompt in prompts] for name, prompts in sets}

    def _name(self, prompt: Prompt) -> Prompt:
        return replace(prompt, id=f"{self.name}/{prompt.id}", task=self.name)


@dataclass(frozen=True, slots=True)
class MixedReward:
    """Scores each prompt by the reward of the source that it is from. `weights` are those of all sources."""

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]

    def check(self, prompt: Prompt) -> None:
        """Raises what the reward of the prompt's source finds wrong with it."""
        reward: Any = self.rewards[prompt.task]
        if hasattr(reward, "check"):
            reward.check(prompt)

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> Sequence[Score]:
        """The scores of the source's own reward; components of other sources are absent."""
        return await self.rewards[prompt.task].score(prompt, rollouts)


def _build(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(
            "task.tasks", f"got {value!r:.60}", "Give each source a name: {NAME: {kind: KIND, ...}, ...}."
        )
    return {str(name): _build_source(str(name), part) for name, part in value.items()}


def _build_source(name: str, value: Any) -> Component:
    where = f"task.tasks.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(where, f"{name!r} is no name", "Use letters, digits, - and _.")
    built = build("task", value, where)
    if isinstance(built, Mixture):
        raise ConfigError(where, "a mixture inside a mixture", "List its sources here.")
    return built


@component("task", "mixture")
class Mixture(Component):
    """Several tasks by name. Of every stretch of consecutive prompts each task has its share, to less than two prompts.

    Each task keeps its own order, its own reward and its own held-out sets (`NAME.SET`); `all` joins their main sets, in
    turn. `Prompt.task` is the name.
    """

    tasks: Annotated[Mapping[str, Component], BeforeValidator(_build)] = Field(
        min_length=1, description="sources by name: each a kind of task with its options"
    )
    weights: Mapping[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="share of each source in relation to the others, above 0; 1 where not named"
    )
    main: str = Field(ALL, description="evaluation set whose accuracy is eval/accuracy: all, or SOURCE.SET")

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        for name in self.weights:
            if name not in self.tasks:
                raise ConfigError(f"task.weights.{name}", "there is no such source", did_you_mean(name, self.tasks))
        return self

    @property
    def sources(self) -> tuple[Source, ...]:
        """The tasks under their names."""
        return tuple(Source(name, task) for name, task in self.tasks.items())  # type: ignore[arg-type]

    @property
    def size(self) -> int | None:
        """The number of different training items of all sources; None if a source makes new ones for ever."""
        sizes = [source.size for source in self.sources]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def reward(self) -> MixedReward:
        """Each source's own reward. Raises ConfigError where two of them weight one component differently."""
        rewards = {source.name: source.reward for source in self.sources}
        weights: dict[str, float] = {}
        owner: dict[str, str] = {}
        for name, reward in rewards.items():
            for part, weight in getattr(reward, "weights", {}).items():
                if weights.setdefault(part, weight) != weight:
                    found = f"{owner[part]} weights the component '{part}' {weights[part]:g}, {name} {weight:g}"
                    raise ConfigError("task.tasks", found, "Mix sources whose rewards agree on it.")
                owner.setdefault(part, name)
        return MixedReward(rewards, weights)

    @property
    def main_set(self) -> str:
        """Accuracy on this set is `eval/accuracy`."""
        return self.main

    def train(self, seed: int, index: int) -> Prompt:
        """The prompt at a position: the next one of the source whose turn it is."""
        source, place = self._deal().at(index)
        return self.sources[source].train(seed, place)

    def visit(self, index: int) -> int:
        """How often the prompt at a position came before: the epoch of its own source."""
        source, place = self._deal().at(index)
        size = self.sources[source].size
        return place // size if size else 0

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        """`all`, the main sets of the sources taken in turn, then every set of every source by `SOURCE.SET`."""
        by_source = {source.main_set: source.held_out(seed) for source in self.sources}
        sets = {name: prompts for found in by_source.values() for name, prompts in found.items()}
        if not sets:
            return {}
        joined = {ALL: take_turns([sets[main] for main in by_source if main in sets]), **sets}
        if self.main not in joined:
            raise ConfigError("task.main", f"there is no evaluation set '{self.main}'", did_you_mean(self.main, joined))
        return joined

    def rewarded(self, reward: Any) -> Mixture:
        """This mixture for a reward that takes the place of the sources' own: rows are checked for what it needs."""
        tasks = {
            name: task.model_copy(update={"reward": reward}) if "reward" in type(task).model_fields else task
            for name, task in self.tasks.items()
        }
        return self.model_copy(update={"tasks": tasks})

    def notes(self) -> tuple[str, ...]:
        """What is worth knowing before a run, of all sources."""
        return tuple(note for task in self.tasks.values() if hasattr(task, "notes") for note in task.notes())

    def _deal(self) -> Deal:
        return deal(tuple(float(self.weights.get(name, 1)) for name in self.tasks))


def take_turns(lists: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    """The first of each list, then the second of each, and so on: any beginning of it is balanced."""
    longest = max(map(len, lists), default=0)
    return [items[place] for place in range(longest) for items in lists if place < len(items)]


def sources_of(task: Task) -> tuple[Task, ...]:
    """The sources of a task that has several, else the task itself."""
    return tuple(getattr(task, "sources", ())) or (task,)


def fingerprint(task: Task) -> dict[str, str]:
    """A digest of the data of each source that reads some, by its name: what has to stay the same while a run goes on."""
    found = {getattr(source, "name", "data"): getattr(source, "digest", None) for source in sources_of(task)}
    return {name: digest for name, digest in found.items() if digest is not None}
