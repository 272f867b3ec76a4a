"""Folders of covey in transformers and peft: they load by their ordinary ways and say what covey's own engines say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from covey.engines.loading import load_model
from covey.engines.plain import plain_logits
from tests.interchange.made import MAX_TOKENS, Made, greedy

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("name", ["full/model", "merged"])
def test_transformers_generates_the_same_tokens(made: Made, name: str) -> None:
    folder = made.base.parent / name
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ours = greedy(folder)
    assert len({tokens for _, tokens in ours.values()}) > 1
    for text, (prompt, tokens) in ours.items():
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert tuple(chat["input_ids"]) == prompt
        found = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=MAX_TOKENS)
        assert tuple(found[0, len(prompt) :].tolist()) == tokens


@pytest.mark.parametrize("name", ["lora/model", "adapter"])
def test_peft_gives_the_same_logits(made: Made, name: str) -> None:
    folder = made.base.parent / name
    model, loaded = AutoPeftModelForCausalLM.from_pretrained(folder).eval(), load_model(folder)
    base = load_model(made.base)
    with torch.no_grad():
        for prompt, tokens in greedy(folder).values():
            sequence = [*prompt, *tokens]
            theirs = model(input_ids=torch.tensor([sequence])).logits[0]
            assert float((theirs - plain_logits(loaded.model, sequence)).abs().max()) <= 1e-5
            assert float((theirs - plain_logits(base.model, sequence)).abs().max()) > 0.1  # the adapter does something


def test_a_merged_model_says_what_its_adapter_says(made: Made) -> None:
    adapted, merged = load_model(made.adapter), load_model(made.merged)
    for prompt, tokens in greedy(made.adapter).values():
        gap = plain_logits(adapted.model, [*prompt, *tokens]) - plain_logits(merged.model, [*prompt, *tokens])
        assert float(gap.abs().max()) <= 1e-4
    assert not merged.adapted


def test_training_moved_all_of_them(made: Made) -> None:
    base = greedy(made.base)
    assert greedy(made.full / "model") != base
    assert greedy(made.adapter) != base


def test_folders_hold_what_readers_look_for(made: Made) -> None:
    common = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"}
    assert common | {"config.json", "model.safetensors"} <= names(made.merged)
    assert common | {"adapter_config.json", "adapter_model.safetensors"} <= names(made.adapter)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
