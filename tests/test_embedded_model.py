"""The embedded model: what ships, whether its card is true, and whether the script makes the same thing again."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from covey.config.layers import read_model_layer
from covey.engines.loading import render
from covey.errors import CoveyError, DivergedError
from covey.files import fault
from covey.models import find_model, list_models
from covey.models.card import write_card, write_curve
from covey.models.make_tiny import COLD, Making, adjust, check, list_faults, main, train
from covey.models.measure import measure
from covey.models.vocabulary import CHARACTERS, SPECIAL, build_tokenizer
from covey.sft import load
from covey.tasks.compose import tiny
from covey.types import Message

torch.set_num_threads(1)
FOLDER = Path(find_model("tiny"))
RECORD = json.loads((FOLDER / "figures.json").read_text())
ROLES = ("system", "user", "assistant", "tool")


def short(making: Making, steps: int = 3) -> Making:
    return replace(making, plan=making.plan.model_copy(update={"steps": steps, "batch": 8}))


@pytest.mark.parametrize("name", list_models())
def test_a_plain_transformers_folder_of_the_promised_size(name: str) -> None:
    folder = Path(find_model(name))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "qwen3"
    assert 100_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 1_000_000
    assert model.config.vocab_size == len(tokenizer) == len(SPECIAL) + len(CHARACTERS)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == SPECIAL.index("<|end|>")
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())


def test_all_models_together_stay_within_four_megabytes() -> None:
    files = [path for name in list_models() for path in Path(find_model(name)).rglob("*")]
    assert "tiny" in list_models()
    assert sum(path.stat().st_size for path in files) <= 4_000_000


def test_names_of_embedded_models_lead_into_the_package_and_others_stay() -> None:
    assert (Path(find_model("tiny")) / "config.json").is_file()
    assert find_model("./tiny") == "./tiny"
    assert find_model("organisation/model") == "organisation/model"


def test_the_tokenizer_is_one_token_per_character_and_loses_nothing() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for text in (CHARACTERS, "B(E(abcd))=", "a  b\n\n c", " 3 7 25>79= ", ""):
        ids = tokenizer.encode(text)
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
        assert build_tokenizer().encode(text) == ids
    assert tokenizer.decode(tokenizer.encode("é")) == "<|unknown|>"


def test_the_chat_template_is_short_and_append_only() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.decode(render(tokenizer, [Message("user", "B(E(abcd))=")])) == "<|user|>B(E(abcd))=<|assistant|>"
    chat = [{"role": role, "content": f"text of {role}"} for role in (*ROLES, "user", "assistant")]
    rendered = [tokenizer.apply_chat_template(chat[:n], tokenize=False) for n in range(1, len(chat) + 1)]
    for shorter, longer in pairwise(rendered):
        assert longer.startswith(shorter)
    before = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert rendered[2] == before + "text of assistant" + tokenizer.eos_token


@pytest.mark.parametrize("name", list_models())
def test_the_card_says_what_the_figures_say(name: str) -> None:
    folder = Path(find_model(name))
    record = json.loads((folder / "figures.json").read_text())
    assert (folder / "README.md").read_text() == write_card(record)
    assert (folder / "curve.svg").read_text() == write_curve(record["curve"])
    assert list_faults(record["figures"], cold=name == "tiny_cold") == []
    assert fault(folder) == ""


def test_the_warm_model_starts_unsure_and_says_what_it_has_seen() -> None:
    assert RECORD["figures"]["compose/L2"]["accuracy"] <= 0.35
    assert RECORD["figures"]["compose/L2"]["mixed"] >= 0.5
    assert "eight composed pairs" in (FOLDER / "README.md").read_text()


def test_the_cold_model_knows_functions_and_nothing_of_composing_them() -> None:
    record = json.loads((Path(find_model("tiny_cold")) / "figures.json").read_text())
    assert record["origin"]["shares"]["bridge"] == 0
    assert record["figures"]["compose/L1"]["accuracy"] >= 0.97
    assert record["figures"]["compose/L2"]["accuracy"] <= 0.10


@pytest.mark.parametrize("name", list_models())
def test_the_weights_reach_the_figures_of_the_card(name: str) -> None:
    model, tokenizer = load(name)
    record = json.loads((Path(find_model(name)) / "figures.json").read_text())
    found = measure(model, tokenizer, sets=("compose/L1", "compose/held_L1", "compose/L2"))
    assert list_faults(record["figures"], cold=name == "tiny_cold") == []
    assert list_faults(found, cold=name == "tiny_cold") == []
    for key, row in found.items():
        assert row["accuracy"] == pytest.approx(record["figures"][key]["accuracy"], abs=0.02), key


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_check_measures_everything_again(name: str) -> None:
    assert check(Path(find_model(name))) == []


@pytest.mark.parametrize("name", list_models())
def test_the_budget_of_a_model_can_be_read(name: str) -> None:
    said = {".".join(item.path): item.value for item in read_model_layer(name)}
    assert said["budget.sampling.max_tokens"] == 48
    assert isinstance(said["budget.optimizer.lr"], float)


def test_the_same_seed_makes_the_same_weights_and_another_seed_others() -> None:
    weights = []
    for seed in (0, 0, 1):
        model, _, _ = train(replace(short(Making()), seed=seed))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_lessons_are_half_compose_and_never_use_test_strings() -> None:
    making, tasks = Making(), {"compose": 0, "arithmetic": 0, "countdown": 0}
    for index in range(400):
        prompt, response = making.lesson(index)
        tasks[prompt.task] += 1
        assert response.endswith(".")
        if prompt.task == "compose":
            assert not tiny.is_test_string(prompt.meta["input"])
    assert tasks == {"compose": 200, "arithmetic": 100, "countdown": 100}
    total = sum(making.examples.values())
    assert total == making.plan.steps * making.plan.batch
    assert making.examples["compose"] == 96_000
    assert making.lesson(7) == making.lesson(7)


def test_cold_lessons_never_show_two_functions_together() -> None:
    for index in range(400):
        prompt, _ = COLD.lesson(index)
        if prompt.task == "compose":
            assert sum(name != "I" for name in prompt.meta["functions"]) == 1


def passing() -> dict[str, dict[str, float]]:
    sets = {"compose/L1": 0.98, "compose/held_L1": 0.96, "compose/L2": 0.3}
    return {name: {"accuracy": value, "mixed": 0.6} for name, value in sets.items()}


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("compose/L1", {"accuracy": 0.96}, "compose/L1 below"),
        ("compose/held_L1", {"accuracy": 0.94}, "compose/held_L1 below"),
        ("compose/L2", {"accuracy": 0.36}, "compose/L2 outside"),
        ("compose/L2", {"accuracy": 0.21}, "compose/L2 outside"),
        ("compose/L2", {"mixed": 0.49}, "mixed groups"),
    ],
)
def test_a_model_outside_the_limits_is_refused(name: str, change: dict[str, float], fault: str) -> None:
    figures = passing()
    assert list_faults(figures) == []
    figures[name] |= change
    assert [line.startswith(fault) for line in list_faults(figures)] == [True]


def test_the_next_attempt_plants_more_failures_for_a_model_that_is_too_good() -> None:
    figures, making = passing(), Making(planted=0.4)
    figures["compose/L2"]["accuracy"] = 0.5
    assert adjust(making, figures).planted == 0.45
    figures["compose/L2"]["accuracy"] = 0.1
    assert adjust(making, figures).planted == 0.35
    figures["compose/L1"]["accuracy"] = 0.5
    with pytest.raises(DivergedError, match="not learnt"):
        adjust(making, figures)


def test_the_script_refuses_a_used_folder_and_an_untrained_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path)]) == 2
    assert "not there yet" in capsys.readouterr().err
    assert main(["--check", str(tmp_path)]) == 2
    assert issubclass(DivergedError, CoveyError)
