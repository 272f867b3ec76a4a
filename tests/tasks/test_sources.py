"""Where rows are: every format gives the same rows, every mistake is one line with its place, and no code of the data is run."""

from __future__ import annotations

import csv
import datetime
import decimal
import gc
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.errors import ConfigError, CoveyError, DataError, MissingInputError, RefusedError
from covey.tasks import Rows, arrow, from_rows
from covey.tasks.sources import FORMATS, give, hand_over, is_hub_id, read
from covey.types import Message

datasets.disable_progress_bars()
ROWS: list[dict[str, Any]] = [
    {"id": f"q{i}", "prompt": f'{i}+"1",\nor\t{i}?', "answer": str(i + 1), "topic": "sums, é"} for i in range(12)
]
CHATS = [{"prompt": [{"role": "user", "content": f"{i}?"}], "answer": str(i), "level": i} for i in range(12)]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


def write_cells(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "d.jsonl": write_jsonl,
    "d.ndjson": write_jsonl,
    "d.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "lines.json": write_jsonl,
    "d.csv": write_cells,
    "d.tsv": lambda path: write_cells(path, "\t"),
    "d.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "D.PARQUET": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "d.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    "splits": lambda path: datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    task, plain = Rows(data=str(tmp_path / name)), from_rows(ROWS)
    assert [task.train(5, i) for i in range(30)] == [plain.train(5, i) for i in range(30)]
    assert task.held_out(0) == plain.held_out(0)
    assert task.digest == plain.digest


def test_a_folder_in_hub_layout(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    table = datasets.Dataset.from_list(CHATS)
    table.select(range(8)).to_parquet(folder / "data/train-00000-of-00001.parquet")
    table.select(range(7, 12)).to_parquet(folder / "data/test-00000-of-00001.parquet")
    (folder / "README.md").write_text("# A card\n")
    task = Rows(data=str(folder), held_split="test", order="level")
    assert [task.train(0, i).answer for i in range(task.size)] == [str(i) for i in range(7)]
    assert task.notes() == (f"1 row of {folder} left out of training: their prompts are held out",)
    assert [prompt.answer for prompt in task.held_out(0)["held_out"]] == ["7", "8", "9", "10", "11"]
    assert task.train(0, 0).conversational
    assert task.train(0, 0).messages == (Message("user", "0?"),)
    assert Rows(data=str(folder), split="test", held_share=0).size == 5


def test_several_files_by_a_pattern(tmp_path: Path) -> None:
    for part in range(3):
        rows = ROWS[part * 4 : part * 4 + 4]
        (tmp_path / f"part{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Rows(data=f"{tmp_path}/part*.jsonl").digest == from_rows(ROWS).digest
    (tmp_path / "part9.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"part9.jsonl line 1: there is no column 'prompt'"):
        Rows(data=f"{tmp_path}/part*.jsonl").parts()
    with pytest.raises(MissingInputError, match="no file matches"):
        Rows(data=f"{tmp_path}/other*.jsonl").parts()


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=5))
def test_any_table_is_read_back(tmp_path_factory: pytest.TempPathFactory, cells: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("cells") / "d.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *cells])
    assert [row for _, row in read(str(path))] == [
        {name: cell or None for name, cell in zip("abc", row, strict=True)} for row in cells
    ]


def test_rows_of_a_table_stand_at_the_line_on_which_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('prompt,answer\n"a\nb",1\n\nc,2\n"d\n\ne",3\n')
    assert [where.removeprefix(str(path)) for where, _ in read(str(path))] == [" line 2", " line 5", " line 6"]


HEAD = b"prompt,answer\n"
FILES = [
    ("d.csv", HEAD + b"a,b\nc\n", "line 3: 1 cells, but the header names 2"),
    ("d.csv", HEAD + b'a,"b\n', "no table: unexpected end of data"),
    ("d.csv", HEAD + b"a,\xff\n", "line 2: byte 3 is not UTF-8"),
    ("d.csv", b"prompt,\n", "line 1: column 2 has no name"),
    ("d.csv", b"prompt,prompt\n", "line 1: column 'prompt' is there twice"),
    ("d.csv", b"", "it holds no rows"),
    ("d.csv", HEAD, "it holds no rows"),
    ("d.csv", HEAD + b"a,\n", "line 2: answer is null"),
    ("d.csv", b"prompt;answer\na;b\n", "line 2: there is no column 'prompt'. It has: prompt;answer."),
    ("d.tsv", b"prompt\tanswer\n\tb\n", "line 2: prompt is null"),
    ("d.json", b'[{"prompt": "a"},\n 3', "no JSON: Expecting ',' delimiter at line 2 column 3"),
    ("d.json", b'[{"prompt": "a", "answer": "b"}, 3]', "row 1: a row is an object, not a number"),
    ("d.jsonl", b'{"question": "a", "answer": "b"}', "It has: question, answer. Perhaps task.prompt_column=question."),
    (
        "d.jsonl",
        b'{"prompt": "a", "solution": "b"}',
        "no column 'answer'. It has: prompt, solution. Perhaps task.answer_",
    ),
    ("d.jsonl", b'{"prompt": "a", "answer": 1e999}', "line 1: column 'answer' holds inf"),
    ("d.jsonl.gz", b"nothing", "it is no whole gzip file"),
    ("d.jsonl.gz", gzip.compress(b'{"prompt": "a"}' * 99, mtime=0)[:-9], "it is no whole gzip file"),
    ("d.parquet", b"PAR1", "it cannot be read as Parquet"),
    ("d.txt", b"a\n", "its ending '.txt' names no format. Known: .jsonl, .ndjson, .json, .csv, .tsv, .parquet."),
]


@pytest.mark.parametrize(("name", "raw", "line"), FILES)
def test_mistakes_in_files_are_one_line(tmp_path: Path, name: str, raw: bytes, line: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError) as caught:
        Rows(data=str(tmp_path / name)).parts()
    assert line in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


VALUES = [
    (b"bytes", "row 0: column 'x' holds a value of type bytes. Turn it into text or numbers, or leave the column out"),
    (float("nan"), "row 0: column 'x' holds NaN"),
    ([1.0, {"y": float("-inf")}], "row 0: column 'x' holds -inf"),
    (decimal.Decimal("1.50"), "1.50"),
    (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
    (datetime.date(2026, 1, 2), "2026-01-02"),
    (np.arange(3), [0, 1, 2]),
    (np.float32(0.5), 0.5),
    (np.float64("nan"), "row 0: column 'x' holds NaN"),
    (np.str_("a"), "a"),
    ((1, (2, None)), [1, [2, None]]),
    ({1: 2}, "row 0: column 'x' holds an object with the key 1"),
    ({1, 2}, "row 0: column 'x' holds a value of type set"),
]


@pytest.mark.parametrize(("value", "wanted"), VALUES)
def test_values_become_plain_or_are_refused(value: Any, wanted: Any) -> None:
    rows = [{"prompt": "a", "answer": "b", "x": value}]
    if isinstance(wanted, str) and wanted.startswith("row"):
        with pytest.raises(DataError) as caught:
            from_rows(rows, held_share=0)
        assert str(caught.value).startswith(wanted)
    else:
        found = from_rows(rows, held_share=0).train(0, 0).meta["x"]
        assert (found, type(found)) == (wanted, type(wanted))


def test_values_of_parquet_name_their_row_and_column(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a", "b", "c"], "answer": ["1", "2", "3"], "x": [b"", None, b"y"], "y": [1, 2, 3]})
    pq.write_table(table.slice(1), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d.parquet row 1: column 'x' holds a value of type bytes"):
        Rows(data=str(tmp_path / "d.parquet")).parts()
    kept = Rows(data=str(tmp_path / "d.parquet"), keep_columns=["y"], held_share=0)
    assert {kept.train(0, i).meta["y"] for i in range(2)} == {2, 3}


def test_columns_inside_columns(tmp_path: Path) -> None:
    rows = [
        {
            "data_source": "gsm8k",
            "prompt": [{"role": "user", "content": f"{i}?", "name": None}],
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": i},
        }
        for i in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    data = str(tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"Perhaps task.answer_column=reward_model.ground_truth"):
        Rows(data=data).parts()
    columns = {"answer_column": "reward_model.ground_truth", "id_column": "extra_info.index"}
    task = Rows(data=data, held_share=0, order="-extra_info.index", **columns)
    shown = [task.train(0, i) for i in range(6)]
    assert [prompt.answer for prompt in shown] == ["5", "4", "3", "2", "1", "0"]
    assert [prompt.id for prompt in shown] == [f"rows/{i}" for i in reversed(range(6))]
    assert shown[0].meta["reward_model"] == {"style": "rule", "ground_truth": "5"}
    assert Rows(data=data, held_share=0, keep_columns=["data_source"], **columns).train(0, 0).meta == {
        "data_source": "gsm8k"
    }


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d.jsonl")
    datasets.DatasetDict(a=datasets.Dataset.from_list(ROWS), b=datasets.Dataset.from_list(ROWS)).save_to_disk(
        tmp_path / "two"
    )
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    cases = [
        ({"data": f"{tmp_path}/two"}, "there is no split 'train'. Splits: a, b; write task.split=NAME."),
        ({"data": f"{tmp_path}/two", "split": "a", "held_split": "test"}, "there is no split 'test'. Splits: a, b"),
        ({"data": f"{tmp_path}/one", "split": "b"}, "there is no split 'b'. It is a single table"),
        ({"data": f"{tmp_path}/d.jsonl", "split": "b"}, "a file has no split 'b'"),
        ({"data": f"{tmp_path}/two", "split": "a", "held_split": "b"}, "every prompt is held out too"),
    ]
    for fields, line in cases:
        with pytest.raises(DataError) as caught:
            Rows(**fields).parts()
        assert line in str(caught.value)


def test_folders_without_rows_and_with_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match="it holds no rows"):
        Rows(data=str(tmp_path / "empty")).parts()
    (tmp_path / "coded").mkdir()
    (tmp_path / "coded/coded.py").write_text("print('RAN')\nraise SystemExit\n")
    with pytest.raises(RefusedError, match="code of its own, which is never run"):
        Rows(data=str(tmp_path / "coded")).parts()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="the folder cannot be read"):
        Rows(data=str(tmp_path / "torn")).parts()
    assert capfd.readouterr() == ("", "")


def test_hub_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_hub_id("owner/name")
    assert is_hub_id("openai/gsm8k:main")
    assert not any(map(is_hub_id, ("name", "a/b/c", "./name", "a/b.jsonl", "a/b.csv.gz", "a/b:c:d", "/a/b", "")))
    monkeypatch.setattr(arrow, "hub_answers", lambda: False)
    with pytest.raises(MissingInputError, match="not in the local cache, and not to be had from the hub"):
        Rows(data="nobody/nothing").parts()
    asked: list[Any] = []

    def load(name: str, config: str | None) -> Any:
        asked.append((name, config, datasets.config.HF_HUB_OFFLINE))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))

    monkeypatch.setattr(arrow, "_is_cached", lambda name: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    before = datasets.config.HF_HUB_OFFLINE
    assert Rows(data="owner/name:small").digest == from_rows(ROWS).digest
    assert asked == [("owner/name", "small", True)]
    assert before == datasets.config.HF_HUB_OFFLINE

    def fail(name: str, config: str | None) -> Any:
        raise ValueError("BuilderConfig 'big' not found. Available: ['small']\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"BuilderConfig 'big' not found. Available: \['small'\]"):
        Rows(data="owner/name:big").parts()


def test_an_absent_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["d.parquet"](tmp_path / "d.parquet")
    monkeypatch.setattr(arrow.importlib.util, "find_spec", lambda name: None)
    for data in (str(tmp_path / "d.parquet"), str(tmp_path), "owner/name"):
        with pytest.raises(MissingInputError, match=r"needs `pip install covey\[data\]` \((pyarrow|datasets)\)"):
            Rows(data=data).parts()


def test_rows_from_python(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    frames = pytest.importorskip("pandas").DataFrame(ROWS)
    same = {from_rows(rows).digest for rows in (ROWS, iter(ROWS), tuple(ROWS), table, table.data.table, frames)}
    assert same == {from_rows(ROWS).digest}
    splits = datasets.DatasetDict(train=table.select(range(8)), test=table.select(range(8, 12)))
    task = from_rows(splits, held_split="test")
    assert (task.size, len(task.held_out(0)["held_out"])) == (8, 4)
    for rows, line in (
        (3, "int holds no rows"),
        ({"prompt": ["a"]}, "one object with prompt"),
        (b"x", "bytes holds no"),
    ):
        with pytest.raises(DataError, match=line):
            from_rows(rows)


def test_given_rows_are_found_by_what_they_are_as_long_as_they_are_used() -> None:
    kept = give(ROWS)
    assert give([dict(row) for row in ROWS]) is kept
    assert Rows(data=kept.handle).digest == from_rows(ROWS).digest
    assert Rows(data=kept.handle, held_share=0).size == 12
    assert give(ROWS[1:]).handle != kept.handle
    handle = kept.handle
    del kept
    gc.collect()
    with pytest.raises(MissingInputError, match="were given in Python and are not here"):
        Rows(data=handle).parts()


def test_what_data_says_for_values_from_python() -> None:
    assert hand_over(None) == (None, [])
    assert hand_over(Path("a/b.jsonl")) == ("a/b.jsonl", [])
    assert hand_over(["a.csv", Path("b.csv")]) == (["a.csv", "b.csv"], [])
    for wrong in ({"prompt": "a", "answer": "b"}, {"id": 3}):
        with pytest.raises(DataError, match=r"data: one object with .* or sources by name"):
            hand_over(wrong)
    said, (kept,) = hand_over({"mine": ROWS, "file": "x.jsonl"})
    assert said == {"mine": kept.handle, "file": "x.jsonl"}


def test_reading_uses_no_optional_library_for_plain_files() -> None:
    assert set(FORMATS) == {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}
    source = Path(arrow.__file__).with_name("sources.py").read_text()
    assert "pyarrow" not in "".join(line for line in source.splitlines() if "import " in line)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["d.csv", "d.json", "d.tsv", "d.jsonl.gz"]), st.binary(max_size=80) | st.text(max_size=60))
def test_any_file_gives_rows_or_one_line(tmp_path_factory: pytest.TempPathFactory, name: str, raw: bytes | str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / name
    body = raw.encode() if isinstance(raw, str) else raw
    path.write_bytes(gzip.compress(body) if name.endswith("gz") and isinstance(raw, str) else body)
    message = ""
    try:
        Rows(data=str(path), held_share=0).parts()
    except CoveyError as error:
        message = str(error)
    assert "\n" not in message


def test_one_way_to_hold_rows_out() -> None:
    with pytest.raises(ConfigError, match=r"task.held_share: held_data says already what is held out"):
        Rows(data="a.jsonl", held_data="b.jsonl", held_share=0.1)
    assert Rows(data="a.jsonl", held_split="test", held_share=0).held_share == 0
