"""The reward `tags`: the structure of a response, against a reader that takes one token at a time."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from covey.errors import ConfigError
from covey.registry import build, dump
from covey.rewards import Tags, build_reward
from covey.types import Message, Prompt, Rollout, RolloutKey, Score, Stop


def score(text: str, **options: Any) -> Score:
    prompt = Prompt("p/0", (Message("user", "?"),), None, "rows")
    rollout = Rollout(RolloutKey("p/0", 0), (), Stop.END, 99, text)
    (result,) = asyncio.run(Tags(**options).score(prompt, [rollout]))
    return result


@pytest.mark.parametrize(
    ("text", "whole", "soft"),
    [
        ("<think>a</think><answer>b</answer>", 1, 1.0),
        ("\n<think>\na\n</think>\n\n<answer>b</answer>\n", 1, 1.0),
        ("<think>1 < 2 and <b>x</b></think><answer>y</answer>", 1, 1.0),
        ("<think>a</think><answer>b</answer>!", 0, 1.0),
        ("Hm <think>a</think><answer>b</answer>", 0, 1.0),
        ("<think>a</think> so <answer>b</answer>", 0, 1.0),
        ("<answer>b</answer><think>a</think>", 0, 1.0),
        ("<think>a<answer>b</answer></think>", 0, 1.0),
        ("<think>a</think><answer>b", 0, 0.75),
        ("<think>a<answer>b</answer>", 0, 0.75),
        ("<think>a</think><think>a</think><answer>b</answer>", 0, 0.5),
        ("<think><think>a</think></think><answer>b</answer>", 0, 0.5),
        ("<think></think><answer>b</answer>", 0, 1.0),
        ("<think> \n</think><answer>b</answer>", 0, 1.0),
        ("<Think>a</Think><answer>b</answer>", 0, 0.5),
        ("<think >a</think><answer>b</answer>", 0, 0.75),
        ("</think>a<think><answer>b</answer>", 0, 1.0),
        ("", 0, 0.0),
    ],
)
def test_goldens(text: str, whole: int, soft: float) -> None:
    result = score(text)
    assert result.values == {"format": float(whole), "tags": soft}
    assert (result.detail == "Right.") == bool(whole)


def test_options() -> None:
    text = "<think></think><answer>b</answer>"
    assert score(text, empty=True).values["format"] == 1
    assert score("a</think><answer>b</answer>", opened=True).values == {"format": 1.0, "tags": 1.0}
    assert score("<think>a</think><answer>b</answer>", opened=True).values == {"format": 0.0, "tags": 0.75}
    assert score("<plan>x</plan>", names=("plan",)).values["format"] == 1
    assert build_reward({"kind": "tags", "names": "plan, answer"}).names == ("plan", "answer")  # type: ignore[attr-defined]
    reward = Tags(names=("a", "b"), weights={"tags": 0.2})
    assert reward.weights == {"format": 0.0, "tags": 0.2}
    assert build("reward", dump(reward), "reward") == reward


def read_slowly(text: str, names: tuple[str, ...]) -> bool:
    """A finite machine over tags and letters: outside, inside of the first part, outside, ... , outside."""
    wanted = [f"<{slash}{name}>" for name in names for slash in ("", "/")]
    tokens = re.split("(" + "|".join(map(re.escape, wanted)) + ")", text)
    state, said = 0, ""
    for token in tokens:
        if token in wanted:
            if state == len(wanted) or token != wanted[state]:
                return False
            if state % 2 and not said.strip():
                return False
            state, said = state + 1, ""
        elif state % 2:
            said += token
        elif token.strip():
            return False
    return state == len(wanted)


PIECES = st.sampled_from(["<a>", "</a>", "<b>", "</b>", " ", "x", "<", ">", "\n", "<c>"])


@given(st.lists(PIECES, max_size=9).map("".join))
@example("<a>x</a><b>x</b>")
@example("<a>x</a> <b><c></b>\n")
def test_the_verdict_is_that_of_a_slow_reader(text: str) -> None:
    assert score(text, names=("a", "b")).values["format"] == float(read_slowly(text, ("a", "b")))


@given(st.lists(st.sampled_from(["x", " y", "<c>", "\n"]), min_size=1).map("".join), st.sampled_from(["", " ", "\n\n"]))
def test_what_is_written_to_the_form_is_right(inside: str, gap: str) -> None:
    right = inside.strip() != ""
    assert score(f"{gap}<a>{inside}</a>{gap}<b>{inside}</b>{gap}", names=("a", "b")).values["format"] == float(right)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("think", "think"), "'think' stands there twice"),
        (("a b",), "'a b' is no tag"),
        (("<a>",), "'<a>' is no tag"),
        ((), "no tags"),
        ((3,), "3 is no tag"),
    ],
)
def test_mistakes_are_one_line(names: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=r"reward\.names: ") as caught:
        build_reward({"kind": "tags", "names": names})
    assert line in str(caught.value)
    with pytest.raises(ConfigError, match=r"reward.weights.fromat: .*Did you mean 'format'"):
        Tags(weights={"fromat": 1.0})


def test_it_is_quick_on_long_texts() -> None:
    begin = time.perf_counter()
    for text in ("<think>" * 100_000, "<" * 10**6, "<think>" + "</thin" * 100_000, " " * 10**6):
        score(text)
    assert time.perf_counter() - begin < 1.0
