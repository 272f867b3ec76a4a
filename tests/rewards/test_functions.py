"""Rewards: comparisons, numbers, and a user's own function with everything it may get wrong."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covey.errors import ConfigError, DataError, MissingInputError
from covey.registry import build, dump
from covey.rewards import ExactMatch, FunctionReward, NumberMatch, build_reward, load_function, wrap_function
from covey.rewards.match import last_number
from covey.types import Message, Prompt, Rollout, RolloutKey, Score, Stop


def prompt(answer: str | None = "4", **meta: Any) -> Prompt:
    return Prompt("p/0", (Message("system", "Be brief."), Message("user", "2+2?")), answer, "rows", meta)


def rollout(text: str, index: int = 0) -> Rollout:
    return Rollout(RolloutKey("p/0", index), (), Stop.END, 16, text)


def score(reward: Any, text: str, **fields: Any) -> Score:
    (result,) = asyncio.run(reward.score(prompt(**fields), [rollout(text)]))
    return result


@pytest.mark.parametrize(("text", "right"), [("4", 1.0), (" 4\n", 1.0), ("4.", 0.0), ("", 0.0), ("44", 0.0)])
def test_exact_match(text: str, right: float) -> None:
    assert score(ExactMatch(), text).values == {"correct": right}


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("2+2 is 4", "4", 1.0),
        ("it is 4.", "4", 1.0),
        ("4.0", "4", 1.0),
        ("4 or 5", "4", 0.0),
        ("no idea", "4", 0.0),
        ("1,250 coins", "1250", 1.0),
        ("10-3", "3", 1.0),
        ("x = -3", "-3", 1.0),
        ("(2)-3", "3", 1.0),
        ("so .5", "0.5", 1.0),
        ("0.1", "#### 0.10", 1.0),
        ("9" * 5000, "4", 0.0),
    ],
)
def test_number(text: str, answer: str, right: float) -> None:
    assert score(NumberMatch(), text, answer=answer).values == {"correct": right}


def test_what_cannot_be_compared_is_a_failure_and_not_a_zero() -> None:
    assert score(ExactMatch(), "4", answer=None).failures == {"correct": "prompt p/0 has no answer"}
    result = score(NumberMatch(), "4", answer="four")
    assert (result.values, "holds no number" in result.failures["correct"]) == ({}, True)


@given(st.integers(-(10**9), 10**9), st.text("abc .,=", max_size=10))
def test_last_number_reads_what_str_writes(number: int, before: str) -> None:
    assert last_number(f"{before} {number}") == number


@given(st.text(max_size=200))
def test_last_number_never_raises(text: str) -> None:
    last_number(text)


async def slow_length(completion: str) -> float:
    await asyncio.sleep(0)
    return len(completion) / 10


def by_column(completion: str, source: str, scale: float = 2.0) -> float:
    return scale * (source == "web")


def everything(completion: str, **columns: Any) -> float:
    return float(set(columns) >= {"answer", "prompt", "source"})


def only_columns(**columns: Any) -> list[float]:
    return [float({"completions", "prompts", "source"} <= set(columns)) for _ in columns["completions"]]


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (lambda completion, answer: completion == answer, 1.0),
        (lambda answer, completion: 3, 3.0),
        (lambda prompt: prompt == "2+2?", 1.0),
        (lambda completion: np.float32(0.5), 0.5),
        (lambda completion: torch.tensor(2.0), 2.0),
        (slow_length, 0.1),
        (by_column, 2.0),
        (everything, 1.0),
        (only_columns, 1.0),
    ],
)
def test_functions_are_called_by_the_names_of_their_parameters(function: Callable[..., Any], value: float) -> None:
    assert list(score(wrap_function(function), "4", source="web").values.values()) == [value]


def fail(completion: str) -> float:
    return 1 / 0


def leave(completion: str) -> float:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda completion: None, "returned None"),
        (lambda completion: math.nan, "returned NaN"),
        (lambda completion: math.inf, "returned inf"),
        (lambda completion: torch.tensor(math.nan), "returned NaN"),
        (lambda completion: "0.5", "returned '0.5' (str), not a number"),
        (lambda completion: [1.0], "returned [1.0] (list), not a number"),
        (lambda completion: torch.ones(2), "not a number"),
        (lambda completion: 1j, "not a number"),
        (fail, "ZeroDivisionError: division by zero"),
        (leave, "SystemExit: 3"),
        (lambda completion, topic: 1.0, "no column 'topic'"),
    ],
)
def test_what_is_no_number_is_a_failure_with_its_reason(function: Callable[..., Any], reason: str) -> None:
    result = score(wrap_function(function), "4")
    assert result.values == {}
    (text,) = result.failures.values()
    assert reason in text
    assert "\n" not in text


def test_one_failure_leaves_the_others_scored() -> None:
    reward = wrap_function(lambda completion: 1.0 if completion else None)
    scores = asyncio.run(reward.score(prompt(), [rollout("a"), rollout(""), rollout("b")]))
    assert [bool(s.failures) for s in scores] == [False, True, False]


def test_a_function_cannot_change_the_prompt() -> None:
    def spoil(completion: str, tags: list[str]) -> float:
        tags.clear()
        return 1.0

    given = prompt(tags=["a"])
    asyncio.run(wrap_function(spoil).score(given, [rollout("x")]))
    assert given.meta["tags"] == ["a"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("completoin", "completion"),
        ("promptt", "prompt"),
        ("completion_s", "completions"),
        ("completions_ids", "completion_ids"),
    ],
)
def test_near_misses_of_a_parameter_are_errors(name: str, meant: str) -> None:
    space: dict[str, Any] = {}
    exec(f"def f({name}): return 1.0", space)
    with pytest.raises(ConfigError, match=f"unknown parameter '{name}'. Did you mean '{meant}'"):
        wrap_function(space["f"])


def test_a_column_may_be_called_nearly_as_the_answer() -> None:
    def accepts(completion: str, answers: list[str]) -> float:
        return float(completion in answers)

    assert score(wrap_function(accepts), "4", answers=["4", "four"]).values == {"accepts": 1.0}
    with pytest.raises(DataError, match=r"no column 'answers'. Did you mean 'answer'\? The row is p/0."):
        wrap_function(accepts).check(prompt())


def test_positional_parameters_are_errors() -> None:
    with pytest.raises(ConfigError, match="positional"):
        wrap_function(lambda *args: 1.0)


FILE = '''
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Rule:
    text: str

def short(completion: str) -> float:
    """Shorter is better."""
    return 1.0 if len(completion) < 5 else 0.0

def _private(completion): return 0.0
'''


def test_functions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.py"
    path.write_text(FILE)
    assert load_function(f"{path}:short")("abc") == 1.0
    reward = build_reward(f"{path}:short")
    assert isinstance(reward, FunctionReward)
    assert score(reward, "abcdef").values == {"short": 0.0}
    assert reward.weights == {"short": 1.0}
    assert build("reward", dump(reward), "reward") == reward
    path.write_text(FILE.replace("< 5", "< 50"))
    assert score(build_reward(f"{path}:short"), "abcdef").values == {"short": 1.0}


@pytest.mark.parametrize(
    ("spec", "error", "line"),
    [
        ("absent.py:short", MissingInputError, "reward: there is no file absent.py."),
        ("{file}:shrot", ConfigError, "has no function 'shrot'. Did you mean 'short'?"),
        ("{file}:_private", ConfigError, "has no function '_private'"),
        ("{file}", ConfigError, "Write FILE.py:name"),
        ("{broken}:short", ConfigError, "line 2 cannot be imported: SyntaxError"),
        ("{raising}:short", ConfigError, "cannot be imported: ModuleNotFoundError"),
        ("exact_mach", ConfigError, "there is no reward 'exact_mach'. Did you mean 'exact_match'?"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, spec: str, error: type[Exception], line: str) -> None:
    names = {"file": FILE, "broken": "\ndef short(:", "raising": "import no_such_module_here"}
    for name, text in names.items():
        (tmp_path / f"{name}.py").write_text(text)
    paths = {name: tmp_path / f"{name}.py" for name in names}
    call = load_function if spec.startswith("{file}") else build_reward
    with pytest.raises(error) as caught:
        call(spec.format(**paths))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rewards_by_name_and_object() -> None:
    assert isinstance(build_reward("number"), NumberMatch)
    assert isinstance(build_reward({"kind": "exact_match"}), ExactMatch)
    ready = ExactMatch()
    assert build_reward(ready) is ready
    assert isinstance(build_reward(by_column), FunctionReward)
    with pytest.raises(ConfigError):
        build_reward(3)
    with pytest.raises(ConfigError, match=r"reward=reward_model reward.path=owner/judge"):
        build_reward("owner/judge")
    with pytest.raises(ConfigError, match=r"Linear is a model. Give RewardModel"):
        build_reward(torch.nn.Linear(1, 1))
