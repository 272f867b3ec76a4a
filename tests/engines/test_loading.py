"""Models load from folders as they are found in the wild, and whatever is wrong with one is a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from covey.engines import folders, loading
from covey.engines.loading import LoadedModel, load_model
from covey.engines.sampler import HFSampler
from covey.engines.scorer import verify
from covey.errors import ConfigError, CoveyError, MissingInputError, RefusedError
from covey.types import Message, Request, Sampling

WORDS = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", *[chr(97 + at) for at in range(26)]]
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(
    *, template: str | None = TEMPLATE, bos: bool = False, eos: str | None = "</s>"
) -> PreTrainedTokenizerFast:
    """A tokenizer of letters; `bos`: it puts <s> in front of a text."""
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, bos_token="<s>" if bos else None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    if template:
        tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete model folder."""
    return save(tmp_path / "model", make_tokenizer())


def save(path: Path, tokenizer: PreTrainedTokenizerFast, name: str = "llama", **options: object) -> Path:
    """Write a tiny model in hub format."""
    make_model(name).save_pretrained(path, **options)
    tokenizer.save_pretrained(path)
    return path


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    value = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def ask(loaded: LoadedModel, text: str = "hello") -> list[int]:
    """What the model says to a user."""
    request = Request("a", loaded.render([Message("user", text)]), (1,))
    sampling = Sampling(max_tokens=10, stop_ids=loaded.stop_ids)
    [[sample]] = HFSampler(loaded.model, tokenizer=loaded.tokenizer).sample([request], sampling)
    return list(sample.turn.tokens)


def test_a_folder(folder: Path) -> None:
    loaded = load_model(folder)
    assert loaded.stop_ids == (2,)
    assert loaded.source == str(folder)
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert not loaded.model.training
    assert loaded.render([Message("user", "ab")]) == (3, 5, 6, 4)
    assert loaded.decode([5, 6, 2]).replace(" ", "") == "ab"
    assert verify(loaded.model, loaded.tokenizer) < 1e-4
    assert load_model(str(folder), dtype="float64").model.dtype == torch.float64


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit(folder / "generation_config.json", top_p=0.33, temperature=0.1)
    loaded = load_model(folder)
    verify(loaded.model, loaded.tokenizer)
    assert capfd.readouterr() == ("", "")


def test_generation_config_gives_stop_ids_and_nothing_else(folder: Path) -> None:
    before = load_model(folder)
    assert ask(before)
    poison = {
        "temperature": 0.01,
        "top_p": 0.33,
        "top_k": 1,
        "do_sample": True,
        "max_new_tokens": 1,
        "min_new_tokens": 9,
    }
    edit(
        folder / "generation_config.json",
        **poison,
        repetition_penalty=9.0,
        suppress_tokens=[5, 6],
        eos_token_id=[2, 30, 9],
    )
    after = load_model(folder)
    assert after.stop_ids == (2, 30, 9), "the tokenizer's first, then the generation config's, each once"
    request, sampling = Request("a", (3, 5), (7,)), Sampling(max_tokens=20)
    assert HFSampler(after.model).sample([request], sampling) == HFSampler(before.model).sample([request], sampling)


def test_without_chat_template_messages_are_put_together(tmp_path: Path) -> None:
    loaded = load_model(save(tmp_path / "m", make_tokenizer(template=None)))
    assert loaded.render([Message("system", "ab"), Message("user", "c")]) == (5, 6, 7)
    assert ask(loaded)


def test_there_is_one_bos(tmp_path: Path) -> None:
    plain = load_model(save(tmp_path / "a", make_tokenizer(template=None, bos=True)))
    assert plain.render([Message("user", "ab")]) == (1, 5, 6)
    templated = load_model(save(tmp_path / "b", make_tokenizer(template="<s>" + TEMPLATE, bos=True)))
    assert templated.render([Message("user", "ab")]) == (1, 3, 5, 6, 4)
    doubled = load_model(save(tmp_path / "c", make_tokenizer(template="<s><s>" + TEMPLATE, bos=True)))
    assert doubled.render([Message("user", "ab")]) == (1, 3, 5, 6, 4)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma", "qwen3_moe"])
def test_architectures_survive_the_disk(tmp_path: Path, name: str) -> None:
    """Tied and untied heads, pad == eos, no pad token."""
    loaded = load_model(save(tmp_path / name, make_tokenizer(), name))
    expected = make_model(name)
    for (key, a), b in zip(expected.named_parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(a, b), key
    assert loaded.tokenizer.pad_token is None
    verify(loaded.model, loaded.tokenizer)


def test_shards(tmp_path: Path) -> None:
    path = save(tmp_path / "m", make_tokenizer(), max_shard_size="40KB")
    shards = sorted(path.glob("*.safetensors"))
    assert len(shards) > 1
    load_model(path)
    shards[0].unlink()
    check(path, MissingInputError, f"the shard {shards[0].name} is missing")


def check(source: object, kind: type[CoveyError], text: str, **options: str) -> None:
    """Loading fails with one line of this kind."""
    with pytest.raises(kind) as caught:
        load_model(str(source), **options)
    line = str(caught.value)
    assert text in line
    assert "\n" not in line
    assert type(caught.value) is kind
    assert caught.value.exit_code == {MissingInputError: 66, RefusedError: 77}.get(kind, 2)
    assert caught.value.__cause__ is None


def truncate(path: Path) -> None:
    """Cut the weights in half."""
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop_weight(path: Path) -> None:
    """Leave out one tensor."""
    tensors = load_file(path / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def misshape(path: Path) -> None:
    """Give one tensor another shape."""
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def pickle_only(path: Path) -> None:
    """Nothing but a pickle."""
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def no_tokenizer(path: Path) -> None:
    for file in path.glob("tokenizer*"):
        file.unlink()


BROKEN: list[tuple[Callable[[Path], object], type[CoveyError], str]] = [
    (lambda p: (p / "config.json").unlink(), MissingInputError, "the folder has no config.json"),
    (lambda p: (p / "config.json").write_text("{"), MissingInputError, "config.json cannot be read"),
    (truncate, MissingInputError, "model.safetensors cannot be read"),
    (lambda p: (p / "model.safetensors").unlink(), MissingInputError, "it has no weights"),
    (pickle_only, MissingInputError, "pickled, which covey never opens"),
    (drop_weight, MissingInputError, "its files hold no weight 'model.norm.weight'"),
    (misshape, MissingInputError, "a misshapen weight 'model.norm.weight'"),
    (no_tokenizer, MissingInputError, "its tokenizer cannot be loaded"),
    (lambda p: (p / "tokenizer.json").write_text("{"), MissingInputError, "its tokenizer cannot be loaded"),
    (
        lambda p: edit(p / "config.json", model_type="new", auto_map={"AutoConfig": "x.Y"}),
        RefusedError,
        "code of its own",
    ),
    (lambda p: edit(p / "config.json", model_type="new"), ConfigError, "unknown model_type 'new'"),
    (lambda p: edit(p / "config.json", model_type=None), ConfigError, "unknown model_type None"),
    (lambda p: edit(p / "config.json", model_type="t5"), ConfigError, "'t5' is no causal language model"),
]


@pytest.mark.parametrize(("damage", "kind", "text"), BROKEN)
def test_broken_folders(folder: Path, damage: Callable[[Path], object], kind: type[CoveyError], text: str) -> None:
    damage(folder)
    check(folder, kind, text)


def test_vocabulary_beyond_the_embedding(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{at}" for at in range(60)])
    tokenizer.save_pretrained(folder)
    check(folder, ConfigError, "the tokenizer has ids up to 90, the embedding has 61 rows")


def test_no_end_token(tmp_path: Path) -> None:
    path = save(tmp_path / "m", make_tokenizer(eos=None))
    edit(path / "generation_config.json", eos_token_id=None)
    edit(path / "config.json", eos_token_id=None)
    check(path, ConfigError, "neither tokenizer nor generation config has an end token")


def test_a_template_that_raises(tmp_path: Path) -> None:
    path = save(tmp_path / "m", make_tokenizer(template="{{ raise_exception('only the system may speak') }}"))
    with pytest.raises(ConfigError, match="it raised TemplateError: only the system may speak") as caught:
        load_model(path).render([Message("user", "ab")])
    assert "\n" not in str(caught.value)


def test_a_template_cannot_reach_the_machine(tmp_path: Path) -> None:
    path = save(tmp_path / "m", make_tokenizer(template="{{ ''.__class__.__mro__[1].__subclasses__() }}"))
    with pytest.raises(ConfigError, match="SecurityError"):
        load_model(path).render([Message("user", "ab")])


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "a/b/c", "~/no-such-model"])
def test_no_such_folder(source: str) -> None:
    check(source, MissingInputError, "there is no such folder")


def test_a_hub_id_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(folders, "hub_answers", lambda: False)
    check("someone/no-such-model", MissingInputError, "not in the local cache, and the hub does not answer")
    check("nonsense name!", MissingInputError, "cannot be a hub id. Give a folder, 'tiny', or an id like OWNER/NAME.")


def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Online: gated, absent, out of order, full disk; each says what to do, and a copy in the local cache still serves."""
    import errno

    import httpx
    import huggingface_hub
    from huggingface_hub import errors as hub

    answer = httpx.Response(403, request=httpx.Request("GET", "http://hub"))
    refusals = [
        (hub.GatedRepoError("x", response=answer), "asks for its licence first. Accept it on the model's page"),
        (hub.RepositoryNotFoundError("x", response=answer), "has no model of that name, or a private one"),
        (hub.HfHubHTTPError("out of order\nmore", response=answer), "the hub refuses it (out of order). Try again"),
        (OSError(errno.ENOSPC, "No space left"), "it cannot be stored (No space left). Make room in HF_HOME"),
    ]
    monkeypatch.setattr(folders, "hub_answers", lambda: True)
    for error, text in refusals:

        def download(source: str, *, local_files_only: bool, error: Exception = error, **options: object) -> str:
            raise hub.LocalEntryNotFoundError("x") if local_files_only else error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        check("someone/some-model", MissingInputError, text)


def test_a_file_is_no_folder(folder: Path) -> None:
    check(folder / "config.json", MissingInputError, "there is no such folder")


@pytest.mark.parametrize("dtype", ["float8", "int8", "fp32"])
def test_unknown_dtype(dtype: str) -> None:
    check("tiny", ConfigError, f"model.dtype: there is no dtype '{dtype}'", dtype=dtype)


def test_tiny_loads_and_answers() -> None:
    if not loading.TINY.is_dir():
        pytest.skip("the embedded model has not been made yet")
    loaded = load_model("tiny")
    assert loaded.stop_ids
    assert verify(loaded.model, loaded.tokenizer) < 1e-4


def test_saving_a_prepared_model_leaves_no_trace(folder: Path, tmp_path: Path) -> None:
    """The attention function is ours only while the model is here."""
    loaded = load_model(folder)
    HFSampler(loaded.model)
    loaded.model.save_pretrained(tmp_path / "again")
    assert "covey" not in (tmp_path / "again" / "config.json").read_text()
    shutil.copy(folder / "tokenizer.json", tmp_path / "again")
    shutil.copy(folder / "tokenizer_config.json", tmp_path / "again")
    assert load_model(tmp_path / "again").model.config._attn_implementation != "covey"


def test_stop_strings_with_a_real_tokenizer() -> None:
    """The first text that contains the string ends the turn, wherever the string lies in the tokens."""
    if not loading.TINY.is_dir():
        pytest.skip("the embedded model has not been made yet")
    loaded = load_model("tiny")
    sampler = HFSampler(loaded.model, tokenizer=loaded.tokenizer)
    request = Request("a", loaded.render([Message("user", "f(ab)")]), tuple(range(8)))
    [free] = sampler.sample([request], Sampling(max_tokens=12))
    text = loaded.tokenizer.decode(free[0].turn.tokens)
    stop = text[2:4]
    [held] = sampler.sample([request], Sampling(max_tokens=12, stop=(stop,)))
    for one, other in zip(free, held, strict=True):
        count = len(other.turn.tokens)
        assert other.turn.tokens == one.turn.tokens[:count]
        assert stop not in loaded.tokenizer.decode(one.turn.tokens[: count - 1])
        if count < 12:
            assert stop in loaded.tokenizer.decode(other.turn.tokens)
    assert len(held[0].turn.tokens) < 12
