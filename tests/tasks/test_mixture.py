"""Several sources: shares of every stretch, exact places, own rewards, own epochs, own evaluation sets."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.errors import ConfigError, DataError
from covey.registry import build, dump
from covey.tasks import Mixture, from_rows
from covey.tasks.mixture import Deal, deal, take_turns
from covey.types import Rollout, RolloutKey, Stop

WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"id": f"{name}{i}", "prompt": f"{name} {i}?", "answer": str(i), "level": -i} for i in range(count)]


def mix(**fields: Any) -> Mixture:
    tasks = {
        "a": from_rows(rows("a", 6), held_share=0),
        "b": from_rows(rows("b", 4), held_share=0, order="level"),
    }
    return Mixture(tasks=tasks, **fields)


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(1, 300))
def test_every_beginning_holds_each_source_to_less_than_one(weights: list[int], length: int) -> None:
    dealt, total, counts = Deal(tuple(weights)), sum(weights), [0] * len(weights)
    for n in range(length):
        source, before = dealt.at(n)
        assert before == counts[source]
        counts[source] += 1
        assert all(abs(count * total - (n + 1) * weight) < total for count, weight in zip(counts, weights, strict=True))


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.integers(0, 10_000), st.integers(1, 200))
def test_every_stretch_holds_each_source_to_less_than_two(weights: list[int], start: int, length: int) -> None:
    dealt, total = Deal(tuple(weights)), sum(weights)
    found = Counter(dealt.at(n)[0] for n in range(start, start + length))
    assert all(abs(found[k] * total - length * weight) < 2 * total for k, weight in enumerate(weights))


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.lists(st.integers(0, 5000), min_size=1, max_size=20))
def test_places_do_not_depend_on_what_was_asked_before(weights: list[int], asked: list[int]) -> None:
    once = Deal(tuple(weights))
    assert [once.at(n) for n in asked] == [Deal(tuple(weights)).at(n) for n in asked]


def test_batches_that_divide_are_balanced_exactly() -> None:
    for start in range(0, 400, 8):
        found = Counter(deal((1.0, 1.0, 2.0)).at(n)[0] for n in range(start, start + 8))
        assert found == {0: 2, 1: 2, 2: 4}


def test_weights_are_the_decimals_that_were_written() -> None:
    assert deal((0.1, 0.2, 0.7)).weights == (1, 2, 7)
    assert deal((3.0, 1.5)).weights == (2, 1)
    assert deal((1e-3, 1.0)).weights == (1, 1000)
    assert deal((5.0,)).weights == (1,)


def test_far_positions_are_exact_and_fast() -> None:
    began = time.perf_counter()
    dealt = Deal((333_333, 666_667))
    source, before = dealt.at(1_000_000 * 7 + 123_456)
    assert dealt.at(10**15)[1] > 10**14
    assert time.perf_counter() - began < 20
    mine = sum(dealt.at(n)[0] == source for n in range(123_456))
    assert before == 7 * dealt.weights[source] + mine
    assert abs(Fraction(mine) - Fraction(123_456 * dealt.weights[source], 1_000_000)) < 1


def test_each_source_keeps_its_own_order_and_epochs() -> None:
    task = mix(weights={"a": 2})
    alone = dict(task.tasks)
    issued = [task.train(3, index) for index in range(60)]
    for name, part in alone.items():
        own = [prompt for prompt in issued if prompt.task == name]
        assert [prompt.id for prompt in own] == [f"{name}/{part.train(3, at).id}" for at in range(len(own))]  # type: ignore[attr-defined]
    assert Counter(prompt.task for prompt in issued) == {"a": 40, "b": 20}
    levels = [prompt.meta["level"] for prompt in issued if prompt.task == "b"][:4]
    assert levels == sorted(levels)
    visits: Counter[str] = Counter()
    for index, prompt in enumerate(issued):
        assert task.visit(index) == visits[prompt.id]
        visits[prompt.id] += 1


def test_sizes_and_sets() -> None:
    task = mix()
    assert task.size == 10
    assert task.held_out(0) == {}
    endless = Mixture(tasks={"sums": "arithmetic", "mine": from_rows(rows("m", 20), held_share=0.2)})
    assert endless.size is None
    sets = endless.held_out(0)
    own = endless.tasks["sums"].held_out(0)  # type: ignore[attr-defined]
    mine = endless.tasks["mine"].held_out(0)["held_out"]  # type: ignore[attr-defined]
    assert set(sets) == {"all", "mine.held_out", *(f"sums.{name}" for name in own)}
    assert [prompt.task for prompt in sets["all"]][:4] == ["sums", "mine", "sums", "mine"]
    main = endless.tasks["sums"].main_set  # type: ignore[attr-defined]
    assert len(sets["all"]) == len(own[main]) + len(mine)
    assert endless.main_set == "all"
    assert Mixture(tasks=endless.tasks, main="mine.held_out").main_set == "mine.held_out"
    with pytest.raises(ConfigError, match=r"task.main: there is no evaluation set 'mine'"):
        Mixture(tasks=endless.tasks, main="mine").held_out(0)


def test_sets_are_joined_in_turn() -> None:
    assert take_turns([[1, 2, 3], [4], [5, 6]]) == [1, 4, 5, 2, 6, 3]  # type: ignore[list-item]
    assert take_turns([]) == []


def test_each_prompt_is_scored_by_its_own_reward() -> None:
    task = Mixture(
        tasks={
            "right": from_rows(rows("r", 5), held_share=0),
            "long": from_rows(rows("l", 5), held_share=0, reward=lambda completion: float(len(completion))),
        }
    )
    for index in range(4):
        prompt = task.train(0, index)
        rollout = Rollout(RolloutKey(prompt.id, 0), (), Stop.END, 9, prompt.answer or "")
        (score,) = asyncio.run(task.reward.score(prompt, [rollout]))
        (value,) = score.values.values()
        assert value == (1.0 if prompt.task == "right" else float(len(prompt.answer or "")))
    assert next(iter(task.reward.weights)) == "correct"
    assert len(task.reward.weights) == 2


def test_a_mixture_is_plain_data() -> None:
    task = Mixture(tasks={"a": {"kind": "countdown", "levels": [2]}, "b": "arithmetic"}, weights={"b": 0.5})
    again = build("task", dump(task), "task")
    assert again == task
    assert again.train(1, 17) == task.train(1, 17)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"tasks": {"a": "countdwn"}}, "task.tasks.a: there is no task 'countdwn'. Did you mean 'countdown'?"),
        ({"tasks": {"a": "countdown"}, "weights": {"c": 1}}, "task.weights.c: there is no such source. Known: a."),
        ({"tasks": {"a b": "countdown"}}, "task.tasks.a b: 'a b' is no name. Use letters, digits, - and _."),
        ({"tasks": ["countdown"]}, "task.tasks: got ['countdown']. Give each source a name"),
        (
            {"tasks": {"a": {"kind": "mixture", "tasks": {"b": "countdown"}}}},
            "task.tasks.a: a mixture inside a mixture",
        ),
        ({"tasks": {"a": "countdown"}, "weights": {"a": 0}}, "weights.a: got 0"),
        ({"tasks": {}}, "tasks: got {}"),
    ],
)
def test_mistakes_are_one_line(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("task", {"kind": "mixture", **fields}, "task")
    assert line in str(caught.value)


def test_rewards_that_disagree_on_a_component_are_refused() -> None:
    task = Mixture(tasks={"a": "compose", "b": {"kind": "countdown", "scale": "ternary"}})
    with pytest.raises(ConfigError, match=r"a weights the component 'correct' 1, b 0"):
        _ = task.reward


def test_components_of_other_sources_add_nothing_and_are_no_failures() -> None:
    from covey.collect.grouped import measure
    from covey.collect.rows import rows as as_rows
    from covey.types import Group, Message, Prompt, Turn

    def group(name: str, *scored: tuple[dict[str, float], dict[str, str]]) -> Group:
        prompt = Prompt(name, (Message("user", "?"),), None, name)
        turn = Turn((5,), (-0.5,), versions=((1, 0),))
        rollouts = [
            Rollout(RolloutKey(name, at), (turn,), Stop.END, 9, rewards=values, failures=failures)
            for at, (values, failures) in enumerate(scored)
        ]
        return Group(name, prompt, (1, 2), tuple(rollouts))

    groups = [
        group("a", ({"correct": 1.0}, {}), ({"correct": 0.0}, {})),
        group("b", ({"size": 4.0, "form": 0.5}, {}), ({"size": 4.0}, {"form": "timeout"}), ({}, {"size": "crash"})),
    ]
    batch = as_rows(groups, {"correct": 1.0, "size": 1.0, "form": 1.0})
    assert batch.reward_names == ("correct", "size", "form")
    nan = float("nan")
    wanted = [[1, 0, 0], [0, 0, 0], [0, 4, 0.5], [0, 4, nan], [nan, nan, nan]]
    assert str(batch.reward.tolist()) == str([[float(value) for value in row] for row in wanted])
    found = measure(groups, {"correct": 1.0, "size": 1.0, "form": 1.0})
    numbers = {name: metric for name, metric in found.items() if name.startswith(("group/", "reward/"))}
    from covey.metrics import values

    shown = values(numbers)
    assert shown["group/mixed"] == 0.5
    assert shown["group/all_right"] == 0.5
    assert shown["reward/mean"] == pytest.approx((1 + 0 + 4 + 4) / 4)
    assert shown["reward/size"] == 4.0


def test_a_reward_of_the_run_is_for_all_sources(tmp_path: Path) -> None:
    from covey.config import resolve

    (tmp_path / "r.py").write_text("def size(completion, topic): return len(completion)\n")
    for name, column in (("a", "topic"), ("b", "theme")):
        lines = [json.dumps({"prompt": f"{i}?", column: "x"}) + "\n" for i in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    flags = [f"data=[{tmp_path}/a.jsonl, {tmp_path}/b.jsonl]", f"reward={tmp_path}/r.py:size"]
    with pytest.raises(DataError, match="the row has no column 'topic'"):
        resolve(flags).config.check_data()
    (tmp_path / "b.jsonl").write_text((tmp_path / "a.jsonl").read_text())
    resolve(flags).config.check_data()
    with pytest.raises(DataError, match="there is no column 'answer'"):
        resolve(flags[:1]).config.check_data()


def test_sources_by_name_and_their_options() -> None:
    from covey.config import resolve

    task: Any = resolve(["data=[x/gsm-8k.jsonl, b.csv, y/b.json, owner/set:small]"]).config.task
    assert list(task.tasks) == ["gsm-8k", "b", "b-2", "set-small"]
    flags = ["data={one: a.jsonl, two: {kind: countdown, levels: [2]}}", "task.weights.two=0.5"]
    task = resolve([*flags, "task.tasks.one.order=-level", "task.tasks.two.scale=ternary"]).config.task
    assert (task.tasks["one"].data, task.tasks["one"].order) == ("a.jsonl", "-level")
    assert (task.tasks["two"].levels, task.tasks["two"].scale, task.weights) == ((2,), "ternary", {"two": 0.5})
    assert resolve(values={"data": ["a.jsonl", "b.jsonl"]}).config.task.kind == "mixture"
    for flag, line in (
        (
            "task.tasks.one.ordr=level",
            "task.tasks.one.ordr: task 'rows' has no option 'ordr'. Did you mean 'task.tasks.one.order'?",
        ),
        ("task.tasks.three.order=level", "task.tasks.three.order: there is no source 'three'. Known: one, two."),
        ("task.tasks.one.order.x=level", "task.order has no parts"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve([*flags, flag])
        assert line in str(caught.value)
