"""The reward `json_schema`: what is JSON, what the schema accepts, and what is said of the rest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.errors import ConfigError, CoveyError, DataError, MissingInputError
from covey.registry import build, dump
from covey.rewards import JsonSchema, build_reward
from covey.rewards.pool import Isolated, Limits
from covey.rewards.schema import find_fenced, read_json
from covey.types import Message, Prompt, Rollout, RolloutKey, Score, Stop

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"items": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def prompt(**meta: Any) -> Prompt:
    return Prompt("p/0", (Message("user", "?"),), None, "rows", meta)


def score(reward: Any, text: str, **meta: Any) -> Score:
    (result,) = asyncio.run(reward.score(prompt(**meta), [Rollout(RolloutKey("p/0", 0), (), Stop.END, 99, text)]))
    return result


@pytest.mark.parametrize(
    ("text", "valid", "parsed", "detail"),
    [
        ('{"name": "Ada", "age": 36}', 1, 1, "Valid."),
        (' {"name": ""}\n', 1, 1, "Valid."),
        ('{"age": 36}', 0, 1, "$: 'name' is a required property."),
        ('{"name": "Ada", "age": -1}', 0, 1, "$.age: -1 is less than the minimum of 0."),
        ('{"name": "Ada", "age": 1.5}', 0, 1, "$.age: 1.5 is not of type 'integer'."),
        ('{"name": "Ada", "tags": ["a", 1]}', 0, 1, "$.tags[1]: 1 is not of type 'string'."),
        ('{"name": "Ada", "x": 1}', 0, 1, "Additional properties are not allowed"),
        ("[1, 2]", 0, 1, "$: [1, 2] is not of type 'object'."),
        ("", 0, 0, "Not JSON: Expecting value"),
        ('Here: {"name": "Ada"}', 0, 0, "Not JSON"),
        ('{"name": "Ada"} ok', 0, 0, "Extra data"),
        ("{'name': 'Ada'}", 0, 0, "Not JSON"),
        ('{"name": "Ada", "name": "Bo"}', 0, 0, "the key 'name' stands twice"),
        ('{"name": "Ada", "age": NaN}', 0, 0, "NaN is no JSON number"),
        ('{"name": "Ada", "age": -Infinity}', 0, 0, "-Infinity is no JSON number"),
        ('{"name": "Ada", "age": 1e999}', 0, 0, "1e999 is beyond all floats"),
        ('{"age": ' + "9" * 5000 + "}", 0, 0, "Not JSON"),
        ("[" * 100_000, 0, 0, "more than 100 brackets"),
        ('{"a":' * 5000 + "1" + "}" * 5000, 0, 0, "more than 100 brackets"),
        (json.dumps({"name": "[" * 500}), 1, 1, "Valid."),
        (r'{"name": "\ud800"}', 1, 1, "Valid."),
        (r'{"\ud800": 1}', 0, 1, "$"),
        ('{"name": "' + "a" * 100_000 + '"}', 1, 1, "Valid."),
    ],
    ids=lambda v: str(v)[:25],
)
def test_verdicts(text: str, valid: int, parsed: int, detail: str) -> None:
    result = score(JsonSchema(form=PERSON), text)
    assert (result.values, result.failures) == ({"valid": float(valid), "parsed": float(parsed)}, {})
    assert detail in result.detail
    assert "\n" not in result.detail
    assert len(result.detail) < 700
    result.detail.encode()


FENCED = 'Sure:\n```json\n{"name": 1}\n```\nNo:\n```python\nx = {}\n```\nthis\n```\n{"name": "Ada"}\n```\nDone.'


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (FENCED, 1.0),
        ('```json\n{"name": "Ada"}\n```', 1.0),
        ('  ```JSON\n{"name": "Ada"}\n  ```  ', 1.0),
        ('```json\n{"name": "Ada"}', 0.0),
        ('{"name": "Ada"}', 0.0),
        ('```python\n{"name": "Ada"}\n```', 0.0),
        ('```json {"name": "Ada"}```', 0.0),
    ],
)
def test_the_last_fenced_block(text: str, valid: float) -> None:
    assert score(JsonSchema(form=PERSON, read="fence"), text).values["valid"] == valid


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


@given(VALUES)
def test_what_json_writes_is_read_back(value: Any) -> None:
    assert read_json(json.dumps(value)) == value
    assert read_json(find_fenced(f"so\n```json\n{json.dumps(value)}\n```")) == value


@given(st.text('[]{}",:\\ 1ea\n`', max_size=60))
def test_reading_raises_only_value_errors(text: str) -> None:
    try:
        read_json(text)
        json.loads(text)
    except ValueError:
        pass


@pytest.mark.parametrize("text", ['"' * 200_000, '\\"' * 200_000, '"\\' * 100_000, "```\n" * 50_000])
def test_reading_is_quick_on_long_texts(text: str) -> None:
    begin = time.perf_counter()
    for read in (read_json, find_fenced):
        with contextlib.suppress(ValueError):
            read(text)
    assert time.perf_counter() - begin < 1.0


def test_each_row_can_have_its_own_schema() -> None:
    reward = JsonSchema(column="wanted")
    assert score(reward, "3", wanted={"type": "integer"}).values["valid"] == 1
    assert score(reward, "3", wanted='{"type": "string"}').values["valid"] == 0
    reward.check(prompt(wanted={"type": "integer"}))
    for meta, line in (
        ({}, "the row has no column 'wanted'"),
        ({"wnted": {}}, "Did you mean 'wnted'?"),
        ({"wanted": "{"}, "no JSON schema in column 'wanted'"),
        ({"wanted": {"type": "intger"}}, "no JSON schema in column 'wanted'"),
        ({"wanted": 3}, "no JSON schema in column 'wanted'"),
    ):
        with pytest.raises(DataError, match=r"^prompt p/0: ") as caught:
            reward.check(prompt(**meta))
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "line"),
    [
        ({}, ConfigError, "neither form nor column"),
        ({"form": {}, "column": "x"}, ConfigError, "both form and column"),
        ({"form": "absent.json"}, MissingInputError, "there is no file absent.json"),
        ({"form": "{broken}"}, ConfigError, "is no JSON"),
        ({"form": {"type": "objekt"}}, ConfigError, "reward.form $.type: 'objekt' is not valid"),
        ({"form": {"pattern": "(a"}}, ConfigError, "reward.form $.pattern: '(a' is not a 'regex'"),
        ({"form": {"const": {1, 2}}}, ConfigError, "a schema is JSON"),
        (
            {"form": {}, "weights": {"valdi": 1}},
            ConfigError,
            "reward.weights.valdi: there is no such component. Did you mean 'valid'?",
        ),
        ({"form": {}, "read": "fenced"}, ConfigError, "reward.read"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(tmp_path: Path, options: dict[str, Any], error: type[CoveyError], line: str) -> None:
    (tmp_path / "broken.json").write_text("{")
    if options.get("form") == "{broken}":
        options = {"form": str(tmp_path / "broken.json")}
    with pytest.raises(error) as caught:
        build_reward({"kind": "json_schema", **options})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_fetched_for_a_schema() -> None:
    result = score(JsonSchema(form={"$ref": "http://127.0.0.1:9/x.json"}), "3")
    assert result.values == {"parsed": 1.0}
    assert "exception:" in result.failures["valid"]
    assert score(JsonSchema(form={"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}), "3").values["valid"] == 1


def test_a_schema_that_never_ends_is_a_failure() -> None:
    result = score(JsonSchema(form={"$ref": "#"}), "3")
    assert (result.values, result.failures["valid"][:9]) == ({"parsed": 1.0}, "exception")


def test_weights_and_dump(tmp_path: Path) -> None:
    (tmp_path / "form.json").write_text(json.dumps(PERSON))
    reward = build_reward({"kind": "json_schema", "form": str(tmp_path / "form.json"), "weights": {"parsed": 0.5}})
    assert reward.weights == {"valid": 0.0, "parsed": 0.5}  # type: ignore[attr-defined]
    assert build("reward", dump(reward), "reward") == reward  # type: ignore[arg-type]
    assert score(reward, '{"name": "Ada"}').values["valid"] == 1


@pytest.mark.distributed
def test_a_pattern_that_never_ends_is_killed() -> None:
    reward = JsonSchema(form={"type": "string", "pattern": "^(a+)+$"})
    texts = ['"aaa"', json.dumps("a" * 45 + "!"), '"b"']
    with Isolated(reward, Limits(workers=1, timeout_s=1.0)) as pool:
        rollouts = [Rollout(RolloutKey("p/0", i), (), Stop.END, 99, text) for i, text in enumerate(texts)]
        scores = asyncio.run(pool.score(prompt(), rollouts))
    assert [s.values.get("valid") for s in scores] == [1.0, None, 0.0]
    assert scores[1].failures == dict.fromkeys(("valid", "parsed"), "timeout: no score within 1 s")
