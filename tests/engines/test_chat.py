"""What a user says of the conversation reaches the template, and thoughts are told from answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loading import TEMPLATE, WORDS, edit, make_tokenizer, save

from covey.engines.chat import Chat, split_thought
from covey.engines.loading import LoadedModel, ModelOptions, load_model
from covey.errors import ConfigError
from covey.types import Message

torch.set_num_threads(1)
ROLES = "{% for m in messages %}<|user|>{% if m.role == 'system' %}s{% endif %}{{ m.content }}{% endfor %}<|assistant|>"
SWITCH = TEMPLATE + "{% if enable_thinking is defined and enable_thinking is false %}<s></s>{% endif %}"
TAGS = ("<s>", "</s>")


def load(path: Path, template: str | None, *, special: bool = True, **chat: Any) -> LoadedModel:
    """A model of letters whose tokens <s> and </s> serve as thinking tags, special ones or not."""
    tokenizer = make_tokenizer(template=template, bos=False, eos="z")
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", *TAGS]})
    folder = save(path / "model", tokenizer)
    edit(folder / "generation_config.json", eos_token_id=2)
    return load_model(folder, options=ModelOptions(chat=Chat(**chat)))


def ids(text: str) -> tuple[int, ...]:
    """Token ids of letters and tags, separated by blanks where they are tags."""
    return tuple(WORDS.index(word) for piece in text.split() for word in ([piece] if piece in WORDS else piece))


def test_a_system_prompt_stands_in_front_of_conversations_without_one(tmp_path: Path) -> None:
    loaded = load(tmp_path, ROLES, system="ab")
    assert loaded.render([Message("user", "c")]) == ids("<|user|> s ab <|user|> c <|assistant|>")
    own = [Message("system", "d"), Message("user", "c")]
    assert loaded.render(own) == ids("<|user|> s d <|user|> c <|assistant|>")


def test_without_a_template_the_system_prompt_is_put_in_front(tmp_path: Path) -> None:
    assert load(tmp_path, None, system="ab").render([Message("user", "c")]) == ids("abc")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[-1].content }}", "model.system: the chat template leaves system prompts out"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages[0].content }}",
            "it raised TemplateError: no system role. Mend the template or the prompt's messages, or leave model.system out.",
        ),
    ],
)
def test_a_template_that_knows_no_system_role(tmp_path: Path, template: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, template, system="ab")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_variables_reach_the_template(tmp_path: Path) -> None:
    plain, off = load(tmp_path / "a", SWITCH), load(tmp_path / "b", SWITCH, template_kwargs={"enable_thinking": False})
    question = [Message("user", "ab")]
    assert off.render(question) == (*plain.render(question), *ids("<s> </s>"))


@pytest.mark.parametrize(
    ("template", "name", "text"),
    [
        (SWITCH, "enable_thinkin", "the chat template never reads it. Did you mean 'enable_thinking'?"),
        ("{{ messages }}", "enable_thinking", "the chat template never reads it. Leave it out."),
        (None, "enable_thinking", "the model has no chat template that could read them"),
        (SWITCH, "add_generation_prompt", "covey sets it itself"),
        (SWITCH, "tokenize", "covey sets it itself"),
    ],
)
def test_a_variable_that_nobody_reads_is_refused(tmp_path: Path, template: str | None, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=r"model.chat_template_kwargs") as caught:
        load(tmp_path, template, template_kwargs={name: False})
    assert text in str(caught.value)


OPENING = TEMPLATE + "<s>"
RESPONSES = [
    ("<s> ab </s> cd", "ab", "cd"),
    ("cd", "", "cd"),
    ("<s> ab", "ab", ""),
    ("ab </s> cd </s> e", "ab", "cd</s>e"),
    ("e <s> ab </s> cd", "ab", "cd"),
]
OPENED = [("ab </s> cd", "ab", "cd"), ("ab", "ab", ""), ("", "", ""), ("a <s> b </s> cd", "a<s>b", "cd")]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("template", "said", "thought", "text"),
    [*((TEMPLATE, *case) for case in RESPONSES), *((OPENING, *case) for case in OPENED)],
)
def test_thoughts_are_told_from_answers(
    tmp_path: Path, template: str, said: str, thought: str, text: str, special: bool
) -> None:
    """Whether the tags are special tokens, which decoding leaves out, or not; and where the prompt opens the thought."""
    loaded = load(tmp_path, template, special=special, thinking=TAGS)
    found = loaded.split(ids(said))
    assert tuple(part.replace(" ", "") for part in found) == (thought, text)
    assert (loaded.think(ids(said)), loaded.decode(ids(said))) == found


def test_an_empty_thought_in_the_prompt_is_not_open(tmp_path: Path) -> None:
    loaded = load(tmp_path, SWITCH, thinking=TAGS, template_kwargs={"enable_thinking": False})
    assert loaded.split(ids("cd")) == ("", loaded.decode(ids("cd")))
    assert loaded.decode(ids("cd")).replace(" ", "") == "cd"


def test_without_tags_nothing_is_a_thought(tmp_path: Path) -> None:
    loaded = load(tmp_path, TEMPLATE)
    assert loaded.think(ids("<s> ab </s> cd")) == ""
    assert loaded.decode(ids("<s> ab </s> cd")).replace(" ", "") == "abcd"


def test_two_equal_tags_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.thinking: .*Give two different tags"):
        load(tmp_path, TEMPLATE, thinking=("<s>", "<s>"))


def test_both_parts_lose_their_margins() -> None:
    assert split_thought("<think>\n so \n</think>\n\n 4 \n", ("<think>", "</think>"), opened=False) == ("so", "4")
    assert split_thought("  plain ", ("<think>", "</think>"), opened=False) == ("", "  plain ")


def test_a_run_and_its_evaluation_speak_alike(tmp_path: Path) -> None:
    """The options are the run's: rollouts hold the thought apart, and `covey eval RUN` renders the same prompts."""
    import covey
    from covey.assembly import load_policy
    from covey.config import resolve
    from covey.observe.records import read_groups

    settings = {
        "budget.prompts_per_step": 2,
        "budget.samples_per_prompt": 2,
        "budget.eval_problems": 1,
        "budget.eval_samples": 1,
        "budget.sampling.max_tokens": 24,
        "model.system": "(ab)",
        "model.thinking": ["f", "g"],
    }
    run = covey.train(steps=1, out=tmp_path / "run", quiet=True, **settings)
    loaded = load_policy(resolve(file=tmp_path / "run/run.yaml").config)
    [path] = sorted((tmp_path / "run/rollouts").glob("*1.jsonl"))
    for group in read_groups(path):
        assert group.prompt_tokens == loaded.render(group.prompt.messages)
        assert "(ab)" in loaded.tokenizer.decode(group.prompt_tokens)
        for rollout in group.rollouts:
            assert (rollout.thought, rollout.text) == loaded.split(rollout.turns[0].tokens)
    assert json.loads((run.folder / "machine.json").read_text())["config"] == run.config.digest
