"""Functions written for TRL run unchanged, each in a process of its own; so do verl's and the scalar form."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from covey.cli import main
from covey.errors import ConfigError, DataError
from covey.rewards import build_reward
from covey.rewards.pool import Isolated, Limits, advance
from covey.tasks import from_rows
from covey.types import Prompt
from tests.rewards import trl_style
from tests.rewards.scored import prompt, rollout, score, values

FILE = Path(trl_style.__file__)
THOUGHT = "<think>two and two</think>4"

SHAPES: dict[str, tuple[Prompt, list[str], list[Any]]] = {
    "accuracy_reward": (
        prompt(messages=True, solution=r"so \boxed{4}"),
        [r"it is \boxed{4}", r"\boxed{5}", "4"],
        [1.0, 0.0, 0.0],
    ),
    "reasoning_accuracy_reward": (prompt(messages=True, solution="4"), [THOUGHT, "4"], [1.0, 0.0]),
    "think_format_reward": (prompt(messages=True), [THOUGHT, "4", "<think>4"], [1.0, 0.0, 0.0]),
    "length_reward": (prompt(), ["", "abc"], [0.0, 3.0]),
    "reward_from_reference": (prompt(ground_truth="4"), ["it is 4", "5"], [1.0, 0.0]),
    "curriculum_reward": (prompt(), ["a", "b"], [1.0, 1.0]),
    "slow_service_reward": (prompt(), ["", "b"], [0.0, 1.0]),
    "maths_only": (prompt(task="maths"), ["4", "5"], [1.0, 0.0]),
    "tripled": (prompt(), ["a", "bb"], [3.0, 6.0]),
    "only_completions": (prompt(), ["a", "b"], [1.0, 1.0]),
    "soft_overlong": (prompt(), ["a"], [-0.25]),
    "repetition_penalty": (prompt(), ["a"], [0.0]),
}

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("name", SHAPES)
def test_documented_shapes_run_unchanged(name: str) -> None:
    given, texts, expected = SHAPES[name]
    reward = build_reward(f"{FILE}:{name}")
    with Isolated(reward, Limits(workers=1)) as pool:
        advance(pool, step=1, steps=2)
        found = asyncio.run(pool.score(given, [rollout(text, at) for at, text in enumerate(texts)]))
    assert values(list(found)) == expected
    assert [list(score.values) for score in found] == [[name]] * len(texts)


def test_what_a_function_logs_becomes_facts() -> None:
    given, texts, _ = SHAPES["accuracy_reward"]
    found = score(f"{FILE}:accuracy_reward", *texts, given=given)
    assert [fact.facts for fact in found] == [{"solution": r"so \boxed{4}", "judged": True}] * 3
    (only,) = score(f"{FILE}:curriculum_reward", "a")
    assert only.facts == {"tokens": 3.0}


def test_a_row_that_a_function_cannot_judge() -> None:
    found = score(f"{FILE}:accuracy_reward", "4", "5", given=prompt(messages=True, solution="no box"))
    assert values(found) == ["none: returned None, not scorable"] * 2


def test_functions_and_closures_given_in_python() -> None:
    assert values(score(trl_style.get_soft_overlong_punishment(2, 2), "a")) == [-1.0]
    (found,) = score(trl_style.RepetitionPenalty(), "a")
    assert list(found.values) == ["repetition_penalty_reward"]
    (found,) = score(trl_style.tripled, "abc")
    assert found.values == {"scaled": 9.0}
    factor = 7
    assert values(score(lambda completions, **columns: [factor * len(c) for c in completions], "ab")) == [14.0]


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """verl's form, with more than a number."""
    right = solution_str == ground_truth
    return {"score": float(right), "acc": right, "source": data_source, "level": (extra_info or {}).get("level")}


@pytest.mark.parametrize(
    ("meta", "answer"),
    [({"ground_truth": "4"}, None), ({"reward_model": {"style": "rule", "ground_truth": "4"}}, None), ({}, "4")],
)
def test_verls_function(meta: dict[str, Any], answer: str | None) -> None:
    given = prompt(answer, data_source="gsm8k", extra_info={"level": 2}, **meta)
    first, second = score(compute_score, "4", "5", given=given)
    assert (first.values, second.values) == ({"compute_score": 1.0}, {"compute_score": 0.0})
    assert first.facts == {"acc": True, "source": "gsm8k", "level": 2}
    (plain,) = score(compute_score, "4")
    assert plain.facts["source"] == "rows"
    (bare,) = score(lambda solution_str, extra_info: extra_info.get("level", 7), "4")
    assert list(bare.values.values()) == [7.0]


def judge(completion: str, answer: str) -> Any:
    if completion == answer:
        return 1.0, "right"
    return {"score": 0.25, "feedback": "look at the sign", "distance": 2}


def test_feedback_and_facts() -> None:
    first, second = score(judge, "4", "-4")
    assert (first.values, first.detail, first.facts) == ({"judge": 1.0}, "right", {})
    assert (second.values, second.detail, second.facts) == ({"judge": 0.25}, "look at the sign", {"distance": 2})


def test_several_with_weights() -> None:
    """None of one function leaves the others and their weights; None of all is a failure; a crash of one is one too."""

    def crashes(completions: list[str]) -> list[float]:
        if "bad" in completions:
            import os

            os._exit(1)
        return [1.0 for _ in completions]

    def even(completions: list[str]) -> list[float | None]:
        return [None if len(completion) % 2 else 2.0 for completion in completions]

    reward = {"kind": "mix", "rewards": [even, f"{FILE}:maths_only"], "weights": [1.0, 0.5]}
    assert build_reward(reward).weights == {"even": 1.0, "maths_only": 0.5}  # type: ignore[attr-defined]
    found = score(reward, "4", "44", given=prompt(task="maths"))
    assert [dict(one.values) for one in found] == [{"maths_only": 1.0}, {"even": 2.0, "maths_only": 1.0}]
    assert [one.failures for one in found] == [{}, {}]
    found = score(reward, "4", "44", given=prompt(task="code"))
    assert sorted(found[0].failures) == ["even", "maths_only"]
    assert (found[1].values, found[1].failures) == ({"even": 2.0}, {})
    found = score([crashes, even], "good", "bad")
    assert [dict(one.values) for one in found] == [{"crashes": 1.0, "even": 2.0}, {}]
    assert found[1].failures == {"crashes": "crash: it left with exit code 1"}


def nothing(completions: list[str]) -> list[None]:
    return [None for _ in completions]


def watched(completions: list[str]) -> list[float]:
    return [0.7 for _ in completions]


def test_a_sum_of_nothing_is_no_zero() -> None:
    """What is left has weight 0: the rollout is not scored, and not worth 0."""
    (found,) = score({"kind": "mix", "rewards": [nothing, watched], "weights": [1.0, 0.0]}, "4")
    assert (found.values, found.failures) == ({"watched": 0.7}, {"nothing": "none: returned None, not scorable"})


def test_facts_of_the_first_reward_stay() -> None:
    (found,) = score({"kind": "mix", "rewards": ["number", judge, "exact_match"]}, "so 4", given=prompt("5"))
    assert found.facts == {"answer": "4", "distance": 2}


def test_columns_of_a_row_as_trl_gives_them() -> None:
    """A number stays one, and columns with a meaning of their own arrive too."""

    def count(completions: list[str], answer: list[int], id: list[int], **kwargs: Any) -> list[float]:
        return [float(int(text) == gold and own == 3) for text, gold, own in zip(completions, answer, id, strict=True)]

    def boxed(completions: list[str], solution: list[str]) -> list[float]:
        return [float(text == gold) for text, gold in zip(completions, solution, strict=True)]

    row = {"prompt": "2+2?", "answer": 4, "id": 3, "solution": "4"}
    (first,) = score(count, "4", given=from_rows([row], held_share=0).train(0, 0))
    (second,) = score(boxed, "4", given=from_rows([row], held_share=0, answer_column="solution").train(0, 0))
    assert (first.values, second.values) == ({"count": 1.0}, {"boxed": 1.0})
    (third,) = score(judge, "4", given=from_rows([row], held_share=0, keep_columns=[]).train(0, 0))
    assert third.detail == "right"  # for one response the answer is text


def test_names_of_a_mix_are_its_own() -> None:
    reward = build_reward([f"{FILE}:length_reward", f"{FILE}:length_reward", "exact_match", "number"])
    assert list(reward.weights) == ["length_reward", "length_reward_2", "correct", "correct_2"]  # type: ignore[attr-defined]
    functions = [functools.partial(lambda completion, value: value, value=value) for value in (1.0, 2.0, 3.0)]
    for function, name in zip(functions, ("f", "f", "f_2"), strict=True):
        function.func.__name__ = name
    (found,) = score(functions, "4")
    assert sorted(found.values.values()) == [1.0, 2.0, 3.0]
    with pytest.raises(ConfigError, match=r"reward.weights: 1 weights for 2 rewards. Give one for each, in order."):
        build_reward({"kind": "mix", "rewards": ["exact_match", "number"], "weights": [1.0]})
    with pytest.raises(
        ConfigError, match=r"reward.weights.corect: no reward has this component. Did you mean 'correct'"
    ):
        build_reward({"kind": "mix", "rewards": ["exact_match", "number"], "weights": {"corect": 1.0}})


def test_a_column_that_is_not_there_is_told_before_the_run() -> None:
    with pytest.raises(DataError, match="reward accuracy_reward: the row has no column 'solution'"):
        build_reward(f"{FILE}:accuracy_reward").check(prompt())  # type: ignore[attr-defined]


def test_ten_functions_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real command, all at once, with weights: the advantages are those of the weighted sum."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(FILE, "rules.py")
    names = [
        name for name in SHAPES if name not in ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward")
    ]
    names += ["tripled"] * (10 - len(names))
    rows = [
        {"prompt": f"{n}+1=", "answer": f"{n + 1}", "ground_truth": f"{n + 1}", "task": "code"} for n in range(1, 9)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "train", "data=rows.jsonl", "task.held_share=0", f"reward=[{','.join(f'rules.py:{name}' for name in names)}]",
        "reward.weights.length_reward=0.5", "recipe=grpo", "steps=2", "budget.prompts_per_step=2",
        "budget.samples_per_prompt=4", "budget.sampling.max_tokens=16", "engines.threads=1", "--out", "out",
    ]  # fmt: skip
    assert main(command) == 0
    rollouts = [json.loads(line) for line in (tmp_path / "out/rollouts/step-000002.jsonl").read_text().splitlines()]
    assert len(rollouts) == 8
    for row in rollouts:
        assert row["failures"] == {}
        assert "maths_only" not in row["rewards"]  # None: not its business
        assert len(row["rewards"]) == len(names) - 1
        assert row["rewards"]["length_reward"] == len(row["text"])
        assert row["facts"]["tokens"] > 0
    for group in {row["group"] for row in rollouts}:
        own = [row for row in rollouts if row["group"] == group]
        sums = [sum(row["rewards"].values()) - 0.5 * row["rewards"]["length_reward"] for row in own]
        mean = sum(sums) / len(sums)
        spread = math.sqrt(sum((value - mean) ** 2 for value in sums) / (len(sums) - 1))
        for row, value in zip(own, sums, strict=True):
            assert row["advantage"] == pytest.approx((value - mean) / (spread + 1e-4), abs=1e-3)
