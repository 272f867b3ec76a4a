"""Frozen weights in few bits: sampler and learner compute with the same rounded numbers, and adapters on top are trained."""

from __future__ import annotations

import copy

import pytest
import torch
from adapted import ARCHITECTURES, SMALL, make_adapted, make_learner
from tiny_models import make_model
from toy_learner import OBJECTIVES, distance, make_step

from covey.engines.adapters import Lora, adapted_layers, add_adapter, merge_adapter, trained_tensors
from covey.engines.loading import ModelOptions, load_model
from covey.engines.probe import probe_batch
from covey.engines.quantize import RoundedLinear, quantize_linear
from covey.engines.sampler import HFSampler
from covey.engines.scorer import verify
from covey.errors import ConfigError

torch.set_num_threads(1)
FORMATS = ("nf4", "int8")
LIMIT = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.6}


def rounded(model: torch.nn.Module) -> dict[str, RoundedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RoundedLinear)}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", LIMIT)
def test_sampler_learner_and_transformers_agree(name: str, form: str, dtype: torch.dtype) -> None:
    """At step 0 and with adapters that do something; in float32 samples do not depend on their batch, bit by bit."""
    for stirred in (False, True):
        model = make_adapted(name, dtype, quantize=form, stirred=stirred)
        assert len(rounded(model)) == len(adapted_layers(model))
        assert verify(model) <= LIMIT[dtype]
        finding = probe_batch(HFSampler(model))
        assert finding.exact if dtype == torch.float32 else finding.same_tokens


@pytest.mark.parametrize(("form", "most"), [("nf4", 0.12), ("int8", 0.01)])
def test_rounding_is_as_fine_as_the_format(form: str, most: float) -> None:
    plain, model = (make_model("llama", hidden_size=128, intermediate_size=512) for _ in range(2))
    quantize_linear(model, form)
    for name, layer in rounded(model).items():
        weight = plain.get_submodule(name).weight
        assert float((layer.weight - weight).norm() / weight.norm()) <= most
        levels = 16 if form == "nf4" else 255
        assert all(len(row.unique()) <= levels * (-(-row.numel() // 64)) for row in layer.weight)
    assert model.lm_head.weight is not None
    assert not isinstance(model.lm_head, RoundedLinear)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_gradients_are_those_of_an_ordinary_model_with_these_weights(name: str, form: str) -> None:
    step, plain = make_step(3), make_model(name, torch.float64)
    model = make_adapted(name, quantize=form)
    with torch.no_grad():
        for path, layer in rounded(model).items():
            base = plain.get_submodule(path.removesuffix(".base_layer"))
            base.weight.copy_(layer.weight if isinstance(base, torch.nn.Linear) else layer.weight.T)
    add_adapter(plain, SMALL, seed=7)
    found = []
    with torch.no_grad():
        for path, value in trained_tensors(model).items():
            dict(plain.named_parameters())[path].copy_(value)
    for one, budget in ((model, 25), (plain, 10**6)):
        learner = make_learner(one, budget=budget)
        learner.backward(step, lambda live, rows: OBJECTIVES["clipped"](live, rows, {}), (), 0.7)
        found.append({path: value.grad for path, value in trained_tensors(one).items()})
    assert distance(*found) <= 1e-12


def held(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers, scales of scales included."""
    states = [layer.state for layer in rounded(model).values() if layer.state is not None]
    scales = [tensor for state in states for tensor in (state.absmax, state.state2.absmax)]
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers(), *scales))


@pytest.mark.parametrize(("form", "share"), [("nf4", 0.145), ("int8", 0.27)])
def test_memory_is_saved(form: str, share: float) -> None:
    """Of linear layers in float32: 4 bits and a scale per 64 numbers, or 8 bits and a scale per row."""
    plain = make_model("llama", hidden_size=128, intermediate_size=512)
    whole = held(plain)
    linear = sum(module.weight.numel() * 4 for name, module in plain.named_modules() if "proj" in name)
    quantize_linear(plain, form)
    assert held(plain) <= whole - linear + share * linear


@pytest.mark.parametrize("form", FORMATS)
def test_a_copy_and_another_format_keep_the_rounded_weights(form: str) -> None:
    model = make_model("qwen3")
    quantize_linear(model, form)
    before = {name: layer.weight for name, layer in rounded(model).items()}
    again = copy.deepcopy(model).to("cpu").eval()
    assert all(torch.equal(layer.weight, before[name]) for name, layer in rounded(again).items())
    again.to(torch.bfloat16)
    assert all(layer.packed.dtype in (torch.uint8, torch.int8) for layer in rounded(again).values())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.quantize: there is no format 'nf5'. Did you mean 'nf4'"):
        load_model("tiny", options=ModelOptions(lora=Lora(), quantize="nf5"))
    with pytest.raises(ConfigError, match="rounded weights cannot take up adapters"):
        merge_adapter(make_adapted(quantize="int8"))


def test_rounded_weights_are_not_sharded() -> None:
    from covey.assembly import assemble
    from covey.config import resolve
    from covey.engines.world import World

    config = resolve(["model.lora.rank=4", "model.quantize=nf4"]).config
    with pytest.raises(
        ConfigError, match=r"model.quantize: rounded weights cannot be sharded over 2 ranks. Use one rank."
    ):
        assemble(config, config.task, World(0, 2))
