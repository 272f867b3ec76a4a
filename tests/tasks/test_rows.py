"""A user's own rows: epochs, the held-out share, stable ids, and every mistake in the data as one line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.errors import ConfigError, CoveyError, DataError, MissingInputError
from covey.registry import build, dump
from covey.rewards import ExactMatch, FunctionReward
from covey.tasks import Rows, from_rows
from covey.types import Message, Rollout, RolloutKey, Stop

ROWS = [{"id": f"q{i}", "prompt": f"{i}+1?", "answer": i + 1, "topic": "sums"} for i in range(100)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rows_of_a_file(tmp_path: Path) -> None:
    task = Rows(data=write(tmp_path / "d.jsonl", ROWS))
    held = task.held_out(0)[task.main_set]
    assert task.size + len(held) == 100
    assert 3 <= len(held) <= 20
    prompt = task.train(0, 0)
    row = ROWS[int(prompt.id.removeprefix("rows/q"))]
    assert prompt.messages == (Message("user", str(row["prompt"])),)
    assert prompt.answer == str(row["answer"])
    assert dict(prompt.meta) == {"id": row["id"], "topic": "sums", "answer": row["answer"]}
    assert isinstance(task.reward, ExactMatch)
    (score,) = asyncio.run(
        task.reward.score(prompt, [Rollout(RolloutKey("x", 0), (), Stop.END, 9, prompt.answer or "")])
    )
    assert score.values == {"correct": 1.0}


def test_each_epoch_shows_every_training_row_once() -> None:
    task = from_rows(ROWS)
    held = {p.id for p in task.held_out(3)["held_out"]}
    epochs = [[task.train(1, e * task.size + i).id for i in range(task.size)] for e in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == task.size
        assert not set(epoch) & held
    assert epochs[0] != epochs[1] != epochs[2]
    assert [from_rows(ROWS).train(1, i).id for i in reversed(range(task.size))] == epochs[0][::-1]
    assert [task.train(2, i).id for i in range(task.size)] != epochs[0]
    assert task.held_out(0) == task.held_out(1)


def test_the_file_and_python_agree(tmp_path: Path) -> None:
    task = Rows(data=write(tmp_path / "d.jsonl", ROWS))
    assert [task.train(0, i) for i in range(50)] == [from_rows(ROWS).train(0, i) for i in range(50)]
    assert [task.train(0, i) for i in range(50)] == [from_rows(iter(ROWS)).train(0, i) for i in range(50)]


def test_new_rows_move_no_other_row() -> None:
    held = {p.id for p in from_rows(ROWS[:60]).held_out(0)["held_out"]}
    more = {p.id for p in from_rows(ROWS[::-1]).held_out(0)["held_out"]}
    assert {name for name in more if int(name.removeprefix("rows/q")) < 60} == held


def test_rows_without_ids_are_named_by_their_prompt_and_stay_together() -> None:
    rows = [{"prompt": f"p{i % 20}", "answer": str(i)} for i in range(60)]
    task = from_rows(rows, held_share=0.3)
    held = {p.messages for p in task.held_out(0)["held_out"]}
    shown = {task.train(0, i).messages for i in range(task.size)}
    assert held
    assert not held & shown
    names = [task.train(0, i).id for i in range(task.size)]
    assert len(set(names)) == task.size
    assert {p.id for p in from_rows(rows[::-1], held_share=0.3).held_out(0)["held_out"]} == {
        p.id for p in task.held_out(0)["held_out"]
    }


def test_shares_and_limits() -> None:
    assert from_rows(ROWS, held_share=0).held_out(0) == {}
    assert from_rows(ROWS, held_share=0).size == 100
    assert len(from_rows(ROWS, held_share=0.9, held_max=7).held_out(0)["held_out"]) == 7
    assert len(from_rows(ROWS[:2]).held_out(0)["held_out"]) == 1
    assert from_rows(ROWS[:2], held_share=0.99).size == 1
    with pytest.raises(DataError, match=r"the one prompt of python:\w+ cannot be split"):
        from_rows(ROWS[:1])


@settings(max_examples=50)
@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=30, unique=True), st.floats(0.01, 0.99))
def test_every_split_is_a_partition_with_both_sides(prompts: list[str], share: float) -> None:
    task = from_rows([{"prompt": text, "answer": "x"} for text in prompts], held_share=share)
    held, train = task.parts().held, task.parts().train
    assert held
    assert train
    assert sorted(p.messages[0].content for p in held + train) == sorted(prompts)


def test_messages_and_columns_of_other_names() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    task = from_rows(
        [{"q": messages, "gold": 1.5}, {"q": "Ho", "gold": "2"}], prompt_column="q", answer_column="gold", held_share=0
    )
    prompts = {task.train(0, i).answer: task.train(0, i) for i in range(2)}
    assert prompts["1.5"].messages == (Message("system", "Be brief."), Message("user", "Hi"))


def test_rewards_by_name_function_and_file(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def long(completion, topic): return len(completion) + len(topic)\n")
    data = write(tmp_path / "d.jsonl", [{"prompt": str(i), "topic": "ab"} for i in range(9)])
    task = Rows(data=data, reward=f"{tmp_path}/r.py:long")
    assert isinstance(task.reward, FunctionReward)
    (score,) = asyncio.run(task.reward.score(task.train(0, 0), [Rollout(RolloutKey("x", 0), (), Stop.END, 9, "abc")]))
    assert score.values == {"long": 5.0}
    again = build("task", dump(task), "task")
    assert again == task
    assert hash(again) == hash(task)
    assert from_rows(ROWS, reward=lambda completion: 1.0).size > 0
    with pytest.raises(ConfigError, match=r"task.reward: there is no reward 'exact_mach'"):
        Rows(data=data, reward="exact_mach")


GOOD = b'{"prompt": "a", "answer": "b"}\n'
MISTAKES = [
    (b"", DataError, "it holds no rows"),
    (b"\n  \n", DataError, "it holds no rows"),
    (b'{"question": "a", "answer": "b"}', DataError, "line 1: there is no column 'prompt'. It has: question, answer."),
    (GOOD + b'{"prompt": "c"}', DataError, "line 2: there is no column 'answer'. It has: prompt."),
    (b'{"prompt": null, "answer": "b"}', DataError, "line 1: prompt is null"),
    (b'{"prompt": 3, "answer": "b"}', DataError, "prompt is a number"),
    (b'{"prompt": "", "answer": "b"}', DataError, "prompt is empty"),
    (b'{"prompt": [], "answer": "b"}', DataError, "prompt is an empty list"),
    (b'{"prompt": {"a": 1}, "answer": "b"}', DataError, "prompt is an object"),
    (b'{"prompt": "a", "answer": ["b"]}', DataError, "answer is a list"),
    (b'{"prompt": "a", "answer": true}', DataError, "answer is a boolean"),
    (b'{"prompt": "a", "answer": null}', DataError, "answer is null"),
    (GOOD + b"\n" + b'{"prompt": "c", ', DataError, "line 3: no JSON"),
    (GOOD + b'{"prompt": "c"} x', DataError, "line 2: no JSON: Extra data at column 17"),
    (b'{"prompt": "c", "answer": NaN}', DataError, "NaN is no JSON value"),
    (b"[" * 100000, DataError, "line 1: no JSON"),
    (b'["a"]', DataError, "a row is an object, not a list"),
    (b"3", DataError, "a row is an object, not a number"),
    (GOOD + b'{"prompt": "\xff"}', DataError, "line 2: byte 13 is not UTF-8"),
    (b'{"prompt": "a", "answer": "b", "id": 1}\n' * 2, DataError, "line 2: id '1' was used before"),
    (b'{"prompt": "a", "answer": "b", "id": [1]}', DataError, "id is a list"),
    (
        b'{"prompt": [{"role": "human", "content": "a"}], "answer": "b"}',
        DataError,
        "prompt[0] has role 'human'. Roles are: system, user, assistant, tool.",
    ),
    (
        b'{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "answer": "b"}',
        DataError,
        "the last message of prompt is from the assistant",
    ),
    (b'{"prompt": [{"role": "user", "content": 3}], "answer": "b"}', DataError, "content of prompt[0] is a number"),
    (b'{"prompt": [{"role": "user"}], "answer": "b"}', DataError, "prompt[0] has keys role"),
    (b'{"prompt": ["a"], "answer": "b"}', DataError, "prompt[0] is text"),
]


@pytest.mark.parametrize(("raw", "error", "line"), MISTAKES)
def test_mistakes_are_one_line(tmp_path: Path, raw: bytes, error: type[CoveyError], line: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(raw)
    with pytest.raises(error) as caught:
        Rows(data=str(path)).parts()
    assert line in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="there is no such file"):
        _ = Rows(data=str(tmp_path / "absent.jsonl")).size
    with pytest.raises(MissingInputError, match="it holds no rows"):
        _ = Rows(data=str(tmp_path)).size


def test_mistakes_in_python_name_the_row() -> None:
    with pytest.raises(DataError, match="row 1: there is no column 'prompt'"):
        from_rows([ROWS[0], {"text": "a"}])
    with pytest.raises(DataError, match="row 0: a row is an object, not text"):
        from_rows(["a"])  # type: ignore[list-item]


def test_byte_order_marks_line_ends_and_odd_separators(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = [{"prompt": "a\u2028b", "answer": "x"}, {"prompt": "c", "answer": "y"}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    task = Rows(data=str(path), held_share=0)
    assert {task.train(0, i).messages[0].content for i in range(2)} == {"a\u2028b", "c"}


@settings(max_examples=200)
@given(st.binary(max_size=80) | st.text(max_size=60).map(str.encode))
def test_any_file_gives_rows_or_one_line(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "d.jsonl"
    path.write_bytes(raw)
    message = ""
    try:
        Rows(data=str(path), held_share=0).parts()
    except CoveyError as error:
        message = str(error)
    assert "\n" not in message


def test_order_is_the_documented_permutation() -> None:
    from covey.random import permutation

    task = from_rows(ROWS)
    order = permutation(task.size, 9, "rows", 2)
    assert [task.train(9, 2 * task.size + i) for i in range(task.size)] == [task.parts().train[i] for i in order]


def test_the_runs_own_reward_decides_whether_answers_are_needed(tmp_path: Path) -> None:
    from covey.config import resolve

    (tmp_path / "r.py").write_text("def short(completion): return -len(completion)\n")
    data = write(tmp_path / "d.jsonl", [{"prompt": f"{i}?"} for i in range(20)])
    settings = [f"data={data}", f"reward={tmp_path}/r.py:short"]
    config = resolve(settings).config
    assert config.task.train(0, 0).answer is None  # type: ignore[attr-defined]
    assert config.task.reward == config.reward  # type: ignore[attr-defined]
    assert resolve(values={"task": dump(config.task), "reward": dump(config.reward)}).config.task == config.task  # type: ignore[arg-type]
    with pytest.raises(DataError, match="there is no column 'answer'"):
        resolve(settings[:1]).config.task.train(0, 0)  # type: ignore[attr-defined]


def test_a_prompt_remembers_whether_it_was_text_or_messages() -> None:
    rows = [{"prompt": "a", "answer": "text"}, {"prompt": [{"role": "user", "content": "b"}], "answer": "messages"}]
    task = from_rows(rows, held_share=0)
    assert {task.train(0, i).answer: task.train(0, i).conversational for i in range(2)} == {
        "text": False,
        "messages": True,
    }


LEVELS = [{"id": i, "prompt": f"{i}?", "answer": "x", "level": i * 7 % 5, "name": "abcde"[i % 5]} for i in range(40)]


def shown(task: Rows, seed: int, epoch: int, column: str) -> list[Any]:
    return [task.train(seed, epoch * task.size + i).meta[column] for i in range(task.size)]


def test_the_first_epoch_follows_a_column_and_later_ones_are_shuffled() -> None:
    task = from_rows(LEVELS, held_share=0, order="level")
    assert shown(task, 3, 0, "level") == sorted(shown(task, 3, 0, "level"))
    assert shown(task, 3, 1, "level") != sorted(shown(task, 3, 1, "level"))
    ids = [[task.train(seed, i).id for i in range(40)] for seed in (3, 4)]
    assert sorted(ids[0]) == sorted(ids[1])
    assert ids[0] != ids[1]  # rows of one level are shuffled
    assert [task.train(3, i).id for i in reversed(range(40))] == ids[0][::-1]
    later = [from_rows(LEVELS, held_share=0).train(3, 40 + i) for i in range(40)]
    assert [task.train(3, 40 + i) for i in range(40)] == later


def test_the_order_goes_down_by_text_and_in_all_epochs() -> None:
    down = from_rows(LEVELS, held_share=0, order="-level", order_epochs="all")
    for epoch in range(3):
        assert shown(down, 0, epoch, "level") == sorted(shown(down, 0, epoch, "level"), reverse=True)
    assert [down.train(0, i).id for i in range(40)] != [down.train(0, 40 + i).id for i in range(40)]
    names = shown(from_rows(LEVELS, held_share=0, order="name"), 0, 0, "name")
    assert names == sorted(names)
    by_id = from_rows(LEVELS, held_share=0, order="id")
    assert [by_id.train(0, i).id for i in range(40)] == [f"rows/{i}" for i in range(40)]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"prompt": "a", "answer": "b"},
            "row 1: there is no column 'level'. task.order needs it. It has: prompt, answer.",
        ),
        ({"prompt": "a", "answer": "b", "level": None}, "row 1: level is null"),
        ({"prompt": "a", "answer": "b", "level": "3"}, "row 1: level is text, but a number in the first row"),
        ({"prompt": "a", "answer": "b", "level": [3]}, "row 1: level is a list"),
        ({"prompt": "a", "answer": "b", "level": True}, "row 1: level is a boolean"),
    ],
)
def test_a_column_that_gives_no_order(row: dict[str, Any], line: str) -> None:
    with pytest.raises(DataError) as caught:
        from_rows([{"prompt": "z", "answer": "b", "level": 1}, row], order="level", held_share=0)
    assert line in str(caught.value)


def test_held_out_rows_of_their_own(tmp_path: Path) -> None:
    data, own = write(tmp_path / "d.jsonl", ROWS[:30]), write(tmp_path / "h.jsonl", [*ROWS[40:45], *ROWS[3:5]])
    task = Rows(data=data, held_data=own)
    assert [prompt.id for prompt in task.held_out(0)["held_out"]] == [f"rows/q{i}" for i in (40, 41, 42, 43, 44, 3, 4)]
    assert task.size == 28
    assert {task.train(0, i).id for i in range(28)} == {f"rows/q{i}" for i in range(30)} - {"rows/q3", "rows/q4"}
    assert task.notes() == (f"2 rows of {data} left out of training: their prompts are held out",)
    assert Rows(data=data).notes() == ()
    with pytest.raises(MissingInputError, match=r"absent.jsonl: there is no such file"):
        Rows(data=data, held_data=str(tmp_path / "absent.jsonl")).parts()
    with pytest.raises(DataError, match=r"h.jsonl line 1: there is no column 'prompt'"):
        Rows(data=data, held_data=write(tmp_path / "h.jsonl", [{"q": 1}])).parts()


def test_a_prompt_under_several_ids_is_never_on_both_sides() -> None:
    rows = [{"id": i, "prompt": f"p{i % 25}", "answer": "x"} for i in range(100)]
    task = from_rows(rows, held_share=0.2)
    held = {prompt.messages for prompt in task.held_out(0)["held_out"]}
    assert held
    assert not held & {prompt.messages for prompt in task.parts().train}
    count = task.parts().left_out
    assert 0 < count == 100 - task.size - len(task.held_out(0)["held_out"])
    assert task.notes() == (f"{count} rows of {task.data} left out of training: their prompts are held out",)


def test_the_digest_says_what_was_read(tmp_path: Path) -> None:
    first = from_rows(ROWS).digest
    assert from_rows([dict(row) for row in ROWS]).digest == first
    assert from_rows(ROWS, held_share=0.5).digest != first
    changes: list[dict[str, Any]] = [{"prompt": "?"}, {"answer": "?"}, {"topic": "?"}, {"id": "?"}, {"more": 1}]
    others = [from_rows([*ROWS[:-1], {**ROWS[-1], **change}]).digest for change in changes]
    others += [from_rows(ROWS[:-1]).digest, from_rows(ROWS[::-1]).digest]
    assert len({first, *others}) == len(changes) + 3
    ordered = [[{**row, "level": at * sign} for at, row in enumerate(ROWS)] for sign in (1, -1)]
    up, down = (from_rows(rows, order="level", keep_columns=[]).digest for rows in ordered)
    assert up != down


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from covey.tasks import rows as module

    times: list[Any] = []
    plain = module.read_split
    monkeypatch.setattr(module, "read_split", lambda reading: times.append(reading) or plain(reading))
    data = write(tmp_path / "d.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    task = Rows(data="d.jsonl")
    for copy in (task, task.model_copy(update={"data": data}), task.model_copy()):
        assert copy.train(0, 0) == task.train(0, 0)
    assert len(times) == 1
    assert task == Rows(data="d.jsonl")
