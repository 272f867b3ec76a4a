"""Countdown: the exact scorer against golden answers and an independent evaluator, and the generator's promises."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import operator
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.tasks.countdown import Countdown, CountdownScorer, draw_puzzle, is_held_puzzle
from covey.tasks.expressions import MalformedError, evaluate_expression
from covey.types import Message, Prompt, Rollout, RolloutKey, Score, Stop


def score(scorer: CountdownScorer, text: str, numbers: list[int], target: int, stop: Stop = Stop.END) -> Score:
    prompt = Prompt("c/0", (Message("user", "?"),), None, "countdown", {"numbers": numbers, "target": target})
    rollout = Rollout(RolloutKey("c/0", 0), (), stop, 64, text)
    return asyncio.run(scorer.score(prompt, [rollout]))[0]


N = [3, 7, 25, 50]
GOLDEN: list[tuple[str, list[int], int, str]] = [
    ("(50+25)+7-3", N, 79, "correct"),
    ("50+25+7-3 = 79", N, 79, "correct"),
    (" 50 + 25+7 -3\n", N, 79, "correct"),
    ("25*3+7-3", N, 79, "numbers"),
    ("79", N, 79, "numbers"),
    ("3*25", N, 75, "correct"),
    ("7/3*3", [7, 3, 3], 7, "correct"),
    ("7/3", [7, 3], 2, "value"),
    ("50/(3-3)", [50, 3, 3], 0, "division"),
    ("50/(3-3)", [50, 3], 0, "division"),
    ("-3+82", [3, 82], 79, "malformed"),
    ("2**3", [2, 3], 8, "malformed"),
    ('__import__("os")', N, 79, "malformed"),
    ("50+25+7-3 = 80", N, 79, "malformed"),
    ("50+25+7-3 = 79 = 79", N, 79, "malformed"),
    ("79 = 50+25+7-3", N, 79, "malformed"),
    ("25×3", N, 75, "correct"),
    ("50÷25 · 7 − 3", N, 11, "correct"),
    ("3(7)", N, 21, "malformed"),
    ("2 5*3", N, 75, "malformed"),
    ("7.0+3", N, 10, "malformed"),
    ("٧+3", N, 10, "malformed"),
    ("(7+3", N, 10, "malformed"),
    ("7+3)", N, 10, "malformed"),
    ("7+", N, 10, "malformed"),
    ("()", N, 10, "malformed"),
    ("", N, 10, "malformed"),
    ("   ", N, 10, "malformed"),
    ("(" * 50 + "7" + ")" * 50 + "+3", N, 10, "correct"),
    ("(" * 51 + "7" + ")" * 51 + "+3", N, 10, "malformed"),
    ("7+3" + " " * 300, N, 10, "correct"),
    ("7" + " " * 198 + "+3", N, 10, "malformed"),
    ("50/(3-3)+", N, 0, "malformed"),
    ("07+3", N, 10, "correct"),
]


@pytest.mark.parametrize(("text", "numbers", "target", "name"), GOLDEN)
def test_golden_answers(text: str, numbers: list[int], target: int, name: str) -> None:
    result = score(CountdownScorer(), f"<think>hm</think> <answer>{text}</answer>", numbers, target)
    assert result.facts["class"] == name
    assert result.values == {"correct": float(name == "correct"), "format": -1.0 if name == "malformed" else 0.0}
    assert result.detail


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("79", "malformed"),
        ("50+25+7-3", "malformed"),
        ("<answer>1</answer> no, <answer>50+25+7-3</answer> yes", "correct"),
        ("<answer>50+25\n+7-3</answer>", "correct"),
        ("<answer>50+25+7-3</answer> <answer>1", "correct"),
        ("<answer>50+25+7-3</answer></answer>", "correct"),
        ("<answer>50+25+7-3", "malformed"),
        ("</answer>50+25+7-3<answer>", "malformed"),
        ("<answer>50+25+7-3</answer><answer></answer>", "malformed"),
    ],
)
def test_the_last_tagged_answer_counts(text: str, name: str) -> None:
    assert score(CountdownScorer(), text, N, 79).facts["class"] == name


def test_exact_use_of_the_numbers() -> None:
    subset, exact = CountdownScorer(), CountdownScorer(numbers="exact")
    for scorer, text, name in [
        (subset, "3*25", "correct"),
        (exact, "3*25", "numbers"),
        (exact, "3*25+7-7", "numbers"),
        (exact, "(3*25)*(50/50)", "numbers"),
    ]:
        assert score(scorer, f"<answer>{text}</answer>", N, 75).facts["class"] == name
    assert score(exact, "<answer>50+25+7-3</answer>", N, 79).facts["class"] == "correct"
    assert score(exact, "<answer>7-7</answer>", [7, 7], 0).facts["class"] == "correct"


@pytest.mark.parametrize(
    ("text", "ternary", "gym"), [("50+25+7-3", 1.0, 1.0), ("50+25", 0.0, 0.05), ("50+", -1.0, 0.01)]
)
def test_other_scales(text: str, ternary: float, gym: float) -> None:
    tagged, correct = f"<answer>{text}</answer>", float(ternary == 1)
    assert score(CountdownScorer(scale="ternary"), tagged, N, 79).values == {"score": ternary, "correct": correct}
    assert score(CountdownScorer(scale="reasoning-gym"), tagged, N, 79).values == {"score": gym, "correct": correct}
    assert set(CountdownScorer(scale="ternary").weights) == {"score", "correct"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("50+25+7-3.", "correct"),
        ("50+25+7-3=79.", "correct"),
        ("50+25+7-3", "malformed"),
        ("50+25+7-3..", "malformed"),
        ("<answer>50+25+7-3</answer>.", "malformed"),
        (".", "malformed"),
    ],
)
def test_bare_answers_are_closed_by_a_full_stop(text: str, name: str) -> None:
    assert score(CountdownScorer(form="bare"), text, N, 79).facts["class"] == name


def test_truncated_responses_are_not_correct() -> None:
    result = score(CountdownScorer(), "<answer>50+25+7-3</answer>", N, 79, Stop.LENGTH)
    assert (result.facts["class"], result.values["correct"], result.values["format"]) == ("truncated", 0.0, -1.0)


OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def walk(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    assert isinstance(node, ast.BinOp)
    return OPERATORS[type(node.op)](walk(node.left), walk(node.right))


@st.composite
def expressions(draw: st.DrawFn, depth: int = 4) -> str:
    if depth == 0 or draw(st.booleans()):
        return str(draw(st.integers(0, 99)))
    left, right = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    text = f"{left}{draw(st.sampled_from(['+', ' - ', '*', '/']))}{right}"
    return f"({text})" if draw(st.booleans()) else text


@given(expressions())
def test_values_agree_with_pythons_own_parser(text: str) -> None:
    if len(text) > 200:
        return
    try:
        expected = walk(ast.parse(text.strip(), mode="eval").body)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            evaluate_expression(text)
        return
    found = evaluate_expression(text)
    assert found.value == expected
    constants = [node.value for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Constant)]
    assert Counter(found.numbers) == Counter(constants)


@settings(max_examples=300)
@given(st.one_of(st.text("0123456789+-*/(). =\n", max_size=60), st.text(max_size=250)))
def test_the_parser_survives_any_text(text: str) -> None:
    with contextlib.suppress(MalformedError, ZeroDivisionError):
        evaluate_expression(text)
    for form in ("bare", "tags"):
        score(CountdownScorer(form=form), f"<answer>{text}</answer>", N, 79)


@pytest.mark.parametrize(("variant", "levels"), [("tiny", (2, 3)), ("chat", (2, 3, 4, 5))])
def test_puzzles_are_solvable_and_in_range(variant: str, levels: tuple[int, ...]) -> None:
    task = Countdown(variant=variant, levels=levels, numbers="exact")
    top, top_target = {"tiny": (20, 99), "chat": (100, 999)}[variant]
    for index in range(200):
        prompt = task.train(3, index)
        level, numbers, target = (prompt.meta[name] for name in ("level", "numbers", "target"))
        assert level == len(numbers) == levels[index % len(levels)]
        assert all(1 <= number <= top for number in numbers)
        assert 1 <= target <= top_target
        assert not is_held_puzzle(numbers)
        result = score(CountdownScorer(numbers="exact"), f"<answer>{prompt.answer}</answer>", numbers, target)
        assert result.facts["class"] == "correct", prompt


def test_tiny_prompts_and_responses() -> None:
    prompt, response = Countdown(levels=(3,)).stage1(0, 5)
    numbers = " ".join(map(str, prompt.meta["numbers"]))
    assert prompt.messages == (Message("user", f"{numbers}>{prompt.meta['target']}="),)
    assert response == f"{prompt.answer}."
    scorer = Countdown().reward
    rollouts = [Rollout(RolloutKey("x", 0), (), Stop.END, 48, response)]
    assert asyncio.run(scorer.score(prompt, rollouts))[0].values["correct"] == 1


def test_stage1_responses_of_the_chat_variant_are_right() -> None:
    task = Countdown(variant="chat")
    prompt, response = task.stage1(0, 1)
    assert "<answer>" in prompt.messages[0].content
    rollouts = [Rollout(RolloutKey("x", 0), (), Stop.END, 48, response)]
    assert asyncio.run(task.reward.score(prompt, rollouts))[0].values["correct"] == 1


def test_items_are_pure() -> None:
    task = Countdown()
    forward = [task.train(5, index) for index in range(30)]
    assert forward == [Countdown().train(5, index) for index in reversed(range(30))][::-1]
    assert forward != [task.train(6, index) for index in range(30)]
    assert len({prompt.id for prompt in forward}) == 30


def test_held_out_numbers_never_occur_in_training() -> None:
    task = Countdown()
    sets = task.held_out(0)
    assert {name: len(prompts) for name, prompts in sets.items()} == {"L2": 100, "L3": 100}
    assert task.main_set in sets
    held = {tuple(sorted(p.meta["numbers"])) for prompts in sets.values() for p in prompts}
    shown = {tuple(sorted(task.train(0, i).meta["numbers"])) for i in range(500)}
    shown |= {tuple(sorted(task.stage1(0, i)[0].meta["numbers"])) for i in range(500)}
    assert not held & shown
    assert all(is_held_puzzle(numbers) for numbers in held)
    for prompts in sets.values():
        assert len({p.messages for p in prompts}) == len(prompts)


def test_six_numbers_are_possible() -> None:
    assert len(draw_puzzle(0, "train", 6, 0).numbers) == 6
