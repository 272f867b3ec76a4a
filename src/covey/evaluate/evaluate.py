"""Ask a model held-out problems and say how often it is right, per set, with intervals.

The noise of a sample is a function of (seed, "eval", problem, sample index), so two evaluations differ by the
weights alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from covey import random
from covey.collect.scoring import score_groups
from covey.errors import ConfigError, did_you_mean
from covey.evaluate.estimators import Estimate, all_at, estimate, pass_at, plurality_at, powers_of_two
from covey.evaluate.table import Tally
from covey.types import Group, Message, Prompt, Request, Rollout, RolloutKey, Sampling, Stop

if TYPE_CHECKING:
    from covey.protocols import Sampler, Task

Out = TypeVar("Out")
Render = Callable[[tuple[Message, ...]], tuple[int, ...]]
Decode = Callable[[tuple[int, ...]], str]
_LONGEST = 100
"""Answers of more characters stand in tables as a digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is asked: `samples` per problem from index `first` on, at most `problems` of each set of `sets`.

    `ks` are the k that statistics of k samples are reported for; None: 1, 2, 4, ... up to the samples of a problem.
    """

    seed: int = 0
    samples: int = 8
    first: int = 0
    problems: int | None = None
    sets: tuple[str, ...] | None = None
    ks: tuple[int, ...] | None = None

    def choose(self, held_out: Mapping[str, Sequence[Prompt]]) -> dict[str, Sequence[Prompt]]:
        """The problems to ask, by set, in the order of `sets`."""
        for name in self.sets or ():
            if name not in held_out:
                raise ConfigError("sets", f"there is no evaluation set '{name}'", did_you_mean(name, held_out))
        return {name: held_out[name][: self.problems] for name in self.sets or held_out}

    def check(self, sampling: Sampling) -> None:
        """Refuse plans that cannot be right."""
        if self.samples < 1:
            raise ConfigError("samples", f"got {self.samples}", "At least 1 sample per problem.")
        if self.first < 0:
            raise ConfigError("first", f"got {self.first}", "Sample indices begin at 0.")
        if self.problems is not None and self.problems < 1:
            raise ConfigError("problems", f"got {self.problems}", "At least 1 problem per set.")
        if sampling.temperature == 0 and self.samples > 1:
            raise ConfigError(
                "samples",
                f"{self.samples} greedy samples of a problem are all the same",
                "Use samples=1 or a temperature.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """What an evaluation says of one set. Shares are in [0, 1], of rollouts if nothing else is said.

    `accuracy` is the mean over problems of c / n, which is avg@k for every k. `pass_at`, `all_at` (pass^k) and
    `majority_at` (maj@k; None where answers were not recorded) hold the ks asked for, else k = 1, 2, 4, ... up to the
    fewest samples of a problem; `mixed` is the share of problems with right and wrong samples; `classes` shares of
    failure classes; `length` tokens.
    """

    name: str
    problems: int
    samples: int
    accuracy: Estimate
    pass_at: Mapping[int, Estimate]
    all_at: Mapping[int, Estimate]
    majority_at: Mapping[int, Estimate] | None
    mixed: float
    truncated: float
    failed: float
    length: float
    classes: Mapping[str, float]

    def record(self) -> dict[str, float]:
        """The numbers by name: accuracy, se, low, high; pass@k, pass^k, maj@k and their se; mixed, class shares ..."""
        low, high = self.accuracy.interval
        numbers = {"accuracy": self.accuracy.mean, "se": self.accuracy.se, "low": low, "high": high}
        for name, values in (("pass@", self.pass_at), ("pass^", self.all_at), ("maj@", self.majority_at or {})):
            for k, value in values.items():
                numbers |= {f"{name}{k}": value.mean, f"{name}{k}_se": value.se}
        numbers |= {"mixed": self.mixed, "truncated": self.truncated, "failed": self.failed, "length": self.length}
        numbers |= {f"class_{name}": share for name, share in self.classes.items()}
        return {**numbers, "problems": self.problems, "samples": self.samples}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation: its table of problems, the ks to report, and the rollouts by set where they were kept."""

    tallies: tuple[Tally, ...]
    main_set: str | None = None
    groups: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)
    ks: tuple[int, ...] | None = None

    @property
    def sets(self) -> dict[str, SetResult]:
        """The result of each set, in the order of the table."""
        by_set: dict[str, list[Tally]] = {}
        for tally in self.tallies:
            by_set.setdefault(tally.set, []).append(tally)
        return {name: summarise(name, tallies, self.ks) for name, tallies in by_set.items()}

    def record(self) -> dict[str, float]:
        """One flat record: `eval/accuracy` ... for the main set, and for every set with its name: `eval/pass@4_L2`."""
        flat: dict[str, float] = {}
        for name, result in self.sets.items():
            numbers = result.record()
            if name == self.main_set:
                flat |= {f"eval/{quantity}": value for quantity, value in numbers.items()}
            flat |= {f"eval/{quantity}_{name}": value for quantity, value in numbers.items()}
        return flat


def no_thought(tokens: tuple[int, ...]) -> str:
    """The thought of a model that does not think."""
    return ""


def evaluate(
    sampler: Sampler,
    task: Task,
    plan: Plan,
    *,
    sampling: Sampling,
    render: Render,
    decode: Decode,
    think: Decode = no_thought,
) -> Evaluation:
    """Sample the held-out problems of a task, score them with the task's reward and count.

    `render` turns messages into prompt tokens, `decode` response tokens into text and `think` into the thought. A
    rollout is right if its reward component `correct` is 1 (without such a component: if the first one is at least
    1 - 1e-9); one that could not be scored counts as wrong and is counted apart. A set without problems has no row; a
    problem of several sets is asked once.
    """
    plan.check(sampling)
    groups: dict[str, tuple[Group, ...]] = {}
    known: dict[str, Group] = {}
    for name, prompts in plan.choose(task.held_out(plan.seed)).items():
        new = [prompt for prompt in prompts if prompt.id not in known or known[prompt.id].prompt != prompt]
        drawn = _sample(sampler, new, plan, sampling=sampling, render=render)
        asked = [_speak(group, decode, think) for group in drawn]
        known |= {group.id: group for group in _wait(score_groups(task.reward, asked))}
        groups[name] = tuple(known[prompt.id] for prompt in prompts)
    tallies = tuple(tally for name, members in groups.items() for tally in tabulate(members, name))
    return Evaluation(tallies, task.main_set, groups, plan.ks)


def is_right(rollout: Rollout) -> bool:
    """Whether a rollout solves its problem: component `correct` is 1; without it, the first component is (to 1e-9).

    A rollout that could not be scored is not right.
    """
    rewards = rollout.rewards
    if "correct" in rewards:
        return rewards["correct"] == 1
    if rollout.failures or not rewards:
        return False
    return next(iter(rewards.values())) >= 1 - 1e-9


def tabulate(groups: Sequence[Group], name: str) -> list[Tally]:
    """The rows of a set's groups. Answers are recorded if any of its rollouts has the fact `answer`, be it null."""
    recorded = any("answer" in rollout.facts for group in groups for rollout in group.rollouts)
    return [count(group, name, answers=recorded) for group in groups]


def count(group: Group, name: str, *, answers: bool = False) -> Tally:
    """The row of one group in the table of set `name`; its sample indices have to be consecutive."""
    rollouts, classes = group.rollouts, dict[str, int]()
    for rollout in rollouts:
        if "class" in rollout.facts:
            label = str(rollout.facts["class"])
            classes[label] = classes.get(label, 0) + 1
    level = group.prompt.meta.get("level")
    first = rollouts[0].key.index if rollouts else 0
    return Tally(
        id=group.prompt.id,
        set=name,
        level=level if isinstance(level, int) else None,
        samples=((first, first + len(rollouts)),),
        correct=sum(is_right(rollout) for rollout in rollouts),
        truncated=sum(rollout.stop is Stop.LENGTH for rollout in rollouts),
        failed=sum(bool(rollout.failures) or not rollout.rewards for rollout in rollouts),
        tokens=sum(rollout.length for rollout in rollouts),
        classes=classes,
        answers=_count_answers(rollouts) if answers else None,
    )


def _count_answers(rollouts: Sequence[Rollout]) -> dict[str, tuple[int, int]]:
    """Samples and right samples of each answer: the fact `answer`, by a digest where it is long; null does not vote."""
    counts: dict[str, tuple[int, int]] = {}
    for rollout in rollouts:
        answer = rollout.facts.get("answer")
        if answer is not None:
            text = str(answer)
            name = text if len(text) <= _LONGEST else f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
            count, right = counts.get(name, (0, 0))
            counts[name] = (count + 1, right + is_right(rollout))
    return counts


def summarise(name: str, tallies: Sequence[Tally], ks: Sequence[int] | None = None) -> SetResult:
    """The result of the problems of one set; a k beyond the samples of a problem is an error."""
    ks = powers_of_two(min((tally.n for tally in tallies), default=0)) if ks is None else ks
    samples = sum(tally.n for tally in tallies)
    totals: dict[str, int] = {}
    for tally in tallies:
        for label, number in tally.classes.items():
            totals[label] = totals.get(label, 0) + number

    def share(total: int, of: int = samples) -> float:
        return total / of if of else float("nan")

    return SetResult(
        name=name,
        problems=len(tallies),
        samples=samples,
        accuracy=estimate(tally.correct / tally.n for tally in tallies),
        pass_at={k: estimate(pass_at(t.n, t.correct, k) for t in tallies) for k in ks},
        all_at={k: estimate(all_at(t.n, t.correct, k) for t in tallies) for k in ks},
        majority_at=_majorities(tallies, ks),
        mixed=share(sum(tally.mixed for tally in tallies), of=len(tallies)),
        truncated=share(sum(tally.truncated for tally in tallies)),
        failed=share(sum(tally.failed for tally in tallies)),
        length=share(sum(tally.tokens for tally in tallies)),
        classes={label: share(totals[label]) for label in sorted(totals)},
    )


def _majorities(tallies: Sequence[Tally], ks: Sequence[int]) -> dict[int, Estimate] | None:
    """maj@k by k; None where a problem's answers were not recorded."""
    votes = [(tally.answers, tally.n) for tally in tallies if tally.answers is not None]
    if len(votes) < len(tallies):
        return None
    return {k: estimate(plurality_at(answers, n, k) for answers, n in votes) for k in ks}


def _sample(
    sampler: Sampler, prompts: Sequence[Prompt], plan: Plan, *, sampling: Sampling, render: Render
) -> list[Group]:
    indices = range(plan.first, plan.first + plan.samples)
    requests = [
        Request(p.id, render(p.messages), tuple(random.key(plan.seed, "eval", p.id, index) for index in indices))
        for p in prompts
    ]
    groups = []
    for prompt, request, samples in zip(prompts, requests, sampler.sample(requests, sampling), strict=True):
        rollouts = tuple(
            Rollout(RolloutKey(prompt.id, index), (sample.turn,), sample.stop, sampling.max_tokens)
            for index, sample in zip(indices, samples, strict=True)
        )
        groups.append(Group(prompt.id, prompt, request.tokens, rollouts))
    return groups


def _speak(group: Group, decode: Decode, think: Decode) -> Group:
    """The group with the text and the thought of its rollouts."""
    spoken = [(rollout, rollout.turns[0].tokens) for rollout in group.rollouts]
    return group.with_(rollouts=tuple(r.with_(text=decode(ids), thought=think(ids)) for r, ids in spoken))


def _wait(work: Coroutine[Any, Any, Out]) -> Out:
    """The result of a coroutine; inside a running event loop it runs in a loop of its own, in another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, work).result()
