"""The configuration: values, YAML, layers and their origin, errors, schema."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from covey import recipes
from covey.config import RunConfig, resolve
from covey.config.layers import list_keys
from covey.config.nearest import slips, suggest
from covey.config.schema import COMPONENTS, json_schema, list_options, list_rows
from covey.config.text import read, read_value, write
from covey.errors import ConfigError, CoveyError, MissingInputError
from covey.random import Draws
from covey.registry import kinds
from covey.stages.surrogates import Clip

ROOT = Path(__file__).resolve().parents[1]


def line_of(*flags: str, file: Path | None = None) -> str:
    """The one line that a mistake gives."""
    with pytest.raises(CoveyError) as caught:
        resolve(flags, file=file)
    line = str(caught.value)
    assert "\n" not in line
    return line


def put(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    """A file with a text."""
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


# Values and layers


def test_nothing_said_gives_the_default_recipe_on_the_embedded_model() -> None:
    config = resolve().config
    assert config.recipe == recipes.get(recipes.DEFAULT)
    assert (config.model.path, config.task.kind, config.reward) == ("tiny", "compose", None)
    assert config.name == f"{recipes.DEFAULT}-compose"


def test_dotted_keys_reach_every_part() -> None:
    flags = [
        "recipe=grpo",
        "recipe.surrogate.high=0.3",
        "recipe.penalties.kl.coef=1e-3",
        "budget.samples_per_prompt=4",
        "budget.optimizer.lr=1e-4",
        "budget.sampling.stop=[a, b]",
        "task.levels=[1, 2]",
        "engines.threads=2",
        "model.dtype=float64",
        "seed=7",
    ]
    config = resolve(flags).config
    surrogate, penalty = config.recipe.surrogate, config.recipe.penalties[0]
    assert isinstance(surrogate, Clip)
    assert (surrogate.low, surrogate.high, penalty.coef) == (0.2, 0.3, 0.001)  # type: ignore[attr-defined]
    assert (config.budget.samples_per_prompt, config.budget.optimizer.lr, config.budget.seed) == (4, 1e-4, 7)
    assert config.budget.sampling.stop == ("a", "b")
    assert config.task.levels == (1, 2)  # type: ignore[attr-defined]
    assert (config.engines.threads, config.model.dtype) == (2, "float64")


def test_order_of_settings_never_matters() -> None:
    flags = ["recipe.surrogate.high=0.3", "recipe=dapo", "recipe.surrogate=clip", "steps=3"]
    found = {resolve(order).config.digest for order in itertools.permutations(flags)}
    assert len(found) == 1
    config = resolve(flags).config
    assert config.recipe.name == "dapo"
    assert config.recipe.surrogate == Clip(high=0.3)  # the kind's defaults, then the option


def test_later_layers_win_and_say_where_from(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    put(model, "budget:\n  steps: 11\n  prompts_per_step: 5\n  seed: 3\nengines: {threads: 2}\n", "covey.yaml")
    file = put(tmp_path, f"model: {model}\nbudget:\n  steps: 22\n  prompts_per_step: 6\nrecipe: grpo\n")
    found = resolve(["steps=33", "recipe.surrogate.low=0.1"], file=file)
    budget = found.config.budget
    assert (budget.steps, budget.prompts_per_step, budget.seed, budget.samples_per_prompt) == (33, 6, 3, 8)
    assert found.config.engines.threads == 2
    assert found.origin("budget.steps") == "flag"
    assert found.origin("budget.prompts_per_step") == f"{file}:4"
    assert found.origin("budget.seed") == f"model {model}"
    assert found.origin("budget.samples_per_prompt") == "default"
    assert found.origin("recipe.surrogate.low") == "flag"
    assert found.origin("recipe.surrogate.high") == f"{file}:5"
    assert found.origin("name") == "default"


def test_a_flag_may_replace_what_a_file_only_edits(tmp_path: Path) -> None:
    file = put(tmp_path, "recipe.surrogate.high: 0.3\ntask: {kind: compose, levels: [1]}\n")
    config = resolve(["recipe=dapo", "task=countdown"], file=file).config
    assert config.recipe == recipes.get("dapo")
    assert config.task.kind == "countdown"


def test_a_file_and_a_flag_are_judged_together(tmp_path: Path) -> None:
    file = put(tmp_path, "recipe: {surrogate: {kind: policy_gradient}}\n")
    assert resolve(["recipe.ratio=null"], file=file).config.recipe.ratio is None
    assert "recipe.ratio" in line_of(file=file)


def test_a_file_may_write_a_recipe_in_four_ways(tmp_path: Path) -> None:
    want = recipes.get("grpo").but(**{"surrogate.high": 0.3})
    texts = [
        "recipe: grpo\nrecipe.surrogate.high: 0.3\n",
        "recipe: {name: grpo, surrogate: {high: 0.3}}\n",
        "recipe: {name: grpo, surrogate: {kind: clip, low: 0.2, high: 0.3}}\n",
        write({"recipe": want.plain()}),
    ]
    for number, text in enumerate(texts):
        assert resolve(file=put(tmp_path, text, f"{number}.yaml")).config.recipe == want


def test_a_recipe_of_no_known_name_is_read_from_its_dump(tmp_path: Path) -> None:
    mine = recipes.get("grpo").but(name="mine", **{"surrogate.high": 0.5})
    assert resolve(file=put(tmp_path, write({"recipe": mine.plain()}))).config.recipe == mine


def test_data_means_the_task_of_rows() -> None:
    task = resolve(["data=mine.jsonl", "task.held_share=0.5"]).config.task
    assert (task.kind, task.data, task.held_share) == ("rows", "mine.jsonl", 0.5)  # type: ignore[attr-defined]


def test_a_required_option_may_come_as_a_dotted_key() -> None:
    assert resolve(["task=rows", "task.data=mine.jsonl"]).config.task.kind == "rows"


def test_python_values_are_objects_too() -> None:
    recipe = recipes.get("dapo").but(**{"surrogate.low": 0.1})
    config = resolve(values={"recipe": recipe, "steps": 3, "budget.optimizer.lr": 1e-4, "model": Path("m")}).config
    assert config.recipe == recipe
    assert (config.budget.steps, config.budget.optimizer.lr, config.model.path) == (3, 1e-4, "m")
    assert resolve(["recipe.surrogate.high=0.4"], values={"recipe": recipe}).config.recipe == recipe.but(
        **{"surrogate.high": 0.4}
    )


# YAML


@pytest.mark.parametrize("name", recipes.names())
def test_yaml_out_and_in_is_the_same_configuration(name: str, tmp_path: Path) -> None:
    config = resolve([f"recipe={name}", "budget.optimizer.lr=1e-7", "name=x.1", "reward=number"]).config
    file = put(tmp_path, config.write_yaml())
    assert resolve(file=file).config == config
    assert RunConfig.of(read(config.write_yaml(), "text")[0]) == config
    assert resolve(file=file).config.digest == config.digest


def test_yaml_is_sorted_as_the_fields() -> None:
    data, _ = read(resolve().config.write_yaml(), "text")
    assert list(data) == list(RunConfig.model_fields)
    assert list(data["budget"])[:3] == ["steps", "prompts_per_step", "samples_per_prompt"]


SCALARS = {
    "1e-3": 0.001, "1E5": 1e5, "-2.5e+3": -2500.0, ".5": 0.5, "5.": 5.0, "+7": 7, "-7": -7, "0": 0, "1_000": 1000, "3": 3,
    "true": True, "false": False, "null": None, "~": None,
    "no": "no", "on": "on", "yes": "yes", "1:30": "1:30", "010": "010", "0x10": "0x10", "2024-01-01": "2024-01-01",
    "1e": "1e", "e5": "e5", "1__0": "1__0", "a.jsonl": "a.jsonl", ".": ".", "tiny": "tiny", "=": "=",
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_scalars_are_what_people_mean(text: str, value: Any) -> None:
    for found in (read_value(text, "flag"), read(f"a: {text}\n", "file")[0]["a"]):
        assert (found, type(found)) == (value, type(value))


def test_flag_values_that_are_text_stay_text() -> None:
    for text in ("a: b", "@x", "*x", "&x", "a #b", "C:\\x", "%", "!x", "|", "x,y", "?", "-"):
        assert read_value(text, "flag") == text
    assert read_value("[1, 1e-2, a]", "flag") == [1, 0.01, "a"]
    assert read_value("{a: 1}", "flag") == {"a": 1}
    assert read_value('"3"', "flag") == "3"


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), plain_data, min_size=1, max_size=4))
def test_any_plain_data_survives_yaml(data: dict[str, Any]) -> None:
    found = read(write(data), "text")[0]
    assert json.dumps(found) == json.dumps(data)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_other_readers_find_the_same_numbers(number: float) -> None:
    assert yaml.safe_load(write({"a": number}))["a"] == number  # YAML 1.1 reads what we write


BROKEN = {
    "steps: 3\n\tseed: 1\n": (":2:1", "spaces"),
    "budget:\n\tsteps: 1\n": (":2:1", "spaces"),
    "steps: [1\n": (":1:8", ""),
    "steps: 1\nsteps: 2\n": (":2:1", "occurs twice"),
    "budget: {steps: 1, steps: 2}\n": (":1:20", "occurs twice"),
    "a: &x 1\nb: *x\n": (":2:4", "aliases"),
    "a: !!python/object:os.system 1\n": (":1:4", "tags"),
    "? [a]\n: 1\n": (":1:3", "name"),
    "": ("", "empty"),
    "# nothing\n": ("", "empty"),
    "- 1\n": ("", "a list"),
    "just text\n": ("", "only"),
    "a: 1\n---\nb: 2\n": (":2:1", ""),
    "a: \x07\n": ("", ""),
    "[" * 3000: ("", "deep"),
}


@pytest.mark.parametrize("text", BROKEN)
def test_broken_yaml_says_line_and_column(text: str, tmp_path: Path) -> None:
    file = put(tmp_path, text)
    place, words = BROKEN[text]
    line = line_of(file=file)
    assert line.startswith(f"{file}{place}: ")
    assert words in line


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="No such file"):
        resolve(file=tmp_path / "nope.yaml")
    with pytest.raises(MissingInputError, match="directory"):
        resolve(file=tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="byte 9 is not UTF-8"):
        resolve(file=tmp_path / "latin.yaml")


# Errors

MISTAKES = {
    "stpes=3": "stpes: there is no such key. Did you mean 'steps'?",
    "lr=1e-3": "Did you mean 'budget.optimizer.lr'?",
    "learning_rate=1": "learning_rate: there is no such key. It is called 'budget.optimizer.lr' here.",
    "group_size=8": "It is called 'budget.samples_per_prompt' here.",
    "budget.optimizer.rl=1": "Did you mean 'budget.optimizer.lr'?",
    "budget.steps.x=1": "budget.steps.x: there is no such key",
    "recipe.surrogate.hgih=0.3": "recipe.surrogate.hgih: clip has no field 'hgih'. Did you mean 'high'?",
    "recipe=dpo": "recipe: there is no recipe 'dpo'. Did you mean 'gdpo'?",
    "recipe=7": "recipe: got 7. Give a name; `covey recipes list` shows what there is.",
    "recipe.weighting=token_maen": "there is no weighting 'token_maen'. Did you mean 'token_mean'?",
    "recipe.penalties.kl.coef=1": "recipe.penalties.kl: no member of kind 'kl'",
    "task=countdwon": "task: there is no task 'countdwon'. Did you mean 'countdown'?",
    "task.lvels=[1]": "task.lvels: task 'compose' has no option 'lvels'. Did you mean 'task.levels'?",
    "task.levels=[99]": "task.levels.0: got 99. Input should be less than or equal to 8.",
    "reward=numbr": "reward: there is no reward 'numbr'. Did you mean 'number'?",
    "reward.x=1": "reward.x: the run has no reward of its own. Name one first: reward=KIND.",
    "steps=abc": "budget.steps: got 'abc'. Input should be a valid integer",
    "steps=1.5": "budget.steps: got 1.5. Input should be a valid integer",
    "model.thinking=true": "model.thinking: got True. Give two tags such as [<think>, </think>]; a switch is in",
    "steps=true": "budget.steps: got True. Input should not be true or false.",
    "steps=null": "budget.steps: got None. Input should be a valid integer.",
    "steps=0": "budget.steps: got 0. Input should be greater than or equal to 1.",
    "budget.optimizer.lr=.inf": "budget.optimizer.lr: got inf. Input should be a finite number.",
    "budget.optimizer.lr=-1": "budget.optimizer.lr: got -1. Input should be greater than 0.",
    "budget.optimizer.betas=[0.9]": "budget.optimizer.betas",
    "budget.optimizer.betas=[0.9, 1.0]": "budget.optimizer.betas: got [0.9, 1.0]. Each has to be in [0, 1).",
    "budget.optimizer.schedule=cosin": "Did you mean 'cosine'?",
    "budget.sampling=3": "budget.sampling: got 3. It has keys: temperature",
    "budget.sampling.top_p=1.5": "budget.sampling.top_p: got 1.5",
    "budget.sampling.temperature=0": "budget.sampling.temperature: got 0",
    "budget.optimizer_steps_per_pass=64": "64 steps of whole groups out of 32 prompts_per_step. Use 1 to 32.",
    "budget.samples_per_prompt=1": "budget.samples_per_prompt: a group of one is its own baseline",
    "engines.threads=many": "engines.threads: got 'many'. Give a number from 1 to 4096, or auto.",
    "model.dtype=int8": "model.dtype: got 'int8'",
    "model=3": "model.path: got 3. Input should be a valid string.",
    "name=a/b": "name: got 'a/b'",
    "steps": "steps: not a setting. Write steps=VALUE.",
    "=3": "not a setting",
    "steps=": "steps: no value. Write steps=VALUE; null means none.",
    "budget.sampling.stop=[a": "budget.sampling.stop",
    "recipe.surrogate=[1, 2]": "recipe.surrogate: [1, 2] is no surrogate",
}


@pytest.mark.parametrize("flag", MISTAKES)
def test_a_mistake_is_one_line_with_the_remedy(flag: str) -> None:
    line = line_of(flag)
    assert MISTAKES[flag] in line
    assert len(re.sub(r"test_\w+(, )?", "", line)) < 400  # kinds that other tests made up are listed too


PAIRS = {
    ("recipe=dapo", "recipe=grpo"): "recipe: given twice. Give one of them.",
    ("steps=3", "budget.steps=3"): "budget.steps: 'steps' says the same thing. Give one of them.",
    ("data=a.jsonl", "task=compose"): "task: 'data' says the same thing. Give one of them.",
    ("budget.optimizer.schedule=cosine", "budget.optimizer.warmup_steps=1000"): "leave none for the schedule",
}


@pytest.mark.parametrize("flags", PAIRS)
def test_settings_that_contradict_each_other(flags: tuple[str, str]) -> None:
    assert PAIRS[flags] in line_of(*flags)


def test_mistakes_in_a_file_name_its_line(tmp_path: Path) -> None:
    file = put(tmp_path, "recipe: grpo\nbudget:\n  seed: 1\n  steps: none\n")
    assert line_of(file=file).startswith(f"{file}:4: budget.steps: got 'none'.")
    file = put(tmp_path, "recipe: grpo\nbuget:\n  steps: 1\n")
    assert f"{file}:3: buget.steps: there is no such key. Did you mean 'budget.steps'?" in line_of(file=file)
    file = put(tmp_path, "task: {kind: compose, levels: [0]}\n")
    assert line_of(file=file).startswith(f"{file}:1: task.levels.0")
    assert line_of("steps=0", file=file).startswith((f"{file}:1: ", "budget.steps"))


def test_a_model_may_only_set_what_suits_it(tmp_path: Path) -> None:
    put(tmp_path, "reward: evil.py:f\n", "covey.yaml")
    assert "a model may only set its budget and engines" in line_of(f"model={tmp_path}")


def test_one_slip_in_a_key_is_understood() -> None:
    """At least 95 % of 200 random one-edit typos of real keys get the right suggestion."""
    draws = Draws(0, "typos")
    real = {*list_keys(), "recipe.surrogate.high", "recipe.advantage.eps"}
    mine = ("", "clip", "group_norm", "compose", "constant", "weighted_sum")
    absent = ("recipe.penalties", "reward")
    rows = [row.path for row in (*list_rows(), *list_options()) if row.kind in mine and not row.path.startswith(absent)]
    keys = ["recipe", "model", "task", "data", "reward", "steps", "seed", *rows]
    right = total = 0
    while total < 200:
        key = draws.choice(keys)
        typo = slip(key, draws)
        if typo in real or "=" in typo or not typo:
            continue
        total += 1
        line = line_of(f"{typo}=1")
        meant = re.findall(r"Did you mean '([^']+)'", line) + re.findall(r"Known: ([a-z_]+)\.", line)
        right += any(key == word or key.endswith(f".{word}") or word in key.split(".") for word in meant)
    assert right >= 190, right


def slip(key: str, draws: Draws) -> str:
    """A key with one letter added, left out, replaced or swapped with its neighbour."""
    letters = "abcdefghijklmnopqrstuvwxyz_"
    at = draws.below(len(key))
    kind = draws.below(4)
    if kind == 0:
        return key[:at] + draws.choice(letters) + key[at:]
    if kind == 1:
        return key[:at] + key[at + 1 :]
    if kind == 2:
        return key[:at] + draws.choice(letters) + key[at + 1 :]
    return key[:at] + key[at + 1 : at + 2] + key[at : at + 1] + key[at + 2 :]


def test_slips_count_edits() -> None:
    pairs = {
        ("", ""): 0,
        ("a", ""): 1,
        ("ab", "ba"): 1,
        ("steps", "stpes"): 1,
        ("kitten", "sitting"): 3,
        ("ca", "abc"): 3,
    }
    assert {pair: slips(*pair) for pair in pairs} == pairs
    assert all(slips(b, a) == n for (a, b), n in pairs.items())


def test_settings_of_trl_are_refused_with_the_name_that_they_have_here() -> None:
    page = (Path(__file__).parents[1] / "docs" / "from-trl.md").read_text("utf-8")
    table = page.split("## Settings")[1].split("\n## ")[0]
    names = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split(" | ")[0])]
    here = {"model", "seed", "report_to"}  # the same name
    none = {"callbacks", "use_vllm"}  # no key of a run
    assert len(names) > 40
    for name in set(names) - here - none:
        assert suggest(name, list_keys()).startswith(("It is called", "Did you mean")), name
    assert suggest("delta", list_keys()) == "It is called 'recipe.surrogate.dual' here."
    assert suggest("budget.learning_rate", list_keys()) == "It is called 'budget.optimizer.lr' here."
    assert suggest("budget.eval_evry", list_keys()) == "Did you mean 'budget.eval_every'?"


def test_nothing_near_gives_the_way_out() -> None:
    assert suggest("zzzzzzzz", ["steps"]) == "See `covey config schema`."
    assert suggest("zz", [], "Nothing.") == "Nothing."


# Schema


def test_every_key_is_documented_with_range_and_default() -> None:
    rows = list_rows()
    assert len(rows) < 80
    assert len({row.path for row in rows}) == len(rows)
    for row in rows:
        assert row.description, row.path
        if "integer" in row.type or "number" in row.type:
            assert row.range or "[0, 1)" in row.description or row.path == "engines.threads", row.path
        if "integer" in row.type and row.path not in ("budget.seed",):
            assert row.unit, row.path
    data = {row.path: row.default for row in rows}
    assert data["budget.steps"] == 100
    assert data["budget.optimizer.betas"] == [0.9, 0.999]


def test_the_schema_knows_exactly_the_keys_of_the_dump() -> None:
    paths: set[str] = set()

    def walk(value: Any, path: str) -> None:
        component = path in COMPONENTS
        if isinstance(value, dict) and value and not component:
            for name, inner in value.items():
                walk(inner, f"{path}.{name}" if path else name)
        else:
            paths.add(path)

    absent = {"model.lora": "model.lora.rank=16", "budget.best": "budget.best.patience=3"} | {
        "engines.server": "engines.server.timeout_s=9"
    }
    walk(resolve(list(absent.values())).config.plain(), "")
    assert paths | set(absent) == {row.path for row in list_rows()}


def test_a_section_that_may_be_absent_is_there_with_its_first_key() -> None:
    assert resolve().config.model.lora is None
    lora = resolve(["model.lora.alpha=8"]).config.model.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.targets) == (16, 8.0, ("all-linear",))
    assert resolve(["model.lora=null"]).config.model.lora is None
    assert "no such key" in line_of("model.lora.rnk=8")
    assert "model.quantize: rounded weights cannot be trained" in line_of("model.quantize=nf4")


def test_absent_sections_are_read_back(tmp_path: Path) -> None:
    config = resolve(["model.lora.rank=4", "budget.best.metric=eval/pass@4"]).config
    assert resolve(file=put(tmp_path, config.write_yaml())).config == config
    assert resolve(["model.lora=null"], file=put(tmp_path, config.write_yaml())).config.model.lora is None


def test_every_option_of_every_component_is_listed() -> None:
    listed = {(row.path, row.kind) for row in list_options()}
    for path, stage in COMPONENTS.items():
        for kind, cls in kinds(stage).items():
            for name in cls.model_fields:
                assert {(f"{path}.{name}", kind), (f"{path}.{kind}.{name}", kind)} & listed, (path, kind, name)


def test_options_of_components_inside_components_are_listed_and_can_be_written() -> None:
    rows = {(row.path, row.kind) for row in list_options()}
    assert ("recipe.mix.shaping.soft_overlong.factor", "soft_overlong") in rows
    assert ("recipe.penalties.kl.weighting.unit", "rollout_mean") in rows
    settings = ["recipe=dapo", "recipe.mix.shaping.soft_overlong.factor=0.5"]
    assert resolve(settings).config.recipe.mix.shaping[0].factor == 0.5  # type: ignore[attr-defined]
    shaping = json_schema()["$defs"]["mix.weighted_sum"]["properties"]["shaping"]
    assert "#/$defs/shaping.soft_overlong" in json.dumps(shaping)


def test_every_key_is_read_somewhere() -> None:
    """An option nobody reads is an error."""
    code = "\n".join(
        file.read_text(encoding="utf-8")
        for file in (ROOT / "src" / "covey").rglob("*.py")
        if "recipes" not in file.parts and file.name not in ("schema.py", "nearest.py")
    )
    unread = [
        row.path
        for row in list_rows()
        if not row.path.startswith("recipe.") and not re.search(rf"\.{row.path.rpartition('.')[2]}\b", code)
    ]
    assert not unread


def test_json_schema_accepts_what_is_written() -> None:
    schema = json_schema()
    assert schema["$defs"]["surrogate.clip"]["properties"]["kind"] == {"const": "clip"}
    assert set(resolve().config.plain()) <= set(schema["properties"])
    assert {"steps", "seed", "data"} <= set(schema["properties"])
    refs = set(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(schema)))
    assert refs <= set(schema["$defs"])


def test_a_slip_in_a_name_from_elsewhere_is_understood() -> None:
    with pytest.raises(
        ConfigError, match=r"lerning_rate: .* Did you mean 'budget.optimizer.lr', known elsewhere as 'learning_rate'"
    ):
        resolve(["lerning_rate=1e-5"])
    with pytest.raises(ConfigError, match=r"See `covey config schema`"):
        resolve(["zzzzzzzzzz=1"])
