"""What crosses between the run and the processes that score: frames of JSON, and the values of covey as JSON.

A frame is a header (a mark, the number of the request it belongs to, length and checksum) and its JSON. The number is drawn at
random for each request, so that what a function writes to a channel by accident is no result.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from covey.rewards.failures import ScoringError
from covey.types import Message, Prompt, Rollout, RolloutKey, Score, Stop, Turn

HEADER = struct.Struct("!4s8sII")
MARK = b"\x89CVY"
NO_NUMBER = bytes(8)
LONGEST_RESULT = 1 << 20
"""Bytes of the result of one call; more is refused."""


class GarbledError(Exception):
    """What came in is no frame of the expected request."""


def pack(value: Any, number: bytes = NO_NUMBER) -> bytes:
    """A frame."""
    body = json.dumps(value, separators=(",", ":")).encode()
    return HEADER.pack(MARK, number, len(body), zlib.crc32(body)) + body


def unpack(data: bytearray, number: bytes, most: int) -> Any | None:
    """Take the first frame out of `data`; None while it is not complete. Raises GarbledError."""
    if len(data) < HEADER.size:
        if not MARK.startswith(bytes(data[: len(MARK)])):
            raise GarbledError
        return None
    mark, found, length, checksum = HEADER.unpack_from(data)
    if mark != MARK or found != number or length > most:
        raise GarbledError
    if len(data) < HEADER.size + length:
        return None
    body = bytes(data[HEADER.size : HEADER.size + length])
    if zlib.crc32(body) != checksum:
        raise GarbledError
    del data[: HEADER.size + length]
    return json.loads(body)


def receive(channel: socket.socket) -> tuple[bytes, Any] | None:
    """Wait for a frame: its number and value; None at the end of the channel."""
    header = _receive_exactly(channel, HEADER.size)
    if header is None:
        return None
    mark, number, length, checksum = HEADER.unpack(header)
    body = _receive_exactly(channel, length) if mark == MARK else None
    if body is None or zlib.crc32(body) != checksum:
        return None
    return number, json.loads(body)


def _receive_exactly(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


def write(value: Any) -> Any:
    """A value as JSON that `read` turns back: lists, texts and numbers as they are, other types of Python's own marked."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):  # a number of numpy or torch
        return write(value.item())
    if isinstance(value, list):
        return [write(item) for item in value]
    if isinstance(value, (dict, Mapping)):
        if all(isinstance(name, str) and not name.startswith("$") for name in value):
            return {name: write(item) for name, item in value.items()}
        return {"$mapping": [[write(name), write(item)] for name, item in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [write(item) for item in value]}
    if isinstance(value, (set, frozenset)):
        return {"$set": [write(item) for item in value]}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"{type(value).__module__}.{type(value).__name__} cannot be handed to another process")


def read(value: Any) -> Any:
    """The inverse of `write`."""
    if isinstance(value, list):
        return [read(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (name, inner) = next(iter(value.items()))
        if name == "$mapping":
            return {read(key): read(item) for key, item in inner}
        if name == "$tuple":
            return tuple(read(item) for item in inner)
        if name == "$set":
            return {read(item) for item in inner}
        if name == "$bytes":
            return base64.b64decode(inner)
    return {name: read(item) for name, item in value.items()}


def write_prompt(prompt: Prompt, meta: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt with some of its columns."""
    return {
        "id": prompt.id,
        "messages": [[message.role, message.content] for message in prompt.messages],
        "answer": prompt.answer,
        "task": prompt.task,
        "meta": write(dict(meta)),
        "conversational": prompt.conversational,
    }


def read_prompt(data: Mapping[str, Any]) -> Prompt:
    """The inverse of `write_prompt`."""
    messages = tuple(Message(role, content) for role, content in data["messages"])
    return Prompt(data["id"], messages, data["answer"], data["task"], read(data["meta"]), data["conversational"])


def write_rollout(rollout: Rollout, *, tokens: bool, logps: bool) -> dict[str, Any]:
    """A rollout before it is scored; on request with its tokens and their log-probabilities."""
    key = rollout.key
    return {
        "key": [key.prompt, key.index, key.visit, key.parent, key.at],
        "stop": rollout.stop.value,
        "limit": rollout.limit,
        "text": rollout.text,
        "turns": [_write_turn(turn, logps) for turn in rollout.turns] if tokens else [],
    }


def _write_turn(turn: Turn, logps: bool) -> list[Any]:
    scores = [turn.sampled_logp, turn.policy_logp] if logps else [None, None]
    return [turn.by, list(turn.tokens), *scores, [list(run) for run in turn.versions]]


def read_rollout(data: Mapping[str, Any]) -> Rollout:
    """The inverse of `write_rollout`."""
    turns = tuple(
        Turn(
            tuple(tokens),
            None if sampled is None else tuple(sampled),
            by,
            tuple((count, version) for count, version in versions),
            None if policy is None else tuple(policy),
        )
        for by, tokens, sampled, policy, versions in data["turns"]
    )
    return Rollout(RolloutKey(*data["key"]), turns, Stop(data["stop"]), data["limit"], data["text"])


def write_score(score: Score) -> list[Any]:
    """A score."""
    values = {name: float(value) for name, value in score.values.items()}
    return [values, dict(score.failures), dict(score.facts), score.detail]


def read_score(data: Any) -> Score:
    """The inverse of `write_score`."""
    values, failures, facts, detail = data
    return Score(values, failures, facts, detail)


def pack_result(result: Mapping[str, Any], number: bytes) -> bytes:
    """The frame of a result. Raises ScoringError if it is larger than a result may be, or no JSON."""
    try:
        frame = pack(result, number)
    except (TypeError, ValueError, RecursionError) as error:
        raise ScoringError(f"type: the result is no JSON ({error})") from None
    if len(frame) > LONGEST_RESULT:
        raise ScoringError(f"size: the result has {len(frame)} bytes, at most {LONGEST_RESULT} can be handed over")
    return frame
