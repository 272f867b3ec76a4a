"""`covey recipes`: the list, the explanation, the comparison, the formula, the code, and every mistake."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from covey import recipes
from covey.recipes.recipe import STAGES

Result = tuple[int, str, str]


@pytest.fixture
def covey_(covey_: Callable[..., Result]) -> Callable[..., Result]:
    """Run `covey recipes` in an empty folder: exit code, stdout, stderr."""
    return lambda *arguments: covey_("recipes", *arguments)


def test_recipes_are_listed_stage_by_stage(covey_: Callable[..., Result]) -> None:
    code, out, _ = covey_("list")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[:-2]}
    assert {name.rstrip("*") for name in rows} == {"recipe", *recipes.names()}
    assert f"{recipes.DEFAULT}*" in rows
    grpo = dict(zip(rows["recipe"], rows["grpo"], strict=True))
    assert (grpo["penalties"], grpo["weighting"], grpo["admit"]) == ("kl", "rollout_mean", "-")
    assert dict(zip(rows["recipe"], rows["dapo"], strict=True))["admit"] == "informative"
    assert covey_()[1] == out


def test_methods_are_listed_before_presets(covey_: Callable[..., Result]) -> None:
    names = [line.split()[0].rstrip("*") for line in covey_("list")[1].splitlines()[1:-2]]
    assert names == sorted(names, key=lambda name: ("@" in name, name))


def test_a_narrow_terminal_gets_two_tables_of_methods_and_of_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    from covey.cli import recipe_text

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    names = ("grpo", "dapo", "reinforce", "dr_grpo", "gfpo", "reinforce_plus_plus_baseline", "grpo@trl")
    lines = recipe_text.list_lines([recipes.get(name) for name in names])
    assert max(map(len, lines)) <= 110
    heads = [line.split()[1] for line in lines if line.startswith("recipe ")]
    assert heads == ["admit", "weighting", "mix", "weighting"]
    assert sum(line.startswith("dapo ") for line in lines) == 2
    assert sum(line.startswith("grpo@trl ") for line in lines) == 2


def test_the_list_as_json(covey_: Callable[..., Result]) -> None:
    listed = json.loads(covey_("list", "--json")[1])
    assert [item["name"] for item in listed] == recipes.names()
    for item in listed:
        parent, digest = item.pop("parent"), item.pop("digest")
        recipe = recipes.get(item["name"])
        assert recipes.Recipe.of(item) == recipe
        assert digest == recipe.digest
        assert parent is None or parent in recipes.names()


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_explained(covey_: Callable[..., Result], name: str) -> None:
    code, out, _ = covey_("explain", name)
    assert code == 0
    words = out.split()
    for part in (part for field in STAGES for part in recipes.get(name).parts(field)):
        assert part.kind in words
    for heading in ("Formula", "Options"):
        assert heading in words
    for paper in re.findall(r"arXiv (\d{4}\.\d{5})", recipes.describe(name).splitlines()[0]):
        assert f"arxiv.org/abs/{paper}" in words
    assert max(map(len, out.splitlines())) <= 200


@pytest.mark.parametrize("name", recipes.names())
def test_an_explanation_as_json(covey_: Callable[..., Result], name: str) -> None:
    recipe, told = recipes.get(name), json.loads(covey_("explain", name, "--json")[1])
    assert (told["digest"], told["description"]) == (recipe.digest, recipes.describe(name))
    assert {"title", "source", "papers", "idea", "use", "avoid", "watch"} <= set(told)
    assert recipes.Recipe.of({key: told[key] for key in recipes.Recipe.model_fields}) == recipe
    assert told["formula"][-1]["stage"] in ("loss", "objective")
    assert all(line["text"] and line["latex"] for line in told["formula"])
    assert all({"path", "value", "origin", "meaning"} == set(row) for row in told["options"])


def test_the_formula_as_latex(covey_: Callable[..., Result]) -> None:
    from latex2mathml.converter import convert

    out = covey_("explain", "grpo", "--latex")[1]
    assert out.startswith("\\begin{align*}\n")
    assert out.endswith("\n\\end{align*}\n")
    assert r"g_{n,t} &= \min\left(\rho_{n,t}" in out
    assert convert(out).count("<mtr>") == out.count("\n") - 2


@pytest.mark.parametrize("name", recipes.names())
def test_the_code_is_that_of_the_components_in_order(covey_: Callable[..., Result], name: str) -> None:
    code, out, _ = covey_("explain", name, "--code")
    assert code == 0
    heads = re.findall(r"^# ([a-z.]+): (\w+)", out, re.M)
    callable_ = [part.kind for part in recipes.get(name).components() if part.stage not in ("reference",)]
    assert [kind for place, kind in heads if "." not in place] == callable_
    for block in re.split(r"^# .*\n# .*:\d+\n", out, flags=re.M)[1:]:
        ast.parse(block)
    file, line = re.search(r"^# (\S+):(\d+)$", out, re.M).groups()  # type: ignore[union-attr]
    assert Path(file).read_text().splitlines()[int(line) - 1].lstrip().startswith(("def ", "@"))


def test_code_that_is_in_no_file_is_named() -> None:
    from covey.cli.recipe_text import code_parts
    from covey.registry import _REGISTRY
    from covey.stages.surrogates import Surrogate, component

    made: dict[str, type[Surrogate]] = {}
    exec("class Typed(base):\n    def __call__(self, log_ratio, live, batch): return 0", {"base": Surrogate}, made)
    component("surrogate", "typed_in")(made["Typed"])
    try:
        parts = [str(part) for part in code_parts(recipes.get("grpo").but(surrogate=made["Typed"]()))]
    finally:
        del _REGISTRY["surrogate"]["typed_in"]
    assert any(part.endswith("Typed.__call__: its source is in no file") for part in parts)


def test_recipes_side_by_side(covey_: Callable[..., Result]) -> None:
    code, out, _ = covey_("diff", "grpo", "dr_grpo", "dapo")
    assert code == 0
    head, *lines = [line.split() for line in out.splitlines()]
    assert head == ["grpo", "dr_grpo", "dapo"]
    rows = {line[0]: line[1:] for line in lines}
    assert rows["weighting"] == ["rollout_mean", "constant", "token_mean"]
    assert rows["surrogate.high"] == ["0.2", "0.2", "0.28"]
    assert rows["penalties.kl"] == ["kl", "-", "-"]
    assert "surrogate" not in rows
    assert "surrogate.low" not in rows
    told = json.loads(covey_("diff", "grpo", "dr_grpo", "dapo", "--json")[1])
    assert [row["path"].endswith(line[0]) for row, line in zip(told, lines, strict=True)] == [True] * len(lines)
    assert [".coef", "0.04", "-", "-"] in lines
    assert {"path": "surrogate.high", "values": {"grpo": 0.2, "dr_grpo": 0.2, "dapo": 0.28}} in told
    assert {"path": "penalties.kl", "values": {"grpo": "kl"}} in told


def test_a_run_is_compared(covey_: Callable[..., Result], tmp_path: Path) -> None:
    from covey.config import resolve

    (tmp_path / "runs" / "first-1").mkdir(parents=True)
    config = resolve(["recipe=dapo", "recipe.surrogate.high=0.3"]).config
    (tmp_path / "runs" / "first-1" / "run.yaml").write_text(config.write_yaml())
    lines = covey_("diff", "dapo", "runs/first-1")[1].splitlines()
    assert [line.split() for line in lines] == [["dapo", "runs/first-1"], ["surrogate.high", "0.28", "0.3"]]


def test_null_is_a_value_and_what_is_not_there_is_none(covey_: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "dual.yaml").write_text("name: grpo\nsurrogate: {dual: 3.0}\n")
    assert covey_("diff", "grpo", "dual.yaml")[1].splitlines()[-1].split() == ["surrogate.dual", "null", "3"]
    told = json.loads(covey_("diff", "grpo", "dual.yaml", "--json")[1])
    assert told == [{"path": "surrogate.dual", "values": {"grpo": None, "dual.yaml": 3.0}}]


def test_equal_recipes_have_no_difference(covey_: Callable[..., Result]) -> None:
    assert covey_("diff", "grpo", "grpo")[1] == "grpo, grpo: no difference in stages and options\n"
    assert json.loads(covey_("diff", "grpo", "grpo", "--json")[1]) == []


@pytest.mark.parametrize(
    "text", ["recipe: {name: dapo, surrogate: {high: 0.3}}\nsteps: 3\n", "name: dapo\nsurrogate:\n  high: 0.3\n"]
)
def test_a_file_is_compared_and_explained(covey_: Callable[..., Result], tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert [line.split() for line in covey_("diff", "dapo", "mine.yaml")[1].splitlines()] == [
        ["dapo", "mine.yaml"],
        ["surrogate.high", "0.28", "0.3"],
    ]
    lines = covey_("explain", "mine.yaml")[1].splitlines()
    assert lines[0].startswith("mine.yaml  DAPO")
    assert "Options (made from dapo; `covey recipes diff dapo mine.yaml`)" in lines
    told = json.loads(covey_("explain", "mine.yaml", "--json")[1])
    origin = {row["path"]: row["origin"] for row in told["options"]}
    assert (told["parent"], origin["surrogate.high"], origin["admit.informative"], origin["ratio"]) == (
        "dapo",
        "own to this dapo",
        "from dapo",
        "from grpo",
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("explain gropo", 2, "recipe: there is no recipe 'gropo'. Did you mean 'grpo'?"),
        ("diff grpo dapoo", 2, "recipe: there is no recipe 'dapoo'. Did you mean 'dapo'?"),
        ("diff grpo", 2, "covey recipes diff: 'grpo' alone. Give two or more."),
        ("explain", 2, "covey recipes explain: Missing argument 'NAME'. See `covey recipes explain --help`."),
        ("explain empty", 66, "empty: has no run.yaml. Give the folder of a run, such as runs/NAME-1."),
        ("explain none.yaml", 66, "none.yaml: cannot be read (No such file or directory). Give a YAML file."),
        ("explain other.yaml", 2, "other.yaml: holds no recipe. Give a run's settings with `recipe:`"),
        ("diff grpo wrong.yaml", 2, "recipe.surrogate.hgih: clip has no field 'hgih'. Did you mean 'high'?"),
        ("explain grpo --latex --json", 2, "covey recipes explain: more than one of --latex, --code, --json."),
        ("show grpo", 2, "covey recipes: No such command 'show'. See `covey recipes --help`."),
    ],
)
def test_mistakes_are_one_line(covey_: Callable[..., Result], tmp_path: Path, words: str, code: int, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.yaml").write_text("steps: 3\n")
    (tmp_path / "wrong.yaml").write_text("recipe: {name: grpo, surrogate.hgih: 1}\n")
    found, out, err = covey_(*words.split())
    assert (found, out) == (code, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
