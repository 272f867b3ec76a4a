"""The reward `regex`: matches, groups, mistakes, and patterns that never end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from covey.errors import ConfigError, DataError
from covey.registry import build, dump
from covey.rewards import RegexMatch, build_reward
from covey.rewards.pool import Isolated, Limits
from covey.types import Message, Prompt, Rollout, RolloutKey, Score, Stop


def prompt(answer: str | None = "7") -> Prompt:
    return Prompt("p/0", (Message("user", "?"),), answer, "rows")


def rollouts(*texts: str) -> list[Rollout]:
    return [Rollout(RolloutKey("p/0", place), (), Stop.END, 99, text) for place, text in enumerate(texts)]


def score(text: str, answer: str | None = "7", **options: Any) -> Score:
    (result,) = asyncio.run(RegexMatch(**options).score(prompt(answer), rollouts(text)))
    return result


@pytest.mark.parametrize(
    ("options", "text", "value"),
    [
        ({"pattern": r"\d+"}, "it is 12", 1),
        ({"pattern": r"\d+"}, "none", 0),
        ({"pattern": r"\d+", "match": "full"}, "12", 1),
        ({"pattern": r"\d+", "match": "full"}, "12\n", 0),
        ({"pattern": r"(?i)yes"}, "YES", 1),
        ({"pattern": r"a.b"}, "a\nb", 0),
        ({"pattern": r"(?s)a.b"}, "a\nb", 1),
        ({"pattern": r"x*"}, "", 1),
    ],
)
def test_matching(options: dict[str, Any], text: str, value: int) -> None:
    assert score(text, None, **options).values == {"matched": value}


@pytest.mark.parametrize(
    ("options", "text", "value"),
    [
        ({"pattern": r"Answer: (\d+)", "group": 1}, "Answer: 7", 1),
        ({"pattern": r"Answer: (\d+)", "group": 1}, "Answer: 77", 0),
        ({"pattern": r"Answer: (\d+)", "group": 1}, "Answer: 7. No. Answer: 8", 1),
        ({"pattern": r"Answer: (\d+)", "group": 1, "match": "last"}, "Answer: 7. No. Answer: 8", 0),
        ({"pattern": r"Answer: (\d+)", "group": 1, "match": "last"}, "Answer: 8. No. Answer: 7", 1),
        ({"pattern": r"Answer: (\d+)", "group": 1, "match": "full"}, "Answer: 7.", 0),
        ({"pattern": r"=(?P<value>[^.]*)\.", "group": "value"}, "= 7 .", 1),
        ({"pattern": r"\d", "group": 0}, "7", 1),
        ({"pattern": r"(a)|b", "group": 1}, "b", 0),
    ],
)
def test_groups_are_compared_with_the_answer(options: dict[str, Any], text: str, value: int) -> None:
    result = score(text, **options)
    assert result.values == {"correct": value}
    assert result.detail


def test_a_group_needs_an_answer() -> None:
    assert score("7", None, pattern=r"(\d)", group=1).failures == {"correct": "prompt p/0 has no answer"}
    with pytest.raises(DataError, match=r"prompt p/0: the row has no answer"):
        RegexMatch(pattern="(a)", group=1).check(prompt(None))
    RegexMatch(pattern="(a)").check(prompt(None))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"pattern": "ab(c"}, "reward.pattern: missing ), unterminated subpattern at position 2, in 'ab(c'"),
        ({"pattern": "*"}, "nothing to repeat at position 0"),
        ({"pattern": ""}, "reward.pattern"),
        ({}, "reward.pattern: absent"),
        ({"pattern": "(a)", "group": 2}, "reward.group: the pattern has no group 2. Groups: 0, 1."),
        ({"pattern": "(?P<x>a)", "group": "y"}, "no group 'y'. Groups: 0, 1, x."),
        ({"pattern": "a", "match": "whole"}, "reward.match"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_reward({"kind": "regex", **options})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_survives_a_dump() -> None:
    reward = RegexMatch(pattern=r"(\d+)", group=1, match="last")
    assert build("reward", dump(reward), "reward") == reward


@pytest.mark.distributed
@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)+$", r"(.*a){25}$", r"^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_a_search_that_never_ends_is_killed_and_the_others_are_scored(pattern: str) -> None:
    reward, limit = RegexMatch(pattern=pattern), 1.0
    with Isolated(reward, Limits(workers=1, timeout_s=limit)) as pool:
        begin = time.perf_counter()
        scores = asyncio.run(pool.score(prompt(), rollouts("xyz", "a" * 60 + "!", "xyz")))
        wait = time.perf_counter() - begin
    assert scores[1].failures == {"matched": "timeout: no score within 1 s"}
    assert scores[0].values == scores[2].values == {"matched": 0.0}
    assert wait < limit + 5.0
