"""What is handed to another process arrives as it was; what was not sent as a result is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.rewards import wire
from covey.rewards.failures import TYPES, type_of
from covey.types import Message, Prompt, Rollout, RolloutKey, Score, Stop, Turn

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text(max_size=5) | st.integers() | st.sampled_from(["$tuple", "$set", "$mapping", "$bytes"])
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(st.integers() | st.text(), max_size=4)
    ),
    max_leaves=12,
)
NUMBER = b"8 bytes."


def cross(value: Any) -> Any:
    """Over the channel and back."""
    return wire.unpack(bytearray(wire.pack(value, NUMBER)), NUMBER, 1 << 30)


@given(VALUES)
def test_values_arrive_as_they_were(value: Any) -> None:
    found = wire.read(cross(wire.write(value)))
    assert found == value
    assert repr(type(found)) == repr(type(value))


@given(st.text(), st.lists(st.floats(max_value=0), min_size=1, max_size=5), st.booleans())
def test_rollouts_and_prompts_arrive_as_they_were(text: str, logps: list[float], messages: bool) -> None:
    tokens = tuple(range(len(logps)))
    turn = Turn(tokens, tuple(logps), "policy", ((len(tokens), 3),), tuple(logps))
    rollout = Rollout(RolloutKey("p", 1, 2, 3, 4), (turn, Turn((7,), None, "env")), Stop.LENGTH, 9, text)
    assert wire.read_rollout(cross(wire.write_rollout(rollout, tokens=True, logps=True))) == rollout
    prompt = Prompt("p", (Message("system", text), Message("user", "x")), None, "t", {"a": (1,)}, messages)
    assert wire.read_prompt(cross(wire.write_prompt(prompt, prompt.meta))) == prompt
    score = Score({"a": 0.1, "b": 1e300}, {"c": text}, {"d": [1, {"e": None}]}, text)
    assert wire.read_score(cross(wire.write_score(score))) == score


@given(st.binary(min_size=1, max_size=200))
def test_what_is_no_frame_is_no_result(noise: bytes) -> None:
    """Garbage before a result makes it unreadable; it is never skipped, guessed or taken for another request's."""
    data = bytearray(noise) + wire.pack({"scores": []}, NUMBER)
    with pytest.raises(wire.GarbledError):
        assert wire.unpack(data, NUMBER, 1 << 20) is not None
    with pytest.raises(wire.GarbledError):
        wire.unpack(bytearray(wire.pack({"scores": []}, b"another.")), NUMBER, 1 << 20)


@given(st.integers(0, 60))
def test_half_a_frame_is_waited_for(cut: int) -> None:
    frame = wire.pack({"scores": [1, 2, 3], "text": "x" * 40}, NUMBER)
    data = bytearray(frame[:cut])
    assert wire.unpack(data, NUMBER, 1 << 20) is None
    data += frame[cut:] + b"rest"
    assert wire.unpack(data, NUMBER, 1 << 20) == {"scores": [1, 2, 3], "text": "x" * 40}
    assert data == b"rest"


def test_types_of_failures() -> None:
    assert [type_of(f"{word}: more: words") for word in TYPES] == list(TYPES)
    assert {type_of(text) for text in ("", "timeout", "prompt p/0 has no answer", "sum: too large", "none")} == {
        "other"
    }
