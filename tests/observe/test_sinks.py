"""What is written comes back, byte for byte the same for the same numbers, and can be cut back to a checkpoint."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.errors import DataError, MissingInputError
from covey.observe.records import plain, read_groups, read_records
from covey.observe.sinks import JsonlSink, RolloutSink, RunSink
from covey.types import Group, Message, Prompt, Rollout, RolloutKey, Stop, Turn

floats = st.floats(allow_nan=True, allow_infinity=False)


@given(st.dictionaries(st.text(), floats, max_size=5))
def test_numbers_come_back_with_every_digit(tmp_path_factory, record):
    path = tmp_path_factory.mktemp("sink") / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.append(record)
    sink.close()
    [found] = read_records(path)
    assert {k: repr(v) for k, v in found.items()} == {k: repr(v) for k, v in plain_names(record).items()}


def plain_names(record):
    return {name: record[name] for name in sorted(record)}


def test_lines_have_sorted_keys_and_nothing_but_json(tmp_path):
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.append(
        {"b": np.float32(0.1), "a": math.nan, "c": math.inf, "d": np.int64(3), "e": True, "f": {"z": 1, "y": 2}}
    )
    line = (tmp_path / "m.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "a": None,
        "b": 0.10000000149011612,
        "c": None,
        "d": 3,
        "e": True,
        "f": {"y": 2, "z": 1},
    }
    assert [*json.loads(line)] == sorted(json.loads(line))
    assert line.index('"y"') < line.index('"z"')
    assert line.endswith("\n")


def test_the_order_of_keys_does_not_change_the_bytes(tmp_path):
    one, two = JsonlSink(tmp_path / "1.jsonl"), JsonlSink(tmp_path / "2.jsonl")
    one.append({"step": 1, "loss/value": 1e-17, "reward/mean": 0.1 + 0.2})
    two.append({"reward/mean": 0.1 + 0.2, "loss/value": 1e-17, "step": 1})
    assert one.path.read_bytes() == two.path.read_bytes()


def test_a_sink_is_cut_back_to_an_offset_and_goes_on(tmp_path):
    path, whole = tmp_path / "m.jsonl", JsonlSink(tmp_path / "whole.jsonl")
    sink = JsonlSink(path)
    for step in range(3):
        sink.append({"step": step})
    offset = sink.offset
    sink.append({"step": "from a run that was killed"})
    sink.close()
    resumed = JsonlSink(path, start=offset)
    for step in range(3, 6):
        resumed.append({"step": step})
    resumed.truncate(resumed.offset)
    for step in range(6):
        whole.append({"step": step})
    assert path.read_bytes() == whole.path.read_bytes()
    assert resumed.offset == path.stat().st_size


def test_a_torn_last_line_is_not_read_and_a_torn_middle_is_an_error(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step":0}\n{"step":1}\n{"st')
    assert [row["step"] for row in read_records(path)] == [0, 1]
    path.write_text('{"step":0}\n{"st\n{"step":2}\n')
    with pytest.raises(DataError, match=r"m\.jsonl:2: is no JSON object"):
        read_records(path)
    path.write_bytes(b'{"a":"\xff"}\n')
    with pytest.raises(DataError, match="is not UTF-8"):
        read_records(path)
    with pytest.raises(MissingInputError):
        read_records(tmp_path / "none.jsonl")


def group(name="g1", texts=("a=b.", "\x1b[2J\ud800 «¬»\u2028")):
    prompt = Prompt("compose/1", (Message("system", "s"), Message("user", "A(abc)=")), "cba", "compose", {"level": 1})
    policy = Turn((5, 6), (-0.1, -1 / 3), versions=((1, 0), (1, 1)), policy_logp=(-0.2, -0.3))
    tool = Turn((9,), None, by="env", extra={"tool": "x"})
    last = Turn((7,), (-0.0,))
    rollouts = tuple(
        Rollout(
            RolloutKey("compose/1", index, visit=2, parent=None if index == 0 else 0, at=None if index == 0 else 3),
            (policy, tool, last),
            Stop.LENGTH,
            48,
            text=text,
            rewards={"correct": 1.0},
            failures={"judge": "timeout"},
            facts={"class": "atom", "trace_ok": False},
            detail="why",
        )
        for index, text in enumerate(texts)
    )
    return Group(name, prompt, (1, 2, 3), rollouts)


def test_groups_come_back_as_they_were(tmp_path):
    groups = [group(), group("g2", ("x",))]
    path = RolloutSink(tmp_path / "rollouts").write(12, groups)
    assert path.name == "step-000012.jsonl"
    found = read_groups(path)
    surrogate_free = groups[0].rollouts[1].with_(text="\x1b[2J\ufffd «¬»\u2028")
    assert found == [groups[0].with_(rollouts=(groups[0].rollouts[0], surrogate_free)), groups[1]]


def test_a_line_says_what_a_reader_wants_to_know(tmp_path):
    path = RolloutSink(tmp_path).write(0, [group()], {"g1": (0.5, -0.5)})
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["advantage"] for row in rows] == [0.5, -0.5]
    assert rows[0]["tokens"] == [5, 6, 9, 7]
    assert rows[0]["sampled_logp"] == [-0.1, -1 / 3, None, -0.0]
    assert rows[0]["turns"][1] == {"by": "env", "count": 1, "extra": {"tool": "x"}, "versions": []}
    assert rows[0]["problem"]["answer"] == "cba"
    assert "problem" not in rows[1]
    assert (rows[1]["prompt"], rows[1]["index"], rows[1]["stop"], rows[1]["parent"]) == ("compose/1", 1, "length", 0)


def test_a_step_is_written_over_and_later_steps_are_forgotten(tmp_path):
    sink = RolloutSink(tmp_path)
    for step in (0, 1, 2, 11):
        sink.write(step, [group(), group("g2")])
    sink.write(1, [group("g3")])
    assert [g.id for g in read_groups(sink.steps()[1])] == ["g3"]
    sink.truncate(2)
    assert list(sink.steps()) == [0, 1, 2]


def test_a_line_that_is_no_rollout_is_named(tmp_path):
    path = RolloutSink(tmp_path).write(0, [group()])
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text(lines[1] + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"step-000000\.jsonl:1: is no rollout"):
        read_groups(path)


def test_a_run_keeps_clocks_apart_and_goes_back_to_a_checkpoint(tmp_path):
    sink = RunSink(tmp_path / "run")
    marks = []
    for step in range(4):
        sink.write("step", {"step": step, "reward/mean": step / 3, "time/step_s": 0.1, "memory/rss_mb": 1})
        sink.write_rollouts(step, [group()], {"g1": (0.0, 1.0)})
        marks.append((sink.offsets(), (tmp_path / "run" / "metrics.jsonl").read_bytes()))
    sink.write("eval", {"step": 4, "eval/accuracy": 0.5})
    sink.write("save", {"step": 4, "time/save_s": 0.1})
    assert read_records(tmp_path / "run" / "timings.jsonl")[-1] == {"step": 4, "kind": "save", "time/save_s": 0.1}
    assert read_records(tmp_path / "run" / "metrics.jsonl")[-1] == {"step": 4, "eval/accuracy": 0.5}
    sink.truncate(marks[1][0], step=1)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == marks[1][1]
    assert len(read_records(tmp_path / "run" / "timings.jsonl")) == 2
    assert list(sink.rollouts.steps()) == [0, 1]
    sink.close()


def test_plain_refuses_what_is_no_data():
    with pytest.raises(TypeError):
        plain({"a": object()})
