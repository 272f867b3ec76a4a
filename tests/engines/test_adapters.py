"""Adapters: what is trained, with which gradient, and that peft and transformers read what is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import ARCHITECTURES, make_adapted, make_learner, stir
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_loading import edit, make_tokenizer, save
from tiny_models import make_model, make_requests
from torch import Tensor, nn
from toy_learner import OBJECTIVES, distance, make_step
from transformers import AutoModelForCausalLM

from covey.batch import Live
from covey.engines.adapters import (
    Lora,
    add_adapter,
    add_reference,
    is_fresh,
    linear_modules,
    merge_adapter,
    switched,
    trained_tensors,
)
from covey.engines.loading import LoadedModel, ModelOptions, load_model
from covey.engines.merged import write_merged
from covey.engines.peft_folder import read_adapter, write_adapter
from covey.engines.plain import plain_logits, plain_logp
from covey.engines.probe import probe_batch
from covey.engines.sampler import HFSampler
from covey.engines.scorer import Scorer, verify
from covey.errors import ConfigError, CoveyError, MissingInputError
from covey.types import Sampling

torch.set_num_threads(1)
TOKENS = list(range(3, 40))
TARGETS = {
    "qwen3": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "qwen3_moe": {"q_proj", "k_proj", "v_proj", "o_proj"},
}
TARGETS |= {"llama": TARGETS["qwen3"], "gemma": TARGETS["qwen3"]}


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in trained_tensors(model).items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_layer_but_the_head_bears_an_adapter(name: str) -> None:
    plain, model = make_model(name), make_adapted(name, torch.float32, stirred=False)
    trained = trained_tensors(model)
    assert {key.split(".lora_")[0].rpartition(".")[2] for key in trained} == TARGETS[name]
    assert len(trained) == 2 * len(linear_modules(plain))
    assert {key for key, value in model.named_parameters() if value.requires_grad} == trained.keys()
    assert torch.equal(plain_logits(model, TOKENS), plain_logits(plain, TOKENS)), "B = 0 adds nothing"
    assert is_fresh(model)
    stir(model)
    assert not is_fresh(model)
    assert not torch.allclose(plain_logits(model, TOKENS), plain_logits(plain, TOKENS), atol=1e-2)
    assert verify(model) < 1e-4, "sampler, scorer and transformers agree"
    assert probe_batch(HFSampler(model)).exact


@pytest.mark.parametrize("rank", [1, 2, 5, 8, 16, 40])
def test_samples_do_not_depend_on_their_batch_at_any_rank(rank: int) -> None:
    model = make_adapted("qwen3", torch.float32, lora=Lora(rank=rank))
    sampler, sampling = HFSampler(model), Sampling(max_tokens=12)
    requests = make_requests(9, 3)
    together = sampler.sample(requests, sampling)
    assert [sampler.sample([request], sampling)[0] for request in requests] == together


def test_fresh_adapters_are_a_function_of_the_seed_alone() -> None:
    def fresh(seed: int) -> dict[str, Tensor]:
        model = make_model("llama")
        add_adapter(model, Lora(rank=4), seed=seed)
        return trained_tensors(model)

    first, again, other = fresh(1), fresh(1), fresh(2)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    a = {name: value for name, value in first.items() if ".lora_A." in name}
    assert not any(torch.equal(value, other[name]) for name, value in a.items())
    for value in a.values():
        bound = value.shape[1] ** -0.5
        assert 0.9 * bound < value.abs().max() <= bound
        assert abs(float(value.mean())) < 0.15 * bound


def test_the_global_generator_is_left_alone() -> None:
    model = make_model("llama")
    before = torch.get_rng_state()
    add_adapter(model, Lora(rank=4), seed=5)
    add_reference(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (
            ("q_prj",),
            "no linear layer's name ends in 'q_prj'. Did you mean 'q_proj'? Known: all-linear, down_proj, gate",
        ),
        (("lm_head",), "no linear layer's name ends in 'lm_head'. Known: all-linear, down_proj"),
        (("embed_tokens",), "no linear layer's name ends in 'embed_tokens'."),
        (("q_proj", "nothing"), "ends in 'nothing'"),
        ((), "none given. Known: all-linear"),
    ],
)
def test_unknown_targets_are_refused_with_the_names_there_are(targets: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        add_adapter(make_model("llama"), Lora(targets=targets), seed=0)
    assert text in str(caught.value)


def test_targets_are_ends_of_names() -> None:
    model = make_adapted("llama", lora=Lora(rank=2, targets=("0.self_attn.q_proj", "v_proj")))
    stems = {name.split(".lora_")[0] for name in trained_tensors(model)}
    assert stems == {f"model.layers.{at}.self_attn.{end}" for at, end in ((0, "q_proj"), (0, "v_proj"), (1, "v_proj"))}


def plain_gradient(model: nn.Module, step: Any) -> dict[str, Tensor]:
    """peft's and transformers' own forward, row by row, and autograd."""
    logp = plain_logp(model, step, 0.7)
    loss, _ = OBJECTIVES["clipped"](Live.of({"logp": logp}), step, {})
    loss.backward()
    return grads(model)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("budget", [1, 25, 10**6])
def test_gradients_are_those_of_pefts_own_forward(name: str, budget: int) -> None:
    step = make_step(3)
    learner = make_learner(make_adapted(name), budget=budget)
    learner.backward(step, lambda live, rows: OBJECTIVES["clipped"](live, rows, {}), (), 0.7)
    found = grads(learner.scorer.model)
    assert min(float(value.abs().max()) for value in found.values()) > 0
    assert distance(found, plain_gradient(make_adapted(name), step)) <= 1e-12


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), budget=st.integers(1, 80), shuffle=st.integers(0, 10**6))
def test_order_of_rows_and_budget_do_not_matter(seed: int, budget: int, shuffle: int) -> None:
    step = make_step(seed, groups=3)
    order = torch.randperm(step.size, generator=torch.Generator().manual_seed(shuffle))
    found = []
    for rows, size in ((step.rows(order), budget), (step, 10**6)):
        learner = make_learner(make_adapted(), budget=size)
        learner.backward(rows, lambda live, part: OBJECTIVES["clipped"](live, part, {}), (), 0.7)
        found.append(grads(learner.scorer.model))
    assert distance(*found) <= 1e-12


@pytest.mark.parametrize("quantize", [None, "nf4", "int8"])
def test_gradients_are_finite_differences(quantize: str | None) -> None:
    step = make_step(1)
    learner = make_learner(make_adapted("llama", quantize=quantize))

    def loss() -> float:
        live = learner.forward(step, (), 0.7)
        return float(OBJECTIVES["clipped"](live, step, {})[0])

    learner.backward(step, lambda live, rows: OBJECTIVES["clipped"](live, rows, {}), (), 0.7)
    found, parameters = grads(learner.scorer.model), dict(learner.parameters)
    for name in list(found)[::5]:
        at = int(found[name].abs().argmax())
        values = parameters[name].detach().view(-1)
        kept, width = float(values[at]), 1e-5
        values[at] = kept + width
        above = loss()
        values[at] = kept - width
        below = loss()
        values[at] = kept
        assert (above - below) / (2 * width) == pytest.approx(float(found[name].view(-1)[at]), rel=1e-6, abs=1e-9), name


def test_only_adapters_are_trained_published_and_loaded() -> None:
    model = make_adapted("qwen3", torch.float32)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    learner, sampler = make_learner(model), HFSampler(make_adapted("qwen3", torch.float32, stirred=False))
    assert learner.weights().keys() == trained_tensors(model).keys() == learner.parameters.keys()
    learner.backward(make_step(0, dtype=torch.float32), lambda live, rows: OBJECTIVES["clipped"](live, rows, {}))
    learner.step(1e-2)
    sampler.publish(learner.weights(), 1)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    for name, value in trained_tensors(sampler.model).items():
        assert torch.equal(value, parameters[name])
    state = learner.optimizer_state()
    assert {key.rpartition("/")[0] for key in state} == learner.parameters.keys()
    with pytest.raises(ConfigError, match="not among the published weights"):
        sampler.publish(dict(list(learner.weights().items())[1:]), 2)


def test_the_adapter_can_be_switched_without_changing_what_is_trained() -> None:
    model, plain = make_adapted(), make_model("qwen3", torch.float64)
    with_adapter = plain_logits(model, TOKENS)
    add_reference(model)
    stir(model, seed=8)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    moved = plain_logits(model, TOKENS)
    with switched(model, None):
        assert torch.equal(plain_logits(model, TOKENS), plain_logits(plain, TOKENS))
        assert {name for name, value in model.named_parameters() if value.requires_grad} == trained
    with switched(model, "reference"):
        assert torch.equal(plain_logits(model, TOKENS), with_adapter)
        assert {name for name, value in model.named_parameters() if value.requires_grad} == trained
    assert torch.equal(plain_logits(model, TOKENS), moved)
    assert trained == trained_tensors(model).keys()
    assert not torch.allclose(moved, with_adapter)


def test_small_steps_are_not_lost_on_a_bfloat16_model() -> None:
    """A step of 1e-6 moves every number of an adapter that has a gradient, and next to none of the model's own in bfloat16."""

    def moved(model: nn.Module) -> float:
        learner = make_learner(model)
        before = {name: value.detach().clone() for name, value in learner.parameters.items()}
        learner.backward(make_step(0, dtype=torch.float32), lambda live, rows: OBJECTIVES["clipped"](live, rows, {}))
        touched = {name: value.grad != 0 for name, value in learner.parameters.items() if value.grad is not None}
        learner.step(1e-6)
        count = sum(int((learner.parameters[name] != before[name])[at].sum()) for name, at in touched.items())
        return count / sum(int(at.sum()) for at in touched.values())

    adapted = make_adapted("qwen3", torch.bfloat16)
    assert {value.dtype for value in trained_tensors(adapted).values()} == {torch.float32}
    assert verify(adapted) < 0.3
    assert moved(adapted) > 0.99
    assert moved(make_model("qwen3", torch.bfloat16)) < 0.02


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_merged_model_says_what_the_adapted_one_does(name: str, dtype: torch.dtype, limit: float) -> None:
    model = make_adapted(name, dtype)
    expected = plain_logits(model, TOKENS)
    merged = merge_adapter(model)
    assert merged.state_dict().keys() == make_model(name, dtype).state_dict().keys()
    gap = (plain_logits(merged, TOKENS) - expected).abs()
    assert gap.max() <= limit if dtype == torch.float32 else gap.mean() <= limit  # there a token may change its expert
    assert all(value.requires_grad for value in merged.parameters())


# Folders


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", make_tokenizer())


def save_adapter(loaded: LoadedModel, folder: Path) -> Path:
    write_adapter(
        folder, model=loaded.model, tokenizer=loaded.tokenizer, weights=trained_tensors(loaded.model), base=loaded.base
    )
    return folder


LORA = Lora(rank=3, alpha=6.0)


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    loaded = load_model(base, options=ModelOptions(lora=LORA))
    stir(loaded.model)
    return save_adapter(loaded, tmp_path / "adapter")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_peft_reads_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from peft import AutoPeftModelForCausalLM

    monkeypatch.chdir(tmp_path)
    save(tmp_path / "base", make_tokenizer(), name)
    loaded = load_model("base", options=ModelOptions(lora=LORA))
    stir(loaded.model)
    save_adapter(loaded, tmp_path / "adapter")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    theirs = AutoPeftModelForCausalLM.from_pretrained("../adapter", dtype=torch.float32).eval()
    expected = plain_logits(loaded.model, TOKENS)
    found = theirs.get_base_model()(torch.tensor([TOKENS]), use_cache=False).logits[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    again = load_model("../adapter")
    assert torch.equal(plain_logits(again.model, TOKENS), expected)
    assert (again.stop_ids, again.base) == (loaded.stop_ids, str(tmp_path / "base"))
    own = {"adapter_config.json", "adapter_model.safetensors"}
    assert own < {path.name for path in (tmp_path / "adapter").iterdir()}
    assert not (tmp_path / "adapter/model.safetensors").exists()
    write_merged("../adapter", elsewhere / "merged")
    whole = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.float32)
    found = whole(torch.tensor([TOKENS]), use_cache=False).logits[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="it has no adapter that could be merged"):
        write_merged("merged", elsewhere / "again")


def test_what_is_written_is_the_same_in_every_process(folder: Path, tmp_path: Path) -> None:
    again = save_adapter(load_model(folder), tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == sorted(TARGETS["llama"])


def test_an_adapter_goes_on_being_trained_as_what_it_is(folder: Path) -> None:
    loaded = load_model(folder, options=ModelOptions(lora=LORA))
    stored = read_adapter(folder)
    assert all(torch.equal(value, stored[name]) for name, value in trained_tensors(loaded.model).items())
    assert all(value.requires_grad for value in trained_tensors(loaded.model).values())
    with pytest.raises(ConfigError, match=r"model.lora.rank: 4, but the adapter in .* has 3. Set model.lora.rank=3"):
        load_model(folder, options=ModelOptions(lora=Lora(rank=4, alpha=6.0)))
    with pytest.raises(ConfigError, match=r"model.lora.alpha: 8.0, but the adapter in .* has 6"):
        load_model(folder, options=ModelOptions(lora=Lora(rank=3, alpha=8.0)))
    with pytest.raises(
        ConfigError, match=r"model.lora.targets: \['q_proj'\], but the adapter .* stands at \[\"down_proj\""
    ):
        load_model(folder, options=ModelOptions(lora=Lora(rank=3, alpha=6.0, targets=("q_proj",))))


ROWS = [{"prompt": "abcdefgh"[:count], "answer": "c"} for count in range(1, 9)]


def test_a_run_on_an_adapter_has_to_say_so(folder: Path, tmp_path: Path) -> None:
    import covey

    with pytest.raises(ConfigError, match=r"is an adapter. Add model.lora.rank=... to go on training it, or merge it"):
        covey.train(model=str(folder), data=ROWS, steps=1, out=tmp_path / "run", quiet=True)


def drop_tensor(path: Path) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})


def add_tensor(path: Path) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    save_file({**tensors, "base_model.model.more.weight": torch.ones(2)}, path / "adapter_model.safetensors")


def misshape(path: Path) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    tensors[sorted(tensors)[0]] = torch.ones(3, 3)
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})


def cut(path: Path) -> None:
    data = (path / "adapter_model.safetensors").read_bytes()
    (path / "adapter_model.safetensors").write_bytes(data[: len(data) // 2])


CONFIG = "adapter_config.json"
BROKEN: list[tuple[Callable[[Path], object], type[CoveyError], str]] = [
    (lambda p: edit(p / CONFIG, peft_type="IA3"), ConfigError, "its adapter is of type 'IA3'"),
    (lambda p: edit(p / CONFIG, use_dora=True), ConfigError, "its adapter has use_dora=True"),
    (lambda p: edit(p / CONFIG, modules_to_save=["lm_head"]), ConfigError, "modules_to_save=['lm_head']"),
    (lambda p: edit(p / CONFIG, base_model_name_or_path=None), ConfigError, "does not name its base"),
    (
        lambda p: edit(p / CONFIG, base_model_name_or_path="/no/such"),
        MissingInputError,
        "its base /no/such: there is no such folder",
    ),
    (lambda p: edit(p / CONFIG, base_model_name_or_path=str(p)), ConfigError, "it is an adapter itself"),
    (lambda p: edit(p / CONFIG, target_modules=["nothing"]), ConfigError, "peft refuses it"),
    (lambda p: (p / CONFIG).write_text("{"), MissingInputError, "adapter_config.json cannot be read"),
    (
        lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"),
        MissingInputError,
        "its adapter is pickled, which covey never opens",
    ),
    (lambda p: (p / "adapter_model.safetensors").unlink(), MissingInputError, "it has no adapter_model.safetensors"),
    (cut, MissingInputError, "adapter_model.safetensors cannot be read"),
    (drop_tensor, MissingInputError, "its adapter has no tensor 'model.layers.0.mlp.down_proj.lora_A.default.weight'"),
    (add_tensor, MissingInputError, "its adapter has the unknown tensor 'more.default.weight'"),
    (misshape, MissingInputError, "has shape [3, 3], the model [3, 96]"),
]


@pytest.mark.parametrize(("damage", "kind", "text"), BROKEN)
def test_broken_adapters(folder: Path, damage: Callable[[Path], object], kind: type[CoveyError], text: str) -> None:
    damage(folder)
    with pytest.raises(kind) as caught:
        load_model(folder)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is kind


def test_the_bases_tokenizer_serves_an_adapter_without_one(folder: Path) -> None:
    expected = load_model(folder).tokenizer.get_vocab()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert load_model(folder).tokenizer.get_vocab() == expected


def test_an_adapter_whose_base_is_gone_says_which(folder: Path, base: Path) -> None:
    shutil.rmtree(base)
    with pytest.raises(MissingInputError, match=f"its base {base}: there is no such folder"):
        load_model(folder)


def test_scorers_of_adapted_models_keep_float64() -> None:
    assert Scorer(make_adapted())(make_step(0), temperature=0.7)["logp"].dtype == torch.float64
