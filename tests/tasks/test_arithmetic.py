"""Arithmetic: right answers, purity, and operands that training and evaluation never share."""

from __future__ import annotations

import asyncio

import pytest

from covey.tasks.arithmetic import Arithmetic
from covey.types import Message, Prompt, Rollout, RolloutKey, Stop


def score(task: Arithmetic, prompt: Prompt, text: str, stop: Stop = Stop.END) -> dict[str, float]:
    (result,) = asyncio.run(task.reward.score(prompt, [Rollout(RolloutKey("x", 0), (), stop, 16, text)]))
    return dict(result.values)


ALL = ("+", "-", "*")


@pytest.mark.parametrize("digits", [1, 2, 5])
def test_items_are_right_and_pure(digits: int) -> None:
    task = Arithmetic(operations=ALL, digits=digits)
    prompts = [task.train(0, index) for index in range(90)]
    assert prompts == [task.train(0, index) for index in reversed(range(90))][::-1]
    for index, prompt in enumerate(prompts):
        a, b = prompt.meta["operands"]
        sign = ALL[index % 3]
        text = prompt.messages[0].content
        assert text in (f"{a}{sign}{b}=", f"{b}{sign}{a}=")
        left, right = (int(part) for part in text[:-1].split(sign))
        assert int(prompt.answer or "") == {"+": left + right, "-": left - right, "*": left * right}[sign] >= 0
        assert max(a, b) < 10**digits
        assert prompt.id == f"arithmetic/tiny/train/{digits}/{index}"


@pytest.mark.parametrize("digits", [1, 2])
def test_no_operands_are_shared(digits: int) -> None:
    task = Arithmetic(operations=ALL, digits=digits)
    sets = task.held_out(0)
    assert list(sets) == ["all", "sum", "difference", "product"]
    assert task.main_set == "all"
    held = {tuple(sorted(p.meta["operands"])) for prompts in sets.values() for p in prompts}
    shown = {tuple(sorted(task.train(0, i).meta["operands"])) for i in range(2000)}
    shown |= {tuple(sorted(task.stage1(0, i)[0].meta["operands"])) for i in range(2000)}
    assert not held & shown
    assert all(len({p.messages for p in prompts}) == len(prompts) >= 6 for prompts in sets.values())
    assert len({p.id for prompts in sets.values() for p in prompts}) == sum(map(len, sets.values()))
    if digits == 2:
        assert set(map(len, sets.values())) == {100}


@pytest.mark.parametrize(
    ("text", "stop", "values"),
    [
        ("19.", Stop.END, {"correct": 1.0, "format": 0.0}),
        ("19", Stop.END, {"correct": 0.0, "format": -1.0}),
        ("19..", Stop.END, {"correct": 0.0, "format": -1.0}),
        (".", Stop.END, {"correct": 0.0, "format": -1.0}),
        ("18.", Stop.END, {"correct": 0.0, "format": 0.0}),
        ("19.", Stop.LENGTH, {"correct": 0.0, "format": -1.0}),
    ],
)
def test_scores(text: str, stop: Stop, values: dict[str, float]) -> None:
    prompt = Prompt("a", (Message("user", "12+7="),), "19", "arithmetic", {})
    assert score(Arithmetic(), prompt, text, stop) == values


def test_stage1_and_the_chat_variant() -> None:
    for task in (Arithmetic(), Arithmetic(variant="chat")):
        prompt, response = task.stage1(1, 4)
        assert score(task, prompt, response)["correct"] == 1
    assert "What is" in prompt.messages[0].content
    assert score(task, prompt, f"That makes {prompt.answer} in all.")["correct"] == 1
