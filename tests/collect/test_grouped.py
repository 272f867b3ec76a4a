"""Collecting groups: order, noise keys, refill, and what is logged of groups that were turned away."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

import pytest

from covey.collect.grouped import GroupedCollector, Speech, measure
from covey.collect.prompts import Prompts
from covey.collect.rows import rows
from covey.metrics import values
from covey.random import key
from covey.stages.admit import Informative
from covey.types import Message, Prompt, Request, Rollout, Sample, Sampling, Score, Stop, Turn


class Counting:
    """A task of numbered prompts; a prompt is informative where `mixed(position)` says so."""

    size: int | None = None
    main_set = "all"

    def __init__(self, size: int | None = None) -> None:
        self.size, self.reward = size, Parity()

    def train(self, seed: int, index: int) -> Prompt:
        number = index if self.size is None else index % self.size
        return Prompt(f"n/{number}", (Message("user", str(number)),), None, "counting")

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        return {}


class Parity:
    """Right for even samples of prompts whose number is divisible by 3; wrong for all samples of the others."""

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> Sequence[Score]:
        mixed = int(prompt.messages[0].content) % 3 == 0
        return [Score({"correct": float(mixed and r.key.index % 2 == 0)}) for r in rollouts]


class Recorder:
    """A sampler that answers with one token and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        self.requests += requests
        return [[Sample(Turn((5,), (-1.0,)), Stop.END) for _ in request.noise_keys] for request in requests]


SPEECH = Speech(lambda messages: tuple(int(c) for c in messages[0].content), lambda tokens: str(list(tokens)))


def collector(task: Counting, **options: object) -> tuple[GroupedCollector, Recorder]:
    recorder = Recorder()
    prompts = Prompts(task, seed=7)
    return GroupedCollector(
        prompts,
        recorder,
        task.reward,
        SPEECH,
        samples=4,
        sampling=Sampling(max_tokens=3),
        **options,  # type: ignore[arg-type]
    ), recorder


def test_groups_come_in_prompt_order_with_scored_rollouts() -> None:
    made, recorder = collector(Counting())
    groups, metrics = asyncio.run(made.take(5))
    assert [group.id for group in groups] == [f"n/{i}#0" for i in range(5)]
    assert [r.rewards["correct"] for r in groups[3].rollouts] == [1.0, 0.0, 1.0, 0.0]
    assert recorder.requests[2].noise_keys == tuple(key(7, "sample", "n/2", 0, i) for i in range(4))
    assert values(metrics)["reward/mean"] == pytest.approx(4 / 20)
    assert values(metrics)["group/mixed"] == pytest.approx(2 / 5)


def test_noise_keys_do_not_depend_on_the_step() -> None:
    one, first = collector(Counting())
    two, second = collector(Counting())
    asyncio.run(one.take(6))
    asyncio.run(two.take(2))
    asyncio.run(two.take(4))
    assert first.requests == second.requests


def test_a_second_visit_of_a_prompt_has_noise_of_its_own() -> None:
    made, recorder = collector(Counting(size=3))
    groups, _ = asyncio.run(made.take(6))
    assert [group.id for group in groups] == ["n/0#0", "n/1#0", "n/2#0", "n/0#1", "n/1#1", "n/2#1"]
    assert recorder.requests[0].noise_keys != recorder.requests[3].noise_keys


def test_uninformative_groups_are_refilled_by_fresh_prompts() -> None:
    made, _ = collector(Counting(), admit=(Informative(max_waves=10),))
    groups, metrics = asyncio.run(made.take(4))
    assert [group.prompt.id for group in groups] == ["n/0", "n/3", "n/6", "n/9"]
    found = values(metrics)
    assert found["admit/missing"] == 0
    assert found["admit/kept"] == pytest.approx(4 / made.prompts.cursor)
    # every sampled rollout is in the mean, those of dropped groups too
    assert found["reward/mean"] == pytest.approx(4 * 2 / (made.prompts.cursor * 4))
    assert set(made.dropped) == {f"n/{i}#0" for i in range(made.prompts.cursor)} - {group.id for group in groups}


def test_the_step_goes_on_with_fewer_groups_when_the_waves_are_used_up() -> None:
    made, _ = collector(Counting(), admit=(Informative(max_waves=1),))
    groups, metrics = asyncio.run(made.take(6))
    assert [group.prompt.id for group in groups] == ["n/0", "n/3"]
    assert values(metrics)["admit/missing"] == 4


def test_oversampling_takes_the_first_groups_in_prompt_order() -> None:
    made, _ = collector(Counting(), admit=(Informative(max_waves=10, oversample=6.0),))
    groups, metrics = asyncio.run(made.take(2))
    assert [group.prompt.id for group in groups] == ["n/0", "n/3"]
    assert values(metrics)["admit/waves"] == 1
    assert "n/6#0" in made.dropped


def test_when_nothing_is_admitted_the_last_wave_is_used() -> None:
    class Never(Counting):
        def train(self, seed: int, index: int) -> Prompt:
            return super().train(seed, 3 * index + 1)

    for oversample, last in ((1.0, ["n/10#0", "n/13#0", "n/16#0"]), (2.0, ["n/19#0", "n/22#0", "n/25#0"])):
        made, _ = collector(Never(), admit=(Informative(max_waves=2, oversample=oversample),))
        groups, metrics = asyncio.run(made.take(3))
        assert [group.id for group in groups] == last
        assert values(metrics)["admit/kept"] == 0
        # a prompt is either trained on or dropped
        everyone = [f"n/{3 * at + 1}#0" for at in range(made.prompts.cursor)]
        assert sorted([*made.dropped, *last]) == sorted(everyone)


def test_what_a_sampler_could_not_measure_is_counted() -> None:
    groups, _ = asyncio.run(collector(Counting())[0].take(1))
    turn = Turn((5, 6, 7), (-1.0, -math.inf, math.nan))
    broken = groups[0].with_(rollouts=(groups[0].rollouts[0].with_(turns=(turn,)),))
    found = values(measure([broken], {}))
    assert (found["logp/nonfinite"], found["entropy/sampled"]) == (2.0, 1.0)
    outside = Turn((5, 6, 7), (-1.0, -1.0, math.nan), policy_logp=(-1.0, -math.inf, -1.0))  # left out as well
    broken = groups[0].with_(rollouts=(groups[0].rollouts[0].with_(turns=(outside,)),))
    found = values(measure([broken], {}))
    assert (found["logp/nonfinite"], found["entropy/sampled"]) == (2.0, 1.0)
    assert int(rows([broken], {}).mask.sum()) == 1
