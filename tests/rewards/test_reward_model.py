"""The reward `reward_model`: values of a tiny random classifier, whatever the batch, and folders that cannot serve."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from covey.errors import CoveyError
from covey.registry import build, dump
from covey.rewards import RewardModel
from covey.rewards.model import load_judge
from covey.types import Message, Prompt, Rollout, RolloutKey, Score, Stop

LETTERS = "abcdefghijklmnopqrstuvwxyz .?:|"
TEMPLATE = "{{ '<s>' }}{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}|{% endfor %}"
LONGEST = 128


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_folder(folder: Path, *, labels: int = 1, pad: str | None = "<pad>", template: str | None = TEMPLATE) -> Path:
    """A classifier with random weights whose values are spread about 0, and a tokenizer of letters."""
    words = ["<unk>", "<s>", "</s>", "<pad>", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LONGEST, num_labels=labels, pad_token_id=None if pad is None else words.index(pad),
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("judge"))


PROMPT = Prompt("p/0", (Message("system", "be brief."), Message("user", "what is it?")), None, "rows")
TEXTS = [
    "",
    "a",
    "it is a cat.",
    "x" * 50,
    "a dog",
    "the sun and the moon.",
    "no",
    "b" * 80,
    "? ? ?",
    "it is a cat.",
] + ["word " * k for k in range(1, 7)]


def scores(reward: RewardModel, texts: list[str] = TEXTS, prompt: Prompt = PROMPT) -> list[Score]:
    rollouts = [Rollout(RolloutKey("p/0", place), (), Stop.END, 99, text) for place, text in enumerate(texts)]
    return asyncio.run(reward.score(prompt, rollouts))


def by_hand(folder: Path, text: str, messages: tuple[Message, ...] = PROMPT.messages) -> list[float]:
    """The classifier's logits by its parts: the head on the hidden state of the last token of one unpadded row."""
    words = {word: place for place, word in enumerate(["<unk>", "<s>", "</s>", "<pad>", *LETTERS])}
    said = "".join(f"{m.role[0]}:{m.content}|" for m in (*messages, Message("assistant", text)))
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        hidden = model.model(torch.tensor([[1, *(words[letter] for letter in said)]])).last_hidden_state[0, -1]
        return [float(value) for value in model.score(hidden)]


def test_the_value_is_the_logit_at_the_last_token(folder: Path) -> None:
    found = [result.values["preference"] for result in scores(RewardModel(path=str(folder)))]
    assert found == pytest.approx([by_hand(folder, text)[0] for text in TEXTS], abs=1e-5)
    assert max(found) - min(found) > 0.1
    assert found[2] == pytest.approx(found[9], abs=1e-5)


@pytest.mark.parametrize("pad", ["<pad>", "</s>", None])
def test_the_value_does_not_depend_on_the_batch(tmp_path: Path, pad: str | None) -> None:
    path = str(make_folder(tmp_path, pad=pad))
    alone = [result.values["preference"] for result in scores(RewardModel(path=path, batch=1))]
    for batch in (3, 16):
        together = [result.values["preference"] for result in scores(RewardModel(path=path, batch=batch))]
        assert together == pytest.approx(alone, abs=1e-5)
    backwards = scores(RewardModel(path=path, batch=16), TEXTS[::-1])
    assert [result.values["preference"] for result in backwards][::-1] == pytest.approx(alone, abs=1e-5)
    assert scores(RewardModel(path=path, batch=16)) == scores(RewardModel(path=path, batch=16))
    assert load_judge(path, "float32", "cpu", "chat", None).pad == {"<pad>": 3, "</s>": 2, None: None}[pad]


def test_scale_shift_and_probability(folder: Path) -> None:
    logit = scores(RewardModel(path=str(folder)), ["a"])[0].values["preference"]
    scaled = scores(RewardModel(path=str(folder), scale=2.0, shift=-1.0), ["a"])[0].values["preference"]
    share = scores(RewardModel(path=str(folder), output="probability"), ["a"])[0].values["preference"]
    assert scaled == pytest.approx(2 * logit - 1)
    assert share == pytest.approx(1 / (1 + math.exp(-logit)))


def test_one_of_several_labels(tmp_path: Path) -> None:
    path = str(make_folder(tmp_path, labels=3))
    for label in range(3):
        logits = by_hand(tmp_path, "a cat")
        share = math.exp(logits[label]) / sum(math.exp(value) for value in logits)
        (odds,) = scores(RewardModel(path=path, label=label), ["a cat"])
        (probability,) = scores(RewardModel(path=path, label=label, output="probability"), ["a cat"])
        assert probability.values["preference"] == pytest.approx(share, abs=1e-5)
        assert odds.values["preference"] == pytest.approx(math.log(share / (1 - share)), abs=1e-4)


def test_what_is_too_long_fails_and_is_never_cut(folder: Path) -> None:
    found = scores(RewardModel(path=str(folder)), ["a", "a" * 200, "b"])
    assert [bool(result.failures) for result in found] == [False, True, False]
    assert "tokens, the reward model reads 128" in found[1].failures["preference"]
    assert found[1].values == {}
    assert [bool(r.failures) for r in scores(RewardModel(path=str(folder), max_tokens=40), ["a", "a" * 20])] == [
        False,
        True,
    ]
    assert scores(RewardModel(path=str(folder)), []) == []


def test_a_value_that_is_not_finite_fails(tmp_path: Path) -> None:
    make_folder(tmp_path)
    model = LlamaForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        model.score.weight.fill_(torch.inf)
    model.save_pretrained(tmp_path)
    (result,) = scores(RewardModel(path=str(tmp_path)), ["a"])
    assert (result.values, result.failures["preference"][:10]) == ({}, "nonfinite:")


def test_without_a_chat_template(tmp_path: Path) -> None:
    path = str(make_folder(tmp_path, template=None))
    with pytest.raises(CoveyError, match=r"no chat template\. Set reward\.template=plain"):
        scores(RewardModel(path=path))
    whole = scores(RewardModel(path=path, template="plain"), ["a cat"])
    split = Prompt("p/0", (Message("user", "be brief.what is it?a"),), None, "rows")
    assert scores(RewardModel(path=path, template="plain"), [" cat"], split) == whole


def test_a_template_that_raises_is_a_failure(tmp_path: Path) -> None:
    path = str(make_folder(tmp_path, template="{{ raise_exception('no system turns') }}"))
    (result,) = scores(RewardModel(path=path), ["a"])
    assert "no system turns" in result.failures["preference"]


def edit(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))


def break_folder(folder: Path, how: str) -> dict[str, Any]:
    """Spoil a good folder; further options for the reward."""
    if how == "pickled":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif how == "empty":
        (folder / "model.safetensors").unlink()
    elif how == "truncated":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "own code":
        edit(folder, model_type="mine", auto_map={"AutoModel": "mine.Model"})
    elif how == "unknown":
        edit(folder, model_type="mine")
    elif how == "causal":
        LlamaForCausalLM(LlamaForSequenceClassification.from_pretrained(folder).config).save_pretrained(folder)
    elif how == "two labels":
        edit(folder, id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})
    elif how == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
    return {"label": 1} if how == "label" else {}


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("pickled", 66, "its weights are pickled, which covey never opens"),
        ("empty", 66, "it has no weights"),
        ("truncated", 66, "it cannot be loaded"),
        ("no config", 66, "no readable config.json"),
        ("own code", 77, "needs code of its own (auto_map)"),
        ("unknown", 2, "no sequence classifier for 'mine'"),
        ("causal", 66, "its files hold no weight 'score.weight'"),
        ("two labels", 2, "reward.label: the model has 2 labels. Say which means good: 0 to 1."),
        ("label", 2, "reward.label: there is no label 1 of 1"),
        ("no tokenizer", 66, "its tokenizer cannot be loaded"),
    ],
)
def test_folders_that_cannot_serve(tmp_path: Path, how: str, code: int, line: str) -> None:
    make_folder(tmp_path)
    options = break_folder(tmp_path, how)
    with pytest.raises(CoveyError) as caught:
        scores(RewardModel(path=str(tmp_path), **options), ["a"])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == code


def test_there_is_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CoveyError, match="there is no such folder") as caught:
        RewardModel(path=str(tmp_path / "absent")).check(PROMPT)
    assert caught.value.exit_code == 66


def test_checks_do_not_load_weights_and_it_survives_a_dump(folder: Path) -> None:
    reward = RewardModel(path=str(folder), scale=0.5)
    assert build("reward", dump(reward), "reward") == reward
    before = load_judge.cache_info().misses
    reward.check(PROMPT)
    assert load_judge.cache_info().misses == before
    code = "import sys, covey.rewards; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "True" not in done.stdout.split()[1:]
