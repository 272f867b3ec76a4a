"""Rewards for length: goldens by hand, slow oracles from the formulas, properties."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.errors import ConfigError, DataError
from covey.registry import build, dump
from covey.rewards import CosineLength, LengthBand, MathMatch, Mix, Repetition, build_reward, wrap_function
from covey.rewards.length import share_repeated
from covey.rewards.pool import Isolated, Limits
from covey.types import Message, Prompt, Rollout, RolloutKey, Score, Stop, Turn


def prompt(answer: str | None = "4") -> Prompt:
    return Prompt("p/0", (Message("user", "?"),), answer, "rows")


def rollout(n: int, text: str = "4", stop: Stop = Stop.END, limit: int = 100) -> Rollout:
    return Rollout(RolloutKey("p/0", 0), (Turn(tuple(range(n)), None),), stop, limit, text)


def score(reward: Any, item: Rollout, answer: str | None = "4") -> Score:
    (result,) = asyncio.run(reward.score(prompt(answer), [item]))
    return result


@pytest.mark.parametrize(
    ("n", "options", "value"),
    [
        (100, {"target": 100}, 1.0),
        (75, {"target": 100}, 0.75),
        (150, {"target": 100}, 0.5),
        (0, {"target": 100}, 0.0),
        (500, {"target": 100}, 0.0),
        (110, {"target": 100, "slack": 10}, 1.0),
        (90, {"target": 100, "slack": 10}, 1.0),
        (115, {"target": 100, "slack": 10, "fall": 20}, 0.75),
        (131, {"target": 100, "slack": 10, "fall": 20}, 0.0),
    ],
)
def test_band_goldens(n: int, options: dict[str, int], value: float) -> None:
    assert score(LengthBand(**options), rollout(n)).values == {"length": pytest.approx(value, abs=1e-12)}


def slow_band(n: int, target: int, slack: int, fall: int) -> float:
    """One token at a time away from the band."""
    value, at = 1.0, min(max(n, target - slack), target + slack)
    while at != n:
        at += 1 if n > at else -1
        value -= 1 / fall
    return max(value, 0.0)


@given(st.integers(0, 300), st.integers(1, 200), st.integers(0, 50), st.integers(1, 200))
def test_band_oracle(n: int, target: int, slack: int, fall: int) -> None:
    found = score(LengthBand(target=target, slack=slack, fall=fall), rollout(n)).values["length"]
    assert found == pytest.approx(slow_band(n, target, slack, fall), abs=1e-9)


def test_only_the_policys_tokens_count() -> None:
    turns = (Turn((1, 2), None), Turn((3,) * 50, None, by="env"), Turn((4,), None))
    item = Rollout(RolloutKey("p/0", 0), turns, Stop.END, 100)
    assert score(LengthBand(target=3), item).values == {"length": 1.0}
    assert score(Repetition(ngram=2), item).values == {"repetition": 0.0}


@pytest.mark.parametrize(
    ("n", "text", "value"),
    [
        # 1 + (2 - 1)(1 + cos(pi n / 100)) / 2 when right, -5 (1 + cos(pi n / 100)) when wrong
        (0, "4", 2.0),
        (25, "4", 1.853553),
        (50, "4", 1.5),
        (99, "4", 1.000247),
        (0, "5", -10.0),
        (25, "5", -8.535534),
        (50, "5", -5.0),
        (75, "5", -1.464466),
        (100, "4", -10.0),
        (120, "4", -10.0),
    ],
)
def test_cosine_goldens(n: int, text: str, value: float) -> None:
    result = score(CosineLength(), rollout(n, text))
    assert result.values == {"cosine": pytest.approx(value, abs=1e-6), "correct": float(text == "4")}


def test_cosine_of_a_truncated_response_is_the_exceeded_one() -> None:
    assert score(CosineLength(), rollout(10, "4", Stop.LENGTH)).values["cosine"] == -10.0
    assert score(CosineLength(exceeded=-1.0), rollout(10, "4", Stop.LENGTH)).values["cosine"] == -1.0
    assert score(CosineLength(longest=10), rollout(10)).values["cosine"] == -10.0


@given(st.integers(0, 98), st.sampled_from(["4", "5"]))
def test_right_is_better_short_and_wrong_is_better_long(n: int, text: str) -> None:
    shorter, longer = (score(CosineLength(), rollout(m, text)).values["cosine"] for m in (n, n + 1))
    assert (shorter > longer) if text == "4" else (shorter < longer)
    assert (
        score(CosineLength(), rollout(n, "4")).values["cosine"]
        > 0
        >= score(CosineLength(), rollout(n, "5")).values["cosine"]
    )


def test_cosine_fails_where_nobody_says_what_is_right() -> None:
    result = score(CosineLength(), rollout(5), None)
    assert (result.values, set(result.failures)) == ({}, {"cosine", "correct"})
    none = CosineLength(of=wrap_function(lambda completion: None))
    assert "none:" in score(none, rollout(5)).failures["cosine"]
    half = CosineLength(of=wrap_function(lambda completion: 0.5))
    assert score(half, rollout(0)).values == {"cosine": -10.0, "correct": 0.0}


def test_cosine_of_any_reward() -> None:
    reward = build_reward({"kind": "cosine_length", "of": {"kind": "math", "on_hang": "wrong"}, "longest": 200})
    assert reward.isolated is True  # type: ignore[attr-defined]
    assert build("reward", dump(reward), "reward") == reward  # type: ignore[arg-type]
    assert score(reward, rollout(0, r"\boxed{\frac{8}{2}}")).values == {"cosine": 2.0, "correct": 1.0}
    assert CosineLength().isolated is False
    with pytest.raises(DataError, match="no answer"):
        CosineLength(of=MathMatch()).check(prompt(None))
    with pytest.raises(ConfigError, match=r"reward\.of: there is no reward 'mth'\. Did you mean 'math'"):
        build_reward({"kind": "cosine_length", "of": "mth"})
    with pytest.raises(ConfigError, match=r"reward\.of"):
        CosineLength(of=Mix(rewards=("exact_match", "number")))


@pytest.mark.distributed
def test_cosine_of_a_killed_check_is_what_the_inner_reward_says() -> None:
    texts = [r"\boxed{9^{9^{9^9}}}", r"\boxed{\sqrt{16}}"]
    rollouts = [rollout(50, text) for text in texts]
    for on_hang, values in (("fail", {}), ("wrong", {"cosine": -5.0, "correct": 0.0})):
        reward = CosineLength(of=MathMatch(on_hang=on_hang))
        with Isolated(reward, Limits(workers=1, timeout_s=1.5)) as pool:
            killed, right = asyncio.run(pool.score(prompt(r"\sqrt{16}"), rollouts))
        assert killed.values == pytest.approx(values)
        assert killed.facts == {"class": "timeout"}
        assert bool(killed.failures) == (on_hang == "fail")
        assert right.values == {"cosine": 1.5, "correct": 1.0}


@pytest.mark.distributed
def test_cosine_of_a_function_given_in_python_runs_in_a_copy_of_this_process() -> None:
    secret = "4"
    reward = CosineLength(of=wrap_function(lambda completion: float(completion == secret)))
    with Isolated(reward, Limits(workers=1, timeout_s=5.0)) as pool:
        (result,) = asyncio.run(pool.score(prompt(), [rollout(0)]))
    assert result.values == {"cosine": 2.0, "correct": 1.0}


@pytest.mark.parametrize(
    ("tokens", "n", "share"),
    [
        ((), 2, 0.0),
        ((1,), 2, 0.0),
        ((1, 2, 3, 4), 2, 0.0),
        ((1, 2, 1, 2), 2, 0.5),
        ((1, 1, 1, 1), 2, 0.75),  # the runs at 1 and 2 repeat that at 0: tokens 1 to 3
        ((1, 2, 3, 1, 2, 9, 2, 3), 2, 0.5),
        ((7, 7, 8), 1, 1 / 3),
        ((1, 2, 3) * 3, 3, 2 / 3),
    ],
)
def test_repetition_goldens(tokens: tuple[int, ...], n: int, share: float) -> None:
    assert share_repeated(tokens, n) == pytest.approx(share)
    item = Rollout(RolloutKey("p/0", 0), (Turn(tokens, None),), Stop.END, 99)
    assert score(Repetition(ngram=n), item).values == {"repetition": pytest.approx(-share)}


def slow_share(tokens: list[int], n: int) -> float:
    """Every token, every run it lies in, every earlier start."""
    marked = 0
    for place in range(len(tokens)):
        starts = [s for s in range(place - n + 1, place + 1) if s >= 0 and s + n <= len(tokens)]
        marked += any(tokens[s : s + n] == tokens[e : e + n] for s in starts for e in range(s))
    return marked / len(tokens) if tokens else 0.0


@given(st.lists(st.integers(0, 2), max_size=24), st.integers(1, 6))
def test_repetition_oracle(tokens: list[int], n: int) -> None:
    assert share_repeated(tokens, n) == pytest.approx(slow_share(tokens, n))


def test_defaults_are_the_papers() -> None:
    reward = CosineLength()
    assert (reward.right_short, reward.right_long, reward.wrong_short, reward.wrong_long) == (2, 1, -10, 0)
    assert (reward.exceeded, Repetition().ngram) == (-10, 40)
    assert math.isclose(score(Repetition(), rollout(500)).values["repetition"], 0.0, abs_tol=0)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("length_band", "reward.target: absent"),
        ({"kind": "length_band", "target": 0}, "reward.target"),
        ({"kind": "repetition", "ngram": 0}, "reward.ngram"),
        ({"kind": "cosine_length", "right_shrot": 1}, "Did you mean 'right_short'?"),
    ],
)
def test_mistakes_are_one_line(value: Any, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_reward(value)
    assert line in str(caught.value)
