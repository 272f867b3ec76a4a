"""The table of metric names: every metric that the code writes is in it, with unit and meaning."""

import ast
import re
from pathlib import Path

import pytest

import covey
from covey.observe.names import TABLE, describe, markdown, split_clocks, trl_names, unknown

SOURCE = Path(covey.__file__).parent
WRITERS = ("collect", "stages", "gradient.py", "run.py", "loop.py", "engines", "sft.py")


def written_names():
    """Keys `stage/quantity` of dictionaries in the modules that report metrics; a formatted part stands as `x`."""
    for writer in WRITERS:
        place = SOURCE / writer
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for key in node.keys if isinstance(node, ast.Dict) else ():
                    if isinstance(key, ast.JoinedStr):
                        parts = [part.value if isinstance(part, ast.Constant) else "x" for part in key.values]
                        name = "".join(parts)
                    else:
                        name = key.value if isinstance(key, ast.Constant) else None
                    if isinstance(name, str) and re.fullmatch(r"[a-z]+/[a-z_@0-9]+", name):
                        yield path.name, name


def test_every_metric_that_is_written_is_in_the_table():
    found = sorted(set(written_names()))
    assert ("grouped.py", "reward/mean") in found
    assert [(file, name) for file, name in found if describe(name) is None] == []


def test_every_name_of_the_table_is_written():
    """A name with `*` stands for names that recipes, tasks and evaluations make."""
    sources = [
        path for writer in WRITERS for path in [SOURCE / writer, *(SOURCE / writer).rglob("*.py")] if path.is_file()
    ]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    made = {"penalty/kl"}  # the general form of a penalty's name
    assert [e.name for e in TABLE if "*" not in e.name and f'"{e.name}"' not in text and e.name not in made] == []


def test_names_are_unique_and_have_a_meaning():
    names = [entry.name for entry in TABLE]
    assert len(set(names)) == len(names)
    for entry in TABLE:
        assert re.fullmatch(r"(step|lr|[a-z]+/[a-z_@^*]+)", entry.name), entry.name
        assert len(entry.meaning) > 10
        assert "*" not in entry.trl or "*" in entry.name


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("reward/mean", "reward/mean"),
        ("reward/correct", "reward/*"),
        ("eval/accuracy", "eval/accuracy*"),
        ("eval/pass@4_se_L2", "eval/pass@*"),
        ("eval/class_atom_L2_newpairs", "eval/class_*"),
        ("penalty/kl", "penalty/kl"),
        ("time/sample_s", "time/*"),
    ],
)
def test_a_name_is_described_by_its_own_entry_or_the_nearest_pattern(name, entry):
    assert describe(name).name == entry


def test_unknown_names_are_told():
    assert unknown(["reward/mean", "rewards/mean", "foo"]) == ["rewards/mean", "foo"]


def test_clocks_are_kept_from_what_has_to_be_equal():
    values = {"reward/mean": 1.0, "time/step_s": 0.1, "memory/rss_mb": 300.0}
    assert split_clocks(values) == ({"reward/mean": 1.0}, {"time/step_s": 0.1, "memory/rss_mb": 300.0})


def test_trl_names():
    values = {"reward/mean": 0.5, "reward/correct": 0.25, "clip/low": 0.1, "entropy/sampled": 1.0, "admit/kept": 1.0}
    assert trl_names(values) == {
        "reward": 0.5,
        "rewards/correct/mean": 0.25,
        "clip_ratio/low_mean": 0.1,
        "entropy": 1.0,
    }


def test_the_table_as_markdown_has_a_row_for_every_name():
    assert markdown().count("\n") == len(TABLE) + 2
