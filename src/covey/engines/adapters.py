"""Low-rank adapters on a frozen model (arXiv 2106.09685), through peft: y = W x + alpha / rank * B A x, with B = 0 at the start.

peft puts its layers into the transformers model and leaves the model's class as it is, so scorer, sampler and attention know
nothing of adapters. They stand at linear layers, never at the head; experts that are stacked tensors, and routers, stay as
they are. Adapters are float32 also on a bfloat16 model, whose format would lose their small steps (float64 on a float64 one).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from covey.errors import ConfigError, MissingInputError, did_you_mean
from covey.random import key

TRAINED = "default"
"""peft's name of the adapter that is trained, sampled from and saved."""
REFERENCE = "reference"
"""The name of a second, frozen adapter: the reference policy, where it is not the model without any adapter."""
ALL = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Adapters as asked for: `targets` are ends of module names, or `all-linear`."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL,)


def hush() -> None:
    """Keep bitsandbytes, which peft imports where it is installed, from telling of faster kernels that could be fetched."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def import_peft() -> Any:
    """The peft library, or one line that says how to get it."""
    hush()
    try:
        import peft
    except ImportError:
        raise MissingInputError("model.lora", "needs `pip install covey[peft]` (peft)") from None
    return peft


def add_adapter(model: nn.Module, lora: Lora, *, seed: int) -> None:
    """Freeze a model and put fresh adapters into it. A is uniform in +-1/sqrt(inputs), a function of the seed and its name."""
    peft = import_peft()
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=_plain_number(lora.alpha),
        target_modules=sorted(find_targets(model, lora.targets)),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    inject(model, config)
    with torch.no_grad():
        for name, layer in adapted_layers(model):
            weight = layer.lora_A[TRAINED].weight
            draw = torch.Generator().manual_seed(key(seed, "adapter", name) >> 1)
            values = torch.rand(weight.shape, generator=draw, dtype=torch.float64)
            weight.copy_((2 * values - 1) / math.sqrt(weight.shape[1]))
            layer.lora_B[TRAINED].weight.zero_()


def inject(model: nn.Module, config: Any, name: str = TRAINED) -> None:
    """Put the adapters that a peft configuration describes into a model and freeze everything but adapter `default`."""
    peft = import_peft()
    dtype = exact_dtype(next(model.parameters()).dtype)
    # peft draws numbers that are written over, and warns of settings that it mends by itself
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            peft.inject_adapter_in_model(config, model, name)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ConfigError("model.lora", f"peft refuses it ({str(error).splitlines()[0]:.200})") from None
    for parameter, value in model.named_parameters():
        value.requires_grad_(f".{TRAINED}." in parameter and ".lora_" in parameter)
    for _, layer in adapted_layers(model):
        for part in (layer.lora_A, layer.lora_B):
            part[name].to(dtype)
        layer._active_adapter = [TRAINED]
    model.eval()


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The format in which small steps survive: float32 for narrower ones."""
    return torch.promote_types(dtype, torch.float32)


def _plain_number(value: float) -> float | int:
    """32 and not 32.0, as other readers of adapter_config.json expect."""
    return int(value) if value == int(value) else value


def is_adapted(model: nn.Module) -> bool:
    """Whether a model bears adapters."""
    return bool(getattr(model, "peft_config", None))


def adapted_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers with an adapter, by name."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that can bear an adapter: linear layers by name, the head left out."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[operator]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }


def find_targets(model: nn.Module, targets: Sequence[str]) -> set[str]:
    """The ends of names by which peft finds exactly the wanted modules; a target that fits none is an error with all names."""
    linear = linear_modules(model)
    ends = sorted({name.rpartition(".")[2] for name in linear})
    if not linear:
        raise ConfigError("model.lora", f"{type(model).__name__} has no linear layers that could bear adapters", "")
    wanted: set[str] = set()
    for target in targets:
        found = {name for name in linear if target == ALL or name == target or name.endswith(f".{target}")}
        if not found:
            near = did_you_mean(target, [*ends, ALL])
            known = near if "Known" in near else f"{near} Known: {ALL}, {', '.join(ends)}."
            raise ConfigError("model.lora.targets", f"no linear layer's name ends in '{target}'", known)
        wanted |= found
    if not wanted:
        raise ConfigError("model.lora.targets", "none given", f"Known: {ALL}, {', '.join(ends)}.")
    return shortest_ends(wanted, [name for name, _ in model.named_modules()])


def shortest_ends(wanted: set[str], names: Sequence[str]) -> set[str]:
    """The last parts of names where they fit the wanted modules alone, else whole names."""
    ends = {name.rpartition(".")[2] for name in wanted}
    fit = {name for name in names if name.rpartition(".")[2] in ends}
    return ends if fit == wanted else wanted


def trained_tensors(model: nn.Module, name: str = TRAINED) -> dict[str, Tensor]:
    """The parameters of one adapter under their names in the model."""
    return {
        parameter: value
        for parameter, value in model.named_parameters()
        if ".lora_" in parameter and f".{name}." in parameter
    }


def renamed(parameter: str, name: str) -> str:
    """The name of the same parameter of another adapter."""
    return parameter.replace(f".{TRAINED}.", f".{name}.")


def add_reference(model: nn.Module) -> None:
    """Put a second, frozen adapter beside the trained one, with its values."""
    inject(model, model.peft_config[TRAINED], REFERENCE)  # type: ignore[index]
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in trained_tensors(model).items():
            parameters[renamed(name, REFERENCE)].copy_(value)


@contextmanager
def switched(model: nn.Module, name: str | None) -> Iterator[None]:
    """Another adapter, or none, for a while. Which parameters are trained does not change (peft's own switch would)."""
    layers = [layer for _, layer in adapted_layers(model)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter, layer._disable_adapters = [name or TRAINED], name is None
    try:
        yield
    finally:
        for layer, (active, off) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, off


def is_fresh(model: nn.Module) -> bool:
    """Whether the trained adapters add nothing yet: every B is zero."""
    return all(not layer.lora_B[TRAINED].weight.any() for _, layer in adapted_layers(model))


def merge_adapter(model: nn.Module) -> nn.Module:
    """The ordinary model with W + alpha / rank * B A in place of each pair; it is made of the given one, which is used up.

    The sum is formed in float32 at least and rounded once to the model's format.
    """
    with torch.no_grad():
        for name, layer in adapted_layers(model):
            base = layer.get_base_layer()
            if type(base.weight) is not nn.Parameter:
                raise ConfigError("model.quantize", "rounded weights cannot take up adapters", "Load without quantize.")
            delta = layer.get_delta_weight(TRAINED)
            base.weight.copy_((base.weight.to(delta.dtype) + delta).to(base.weight.dtype))
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, base)
    if is_adapted(model):
        del model.peft_config
    return model.requires_grad_(True)


def settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What of an adapted model's layers, besides tensors, decides about outputs; for comparing two copies."""
    return {
        path: {
            "adapter": [] if layer.disable_adapters else list(layer.active_adapters),
            "merged": bool(layer.merged),
            "scaling": {name: layer.scaling[name] for name in layer.active_adapters},
        }
        for path, layer in adapted_layers(model)
    }
