"""Records as lines of JSON and back: rows of numbers, and rollouts with every token."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from covey.errors import DataError, MissingInputError
from covey.types import Group, Message, Prompt, Rollout, RolloutKey, Stop, Turn

Advantages = Mapping[str, Sequence[float]]
"""The mean advantage of each rollout, by group id, in the order of the group's rollouts."""


def plain(value: Any) -> Any:
    """A value as JSON has it: keys sorted, every number an int or a float.

    A number that is not finite becomes null, a lone surrogate `U+FFFD`; floats keep every digit.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, (list, tuple)):
        kinds = set(map(type, value))
        if kinds <= {int} or (kinds == {float} and all(map(math.isfinite, value))):  # most of a rollout, so it is fast
            return list(value)
        return [plain(item) for item in value]
    if isinstance(value, (dict, Mapping)):
        return {plain(str(name)): plain(value[name]) for name in sorted(value, key=str)}
    if isinstance(value, numbers.Integral):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file; null comes back as NaN, and a last line without its end (a kill) is left out."""
    return [{name: math.nan if item is None else item for name, item in row.items()} for _, row in read_rows(path)]


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and JSON object of each whole line of a file; any other line is an error that names its number."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise MissingInputError(str(path), "cannot be read", f"{error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(str(path), "is not UTF-8", f"({error.reason} at byte {error.start})") from None
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}", "is no JSON object", "Each line holds one.")
        yield number, row


def rollout_rows(groups: Sequence[Group], advantages: Advantages) -> Iterator[dict[str, Any]]:
    """One record per rollout; the problem (messages, answer, prompt tokens) stands on the first record of its group.

    `tokens`, `sampled_logp` and `policy_logp` run over all turns in order, null where a turn has none; `turns` says how
    they are cut: by, count of tokens, versions.
    """
    for group in groups:
        for place, rollout in enumerate(group.rollouts):
            row = _row(group, rollout)
            if place == 0:
                row["problem"] = _problem(group)
            if group.id in advantages:
                row["advantage"] = advantages[group.id][place]
            yield row


def read_groups(path: Path) -> list[Group]:
    """The groups of a file of rollouts, as they were."""
    groups: dict[str, Group] = {}
    for number, row in read_rows(path):
        try:
            if "problem" in row:
                groups[row["group"]] = _group(row)
            group = groups[row["group"]]
            groups[row["group"]] = group.with_(rollouts=(*group.rollouts, _rollout(row)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}:{number}", "is no rollout", f"({type(error).__name__}: {error})") from None
    return list(groups.values())


def _row(group: Group, rollout: Rollout) -> dict[str, Any]:
    key, turns = rollout.key, rollout.turns
    row: dict[str, Any] = {
        "group": group.id,
        "prompt": key.prompt,
        "index": key.index,
        "visit": key.visit,
        "parent": key.parent,
        "at": key.at,
        "text": rollout.text,
        **({"thought": rollout.thought} if rollout.thought else {}),
        "tokens": [token for turn in turns for token in turn.tokens],
        "sampled_logp": [p for turn in turns for p in turn.sampled_logp or [None] * len(turn.tokens)],
        "turns": [_cut(turn) for turn in turns],
        "stop": rollout.stop.value,
        "limit": rollout.limit,
        "rewards": rollout.rewards,
        "failures": rollout.failures,
        "facts": rollout.facts,
        "detail": rollout.detail,
    }
    if any(turn.policy_logp is not None for turn in turns):
        row["policy_logp"] = [p for turn in turns for p in turn.policy_logp or [None] * len(turn.tokens)]
    return row


def _cut(turn: Turn) -> dict[str, Any]:
    cut: dict[str, Any] = {"by": turn.by, "count": len(turn.tokens), "versions": [list(run) for run in turn.versions]}
    if turn.extra:
        cut["extra"] = turn.extra
    return cut


def _problem(group: Group) -> dict[str, Any]:
    prompt = group.prompt
    return {
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "answer": prompt.answer,
        "task": prompt.task,
        "meta": prompt.meta,
        "tokens": list(group.prompt_tokens),
    }


def _group(row: Mapping[str, Any]) -> Group:
    problem = row["problem"]
    messages = tuple(Message(item["role"], item["content"]) for item in problem["messages"])
    prompt = Prompt(row["prompt"], messages, problem["answer"], problem["task"], problem["meta"])
    return Group(row["group"], prompt, tuple(problem["tokens"]), ())


def _rollout(row: Mapping[str, Any]) -> Rollout:
    turns, start = [], 0
    for cut in row["turns"]:
        span = slice(start, start + cut["count"])
        start = span.stop
        turns.append(
            Turn(
                tokens=tuple(row["tokens"][span]),
                sampled_logp=_logp(row["sampled_logp"][span]),
                by=cut["by"],
                versions=tuple((count, version) for count, version in cut["versions"]),
                policy_logp=_logp(row["policy_logp"][span]) if "policy_logp" in row else None,
                extra=cut.get("extra", {}),
            )
        )
    return Rollout(
        key=RolloutKey(row["prompt"], row["index"], row["visit"], row["parent"], row["at"]),
        turns=tuple(turns),
        stop=Stop(row["stop"]),
        limit=row["limit"],
        text=row["text"],
        thought=row.get("thought", ""),
        rewards=row["rewards"],
        failures=row["failures"],
        facts=row["facts"],
        detail=row["detail"],
    )


def _logp(values: Sequence[float | None]) -> tuple[float, ...] | None:
    """A turn without log-probabilities is all null; a single null is one that was not finite."""
    if all(value is None for value in values):
        return None
    return tuple(math.nan if value is None else value for value in values)
