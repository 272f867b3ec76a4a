"""The table of problems: what is added, what is refused, and what comes back from disk."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.errors import DataError, MissingInputError
from covey.evaluate.table import (
    Origin,
    Tally,
    join_spans,
    merge,
    merge_tables,
    read_origin,
    read_table,
    write_table,
)


def tally(problem="p1", start=0, stop=8, correct=3, **more):
    return Tally(id=problem, set="L2", level=2, samples=((start, stop),), correct=correct, **more)


def test_disjoint_samples_of_a_problem_add_up():
    first = [tally(tokens=80, truncated=1, classes={"atom": 5, "correct": 3}), tally("p2")]
    second = [tally("p3"), tally(start=8, stop=12, correct=4, tokens=20, failed=1, classes={"correct": 4})]
    merged = merge(first, second)
    assert [row.id for row in merged] == ["p1", "p2", "p3"]
    row = merged[0]
    assert (row.n, row.correct, row.samples) == (12, 7, ((0, 12),))
    assert (row.tokens, row.truncated, row.failed) == (100, 1, 1)
    assert row.classes == {"atom": 5, "correct": 7}


def test_the_same_sample_counts_once_or_is_refused():
    with pytest.raises(DataError, match=r"L2/p1: sample 7 is counted twice"):
        merge([tally()], [tally(start=7, stop=9)])
    with pytest.raises(DataError):
        tally() + tally("p2", start=8, stop=9)


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_spans_join_as_sets_do(one, two):
    def spans(indices):
        return tuple((i, i + 1) for i in indices)

    if one & two:
        with pytest.raises(DataError):
            join_spans(spans(one), spans(two))
    else:
        joined = join_spans(spans(one), spans(two))
        assert [i for start, stop in joined for i in range(start, stop)] == sorted(one | two)
        assert all(a[1] < b[0] for a, b in pairwise(joined))


def test_a_table_comes_back_from_disk(tmp_path):
    table = (
        tally(classes={"ignored": 1}),
        tally("naïve «p»\u2028", start=4, correct=0),
        tally("p3", stop=0, correct=0),
    )
    write_table(tmp_path / "table.jsonl", table)
    assert read_table(tmp_path / "table.jsonl") == table
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().split("\n")[:-1]]
    assert rows[0] | {"id": "p1", "set": "L2", "level": 2, "n": 8, "correct": 3} == rows[0]


def test_a_table_without_sample_indices_starts_at_0(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"id": "p", "set": "s", "level": null, "n": 3, "correct": 1}\n')
    assert read_table(tmp_path / "t.jsonl")[0].samples == ((0, 3),)


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{",
        "{}",
        '{"id": "p", "set": "s", "level": 1, "n": 3, "correct": 4}',
        '{"id": "p", "set": "s", "level": 1, "n": 3, "correct": 1, "samples": [[0, 2]]}',
        '{"id": "p", "set": "s", "level": 1, "n": 3, "correct": 1, "colour": 1}',
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line):
    write_table(tmp_path / "t.jsonl", [tally()])
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"t\.jsonl:2: "):
        read_table(tmp_path / "t.jsonl")


def test_a_missing_table_is_a_missing_input(tmp_path):
    with pytest.raises(MissingInputError):
        read_table(tmp_path / "none.jsonl")


def origin(**changes):
    return Origin(
        **{"model": "m", "weights": "w1", "asked": {"seed": 0, "temperature": 1.0}, "main_set": "L2", **changes}
    )


def test_answers_add_up_and_are_lost_where_a_part_has_none():
    one, two = tally(answers={"7": (5, 3), "x": (2, 0)}), tally(start=8, stop=16, answers={"7": (4, 3), "y": (1, 0)})
    assert (one + two).answers == {"7": (9, 6), "x": (2, 0), "y": (1, 0)}
    assert (one + tally(start=8, stop=16)).answers is None


def test_answers_and_origin_come_back_from_disk(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = (tally(answers={"7": (5, 3), "漢": (1, 0)}), tally("p2"))
    write_table(path, rows, origin())
    assert read_table(path) == rows
    assert read_origin(path) == origin()
    write_table(path, rows)
    assert (read_table(path), read_origin(path)) == (rows, None)


def test_a_table_of_before_still_reads(tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_text('{"id": "p", "set": "L", "level": null, "n": 4, "correct": 1}\n')
    assert read_table(path)[0].answers is None
    assert read_origin(path) is None


@pytest.mark.parametrize(
    "answers", ['{"a": [5, 1]}', '{"a": [1, 2]}', '{"a": [2, 2]}', '{"a": [0, 0]}', '{"a": 3}', "[1]"]
)
def test_answers_that_do_not_fit_the_counts_are_refused(tmp_path, answers):
    path = tmp_path / "odd.jsonl"
    path.write_text(f'{{"id": "p", "set": "L", "level": null, "n": 4, "correct": 1, "answers": {answers}}}\n')
    with pytest.raises(DataError, match=r"odd\.jsonl:1"):
        read_table(path)


def test_tables_are_merged_only_if_they_belong_together(tmp_path):
    def write(name, start, **changes):
        path = tmp_path / name
        write_table(path, [tally(start=start, stop=start + 8)], origin(**changes))
        return path

    first, second = write("a", 0), write("b", 8, model="copy of m")
    assert merge_tables([first, second]) == ((tally(stop=16, correct=6),), origin())
    with pytest.raises(DataError, match="sample 0 is counted twice"):
        merge_tables([first, first])
    with pytest.raises(DataError, match="other weights"):
        merge_tables([first, write("c", 8, weights="w2")])
    with pytest.raises(DataError, match=r"was asked with seed 1, .* with 0"):
        merge_tables([first, write("d", 8, asked={"seed": 1, "temperature": 1.0})])
    bare = tmp_path / "bare"
    write_table(bare, [tally(start=8, stop=16)])
    assert merge_tables([bare, first])[1] == origin()


def test_a_damaged_origin_is_a_row_that_is_none(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"origin": {"modell": "m"}}\n')
    with pytest.raises(DataError, match=r"odd\.jsonl:1: is no row"):
        read_table(path)
