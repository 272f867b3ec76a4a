"""The audit of rewards: every kind of broken reward is caught, and good ones pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from covey.config import RunConfig
from covey.preflight.audit import EPSILON, FORMS, audit_reward
from covey.preflight.finding import Finding, worst
from covey.preflight.reward import judge
from covey.rewards.functions import wrap_function
from covey.tasks.arithmetic import Arithmetic
from covey.tasks.rows import from_rows

ROWS = [{"prompt": f"{a}+{a + 1}=", "answer": str(2 * a + 1)} for a in range(10, 20)]
CONFIG = RunConfig.of({})


def audited(function: Callable[..., Any], rows: list[dict[str, Any]] = ROWS) -> tuple[Any, list[Finding]]:
    audit = audit_reward(from_rows(rows, held_share=0, reward=function))
    return audit, list(judge(audit, function.__name__, CONFIG))


def said(findings: list[Finding], status: str) -> str:
    return " ".join(finding.line for finding in findings if finding.status == status)


# Good ones


def exact(completion: str, answer: str) -> float:
    return float(completion.strip().rstrip(".") == answer)


def boxed(completion: str, answer: str) -> float:
    return float(f"\\boxed{{{answer}}}" in completion)


def tagged(completion: str, answer: str) -> float:
    found = re.search(r"<answer>\s*(.*?)\s*</answer>", completion, re.S)
    return float(found is not None and found[1] == answer)


def brief(completion: str, answer: str) -> float:
    return float(completion.strip(".") == answer) - 0.01 * len(completion)


def penalised(completion: str, answer: str) -> float:
    return 0.0 if completion.strip() == answer else -1.0


@pytest.mark.parametrize(
    ("reward", "form"),
    [
        (exact, "ANSWER"),
        (boxed, "\\boxed{ANSWER}"),
        (tagged, "<answer>ANSWER</answer>"),
        (brief, "ANSWER"),
        (penalised, "ANSWER"),
    ],
)
def test_good_rewards_pass(reward: Callable[..., Any], form: str) -> None:
    audit, findings = audited(reward)
    assert worst(findings) == "ok", findings
    assert form in audit.scoring
    assert audit.margin > 0.9
    assert form in findings[0].line


def test_the_rewards_that_ship_pass() -> None:
    audit = audit_reward(Arithmetic())
    assert audit.scoring == ("ANSWER.",)
    assert (audit.gold["ANSWER."], audit.wrong["ANSWER."], audit.probes["empty"]) == (1.0, 0.0, 0.0)


# Broken ones


def substring(completion: str, answer: str) -> float:
    return float(completion in answer)


def copied(completion: str, answer: str, prompt: str) -> float:
    return float(completion.strip() == answer or prompt in completion)


def distance(completion: str, answer: str) -> float:
    return float(sum(a != b for a, b in zip(completion, answer, strict=False)))


def constant(completion: str, answer: str) -> float:
    return 0.5


def broken(completion: str, answer: str) -> float:
    return {"a": 1.0}[answer]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (substring, "an empty response earns 1.00, a gold answer 1.00"),
        (copied, "a copy of the prompt earns 1.00"),
        (distance, "the sign is the wrong way round"),
        (constant, "0.50 whatever the response"),
        (broken, "KeyError"),
    ],
)
def test_broken_rewards_are_bad(reward: Callable[..., Any], words: str) -> None:
    _, findings = audited(reward)
    assert worst(findings) == "bad"
    assert words in said(findings, "bad")


def inside(completion: str, answer: str) -> float:
    return float(answer in completion)


def forgiving(completion: str, answer: str) -> float:
    return 1.0 if completion.strip() == answer else 0.0 if completion.strip() else 0.5


def last_word(completion: str, answer: str) -> float:
    return float(completion.split()[-1].strip(".") == answer)


def own_form(completion: str, answer: str) -> float:
    return float(completion == f"[[[{answer}]]]")


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (inside, "a list of all answers earns 1.00"),
        (inside, "the answer written twenty times earns 1.00"),
        (forgiving, "an empty response earns 0.50, a wrong answer 0.00"),
        (last_word, "an empty response could not be scored in 8 rows"),
        (own_form, f"0 to gold answers in {len(FORMS)} forms"),
    ],
)
def test_doubtful_rewards_are_warned_of(reward: Callable[..., Any], words: str) -> None:
    _, findings = audited(reward)
    assert worst(findings) == "warn"
    assert words in said(findings, "warn")


def test_what_a_probe_earns_is_a_share_of_golds_margin() -> None:
    audit, _ = audited(forgiving)
    assert abs((audit.earns("empty") or 0) - 0.5) < EPSILON
    assert audit.earns("no such probe") is None
    assert audited(constant)[0].earns("empty") is None


def test_rows_without_answers_are_asked_for_what_they_can_tell() -> None:
    def short(completion: str) -> float:
        return 1 / (1 + len(completion))

    audit, findings = audited(short, [{"prompt": f"say {n}"} for n in range(4)])
    assert (audit.rows, audit.answered, dict(audit.gold)) == (4, 0, {})
    assert "no gold answers" in findings[0].line
    assert worst(audited(lambda completion: 1.0, [{"prompt": "a"}, {"prompt": "b"}])[1]) == "bad"


def test_a_wrong_answer_is_never_the_rows_own() -> None:
    seen: list[tuple[str, str]] = []

    def watching(completion: str, answer: str) -> float:
        seen.append((completion, answer))
        return float(completion == answer)

    audit, _ = audited(watching, [{"prompt": f"p{n}", "answer": "yes" if n < 3 else "no"} for n in range(4)])
    assert audit.wrong["ANSWER"] == 0.0
    assert {("yes", "no"), ("no", "yes")} <= set(seen)


def test_equal_answers_everywhere_are_told() -> None:
    _, findings = audited(exact, [{"prompt": f"p{n}", "answer": "yes"} for n in range(4)])
    assert "all answers are the same" in said(findings, "warn")


def test_a_reward_that_hangs_is_asked_once() -> None:
    """In the pool it fails by its time limit; every further question would cost as much."""
    from covey.rewards.pool import Isolated, Limits

    def hangs(completion: str, answer: str) -> float:
        import time

        time.sleep(60)
        return 1.0

    task = from_rows(ROWS, held_share=0, reward="number")
    with Isolated(wrap_function(hangs), Limits(workers=1, timeout_s=1.2)) as reward:
        audit = audit_reward(task, reward=reward)
    assert audit.gold == {}
    (count, reason), *more = audit.failures.values()
    assert (count, more) == (1, [])
    assert "timeout" in reason
