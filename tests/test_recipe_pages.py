"""The pages that are made of recipes: heads between their marks, tables, presets, the map of the family."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from covey import recipes
from covey.recipes.about import differences, name_method, parent_of

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import family_map  # noqa: E402  (scripts beside the pages)
import generate  # noqa: E402
import recipe_pages  # noqa: E402

METHODS = recipe_pages.methods()


def test_only_what_stands_between_the_marks_is_written() -> None:
    page = "before\n<!-- head -->\nold\n<!-- /head -->\nafter <!-- head --> mentioned\n"
    assert recipe_pages.between(page, "head", "new\\1\n") == page.replace("old\n", "new\\1\n")
    assert recipe_pages.between("no marks\n", "head", "new\n") == "no marks\n"


@pytest.mark.parametrize("name", METHODS)
def test_the_head_of_a_page(name: str, tmp_path: Path) -> None:
    head = recipe_pages.head(name, tmp_path)
    assert head.startswith(f"# {name}\n\n*")
    assert "curves" not in head
    for paper in re.findall(r"\d{4}\.\d{5}", recipes.describe(name).partition("):")[0]):
        assert f"(https://arxiv.org/abs/{paper})" in head
    for option in recipes.get(name).parts("advantage"):
        assert f"| **`advantage`** | `{option.kind}` |" in head
    if parent := parent_of(recipes.get(name)):
        assert f"[`{parent}`]({parent}.md)" in head
    shown = generate.on_page_markdown(head)
    assert shown.count("<math") == 1
    assert 'style="text-align: right"' in shown
    assert "$$" not in shown


def test_the_curve_stands_in_the_head_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "img" / "curves").mkdir(parents=True)
    (tmp_path / "img" / "curves" / "grpo.svg").touch()
    head = recipe_pages.head("grpo", tmp_path)
    assert "\n\n![learning curve](../img/curves/grpo.svg)\n\n| option |" in head
    assert "learning curve" not in recipe_pages.head("gspo", tmp_path)


def test_all_recipes_are_in_the_tables() -> None:
    index, peers = recipe_pages.index(), recipe_pages.peers()
    for name in recipes.names():
        assert f"[`{name}`]({recipe_pages.anchor(name)})" in index
        if "@" in name:
            assert f"\n## {name}\n" in peers
            base = name_method(name)
            for path in differences([recipes.get(base), recipes.get(name)]) if base in METHODS else ():
                assert f"| `{path}` |" in peers.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def test_the_table_of_changes() -> None:
    rows = {line.split("`")[1]: line for line in recipe_pages.changes().splitlines()[2:]}
    assert list(rows) == METHODS
    assert "`constant`" in rows["dr_grpo"]
    assert "`scale=none`" in rows["dr_grpo"]
    assert "no `kl`" in rows["dr_grpo"]
    assert "`high=0.28`" in rows["dapo"]
    assert rows["dapo"].count("|") == rows["grpo"].count("|") == len(recipe_pages.COLUMNS) + 3


def test_every_field_of_a_recipe_has_a_column() -> None:
    from covey.recipes.recipe import STAGES

    assert sorted(field for fields in recipe_pages.COLUMNS.values() for field in fields) == sorted(STAGES)


def test_all_methods_are_on_the_map() -> None:
    nodes = [name for box in family_map.NODES for name in box.split()]
    assert sorted(nodes) == METHODS
    assert {end for edge in family_map.EDGES for end in edge[:2]} == set(family_map.NODES)
    assert (ROOT / "docs" / "img" / "family.svg").read_text() == family_map.draw(), "run `make docs`"
