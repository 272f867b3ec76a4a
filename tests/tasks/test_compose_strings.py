"""The string variants: golden outputs of the functions, the every-call rule, the paper's generator, and the parser."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.errors import ConfigError
from covey.random import Draws
from covey.tasks import Compose
from covey.tasks.compose import paper, strings
from covey.tasks.compose.answers import TAIL, StringScorer, read_output
from covey.tasks.compose.functions import FUNCTIONS, call, read_definition
from covey.types import Message, Prompt, Rollout, RolloutKey, Stop

GOLDEN: list[tuple[int, Any, str, str]] = [
    (0, None, "banana", "M7 noo"),
    (1, 3, "bananabananabanana", "Moon 7Moon 7Moon 7"),
    (2, None, "bnn", "Mn 7"),
    (3, None, "aaabnn", " 7Mnoo"),
    (4, None, "banana", "7 Moon"),
    (5, "qu", "qubanana", "quMoon 7"),
    (6, "zk", "bananazk", "Moon 7zk"),
    (7, "xyz", "bxaynzana", "Mxoyozn 7"),
    (8, 2, "nanaba", "on 7Mo"),
    (9, None, "bananaananab", "Moon 77 nooM"),
    (10, None, "bAnAnA", "mOoN 7"),
    (11, 3, "edqdqd", "Prrq 7"),
    (12, None, "b1n1n1", "M44n 7"),
    (13, "-", "b-a-n-a-n-a", "M-o-o-n- -7"),
    (14, None, "bbaannaannaa", "MMoooonn  77"),
    (15, None, "«b»«a»«n»«a»«n»«a»", "«M»«o»«o»«n»« »«7»"),
    (16, None, "banana", "Mon 7"),
    (17, None, "ananab", "7 nooM"),
    (18, 2, "bananabanana", "Moon 7Moon 7"),
    (19, 2, "nanaba", "on 7Mo"),
    (20, "xyz", "bxaynzana", "Mxoyozn 7"),
    (21, None, "banana", "Moon"),
    (22, None, "banana", "Moon 7"),
    (23, 2, "banana1", "Moon 7"),
    (24, 3, "bananaananab", "Moon 77 nooM"),
]


@pytest.mark.parametrize(("number", "parameter", "banana", "moon"), GOLDEN)
def test_functions_give_the_golden_outputs(number: int, parameter: Any, banana: str, moon: str) -> None:
    assert call(number, "banana", parameter) == banana
    assert call(number, "Moon 7", parameter) == moon


def test_empty_inputs() -> None:
    special = {5: "qu", 6: "zk", 7: "xyz", 20: "xyz", 23: "1"}
    for number, parameter, _, _ in GOLDEN:
        assert call(number, "", parameter) == special.get(number, "")


words = st.text("abcXYZ019 «»-", max_size=40)


@given(words, words, st.integers(1, 4))
def test_synonyms(s: str, t: str, n: int) -> None:
    assert call(18, s, n) == call(1, s, n)
    assert call(19, s, n) == call(8, s, n)
    assert call(20, s, t) == call(7, s, t)
    assert call(24, s, n) == (s if s == s[::-1] else call(9, s))
    assert call(17, s) == s[::-1]
    assert sorted(call(0, s)) == sorted(s)
    assert call(3, s) == call(3, call(0, s))


def test_the_shuffle_steps_by_the_documented_number() -> None:
    for length in range(1, 16):
        step = 5 if length in (3, 6, 9, 12) else 7 if length == 15 else 3
        text = "abcdefghijklmno"[:length]
        assert call(0, text) == "".join(text[i * step % length] for i in range(length))


def test_definitions_stand_on_their_own() -> None:
    for number in range(25):
        text = read_definition(number)
        assert text.startswith(f"def func_{number}(")
        space: dict[str, Any] = {}
        exec(text, space)
        parameter, banana = GOLDEN[number][1:3]
        function: Callable[..., str] = space[f"func_{number}"]
        assert (function("banana") if parameter is None else function("banana", parameter)) == banana
    assert len(FUNCTIONS) == 25


def test_sides() -> None:
    assert strings.SIDES["all"] == (*range(18), 21, 22, 23)
    assert len(strings.TRAIN_SIDE) == 13
    assert not set(strings.TRAIN_SIDE) & set(strings.HELD_SIDE)
    assert sorted(paper.TRAIN_SIDE + paper.HELD_SIDE) == list(range(25))


@pytest.mark.parametrize(("side", "level"), [("train", 1), ("train", 3), ("held_out", 2), ("held_out", 4), ("all", 2)])
def test_every_call_of_an_item_matters(side: str, level: int) -> None:
    for index in range(20):
        item = strings.draw_item(1, "train", level, index, side=side, test=False)
        assert item == strings.draw_item(1, "train", level, index, side=side, test=False)
        assert len(item.functions) == level
        assert set(item.functions) <= set(strings.SIDES[side])
        assert not strings.is_test_input(item.input)
        assert 5 <= len(item.input) <= 10
        assert item.input == " ".join(item.input.split())
        space = {f"func_{number}": FUNCTIONS[number] for number in range(25)}
        assert eval(item.code, {**space, "x": item.input}) == item.answer
        assert len(item.answer) <= 64
        assert strings.mark(item.answer) not in item.shortcuts


def test_make_item_against_all_subsets() -> None:
    for index in range(300):
        draws = Draws(index, "oracle")
        functions = [draws.choice(strings.SIDES["all"]) for _ in range(3)]
        parameters = [strings.draw_parameter(number, draws) for number in functions]
        value = strings.draw_input(draws, test=False)

        def run(
            kept: tuple[int, ...], f: list[int] = functions, p: list[Any] = parameters, x: str = value
        ) -> list[str]:
            values = [x]
            for place in sorted(kept, reverse=True):
                values.append(call(f[place], values[-1], p[place]))
            return values

        whole = run((0, 1, 2))
        slow = {run(kept)[-1] for size in range(3) for kept in combinations(range(3), size)}
        item = strings.make_item(functions, parameters, value)
        if whole[-1] in slow or max(map(len, whole[1:])) > 64:
            assert item is None
        else:
            assert item is not None
            assert item.shortcuts == tuple(sorted(map(strings.mark, slow)))


@pytest.mark.parametrize(
    ("side", "level", "low", "high"),
    [("train", 1, 0.82, 0.92), ("train", 2, 0.65, 0.77), ("held_out", 1, 0.73, 0.85), ("held_out", 2, 0.49, 0.63)],
)
def test_shares_of_accepted_draws(side: str, level: int, low: float, high: float) -> None:
    accepted = 0
    for index in range(600):
        draws = Draws(index, "accepted", side, level)
        functions = [draws.choice(strings.SIDES[side]) for _ in range(level)]
        parameters = [strings.draw_parameter(number, draws) for number in functions]
        accepted += strings.make_item(functions, parameters, strings.draw_input(draws, test=False)) is not None
    assert low < accepted / 600 < high


def test_string_prompts() -> None:
    task = Compose(variant="strings", levels=(2,))
    prompt = task.train(0, 7)
    assert prompt == Compose(variant="strings", levels=(2,)).train(0, 7)
    text = prompt.messages[0].content
    assert text.startswith("def main_solution(x): return func_")
    assert f"main_solution({json.dumps(prompt.meta['input'])})" in text
    assert '{"output": ' in text
    assert prompt.id == "compose/strings/train/2/7"
    assert prompt.meta["n_calls"] == prompt.meta["level"] == 2
    assert prompt.meta["out_len"] == len(prompt.answer or "")
    shown = Compose(variant="strings", levels=(2,), definitions=True).train(0, 7).messages[0].content
    numbers = sorted({int(name.removeprefix("func_")) for name in prompt.meta["functions"]})
    places = [shown.index(f"def func_{number}(") for number in numbers]
    assert places == sorted(places)
    assert shown.endswith(text)
    json.dumps(dict(prompt.meta))


def test_string_evaluation_sets() -> None:
    sets = Compose(variant="strings").held_out(0)
    assert list(sets) == [f"{side}L{n}" for side in ("", "held_") for n in (1, 2, 3, 4, 6)]
    train = {Compose(variant="strings").train(0, index).messages for index in range(300)}
    for name, prompts in sets.items():
        assert len({p.messages for p in prompts}) == len(prompts) == 100
        assert all(strings.is_test_input(p.meta["input"]) for p in prompts)
        assert not {p.messages for p in prompts} & train
        side = strings.HELD_SIDE if name.startswith("held") else strings.TRAIN_SIDE
        assert {f for p in prompts for f in p.meta["functions"]} <= {f"func_{number}" for number in side}


def fingerprint(file: paper.File, count: int) -> str:
    items = (file.item(index) for index in range(count))
    text = "\n".join(f"{item.code} {item.input} {item.answer}" for item in items)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_papers_files_of_seed_42() -> None:
    """These equal the published generator's items one by one (compared up to renaming of the functions)."""
    train = paper.File(42, "train", (2,), 50_000)
    assert [train.item(i).code for i in range(3)] == [
        "func_4((x + 'pac'))",
        "func_3(func_9(x))",
        "func_22(func_23(x, 3))",
    ]
    assert [train.item(i).input for i in range(3)] == ["oss", "cjjigbld", "uzwwjl"]
    assert fingerprint(train, 2000) == "8b47162f1a80a928"
    assert fingerprint(paper.File(42, "held_out", tuple(range(1, 9)), 256), 2048) == "3d77f267948bac5b"


def test_shares_in_the_papers_test_file() -> None:
    file = paper.open_file(42, "held_out", paper.TEST_LEVELS, 256)
    items = [file.item(index) for index in range(2048)]
    assert len({item.code for item in items}) == 2048
    first, last = items[:256], items[-256:]
    assert sum(item.depends_on_x for item in first) / 256 == pytest.approx(0.324, abs=0.001)
    assert sum(len(item.functions) for item in first) / 256 == pytest.approx(0.87, abs=0.01)
    assert sum(len(item.functions) for item in last) / 256 == pytest.approx(14.5, abs=0.5)


def test_paper_items_are_random_access_and_side_by_side() -> None:
    task = Compose(variant="strings-paper", levels=(1, 2))
    late = task.train(42, 401)
    assert late.id == "compose/strings-paper/train/2/200"
    assert paper.File(42, "train", (2,), 50_000).item(200).answer == late.answer
    assert [task.train(42, i) for i in range(6)] == [task.train(42, i) for i in reversed(range(6))][::-1]
    assert task.size == 100_000
    assert task.train(42, 100_000 + 6) == task.train(42, 6)
    sets = task.held_out(42)
    assert {name: len(prompts) for name, prompts in sets.items()} == {f"held_L{n}": 256 for n in range(1, 9)}
    assert task.main_set in sets


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ('So {"output": "abc"}', "abc"),
        ('```json\n{"output": "abc"}\n```', "abc"),
        ('{"output": "a"} then {"output": "b"}', "b"),
        ('{"output": "a"} then {"result": "b"}', "a"),
        ('{"output": "a{\\"output\\": \\"b\\"}"}', 'a{"output": "b"}'),
        ('{"x": {"output": "b"}}', None),
        ('{"output": 3}', None),
        ("{output: 'a'}", None),
        ('{"output": "a"', None),
        ('{ {"output": "a"}', "a"),
        ('{"output": "«\\n\\""}', '«\n"'),
        ('{"output": "a"}' + " " * TAIL, None),
        ("", None),
        ('{"a":' * 5000, None),
        ('{"a": ' + "9" * 5000 + '} {"output": "a"}', "a"),
    ],
)
def test_the_answer_in_a_text(text: str, output: str | None) -> None:
    assert read_output(text) == output


@settings(max_examples=300)
@given(st.text(max_size=200) | st.text('{}[]":,\\output ', max_size=200), st.text(max_size=20))
def test_any_text_before_an_answer_is_survived(text: str, answer: str) -> None:
    read_output(text)
    assert read_output(text.replace("{", "") + json.dumps({"output": answer})) == answer


def score(scorer: StringScorer, text: str, stop: Stop = Stop.END) -> tuple[dict[str, float], str]:
    prompt = Prompt("p", (Message("user", "?"),), "abc", "compose", {"shortcuts": [strings.mark("ab")]})
    (result,) = asyncio.run(scorer.score(prompt, [Rollout(RolloutKey("p", 0), (), stop, 9, text)]))
    assert set(result.values) == set(scorer.weights)
    return dict(result.values), result.facts["class"]


@pytest.mark.parametrize(
    ("text", "stop", "binary", "ternary", "name"),
    [
        ('{"output": "abc"}', Stop.END, (1, 0), 1, "correct"),
        ('{"output": "abc"}', Stop.LENGTH, (0, -1), -1, "truncated"),
        ('{"output": "ab"}', Stop.END, (0, 0), 0, "ignored"),
        ('{"output": "xyz"}', Stop.END, (0, 0), 0, "other"),
        ("abc", Stop.END, (0, -1), -1, "malformed"),
    ],
)
def test_scores(text: str, stop: Stop, binary: tuple[int, int], ternary: int, name: str) -> None:
    assert score(StringScorer(), text, stop) == ({"correct": binary[0], "format": binary[1]}, name)
    assert score(StringScorer(ternary=True), text, stop) == ({"score": ternary, "correct": binary[0]}, name)


def test_what_a_variant_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no definitions"):
        Compose(definitions=True)
    with pytest.raises(ConfigError, match="no written responses"):
        Compose(variant="strings").stage1(0, 0)
