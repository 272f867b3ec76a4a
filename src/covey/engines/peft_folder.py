"""PEFT folders: an adapter with the name of its base, as peft, transformers and vLLM read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from covey import files
from covey.engines.adapters import (
    TRAINED,
    Lora,
    adapted_layers,
    find_targets,
    import_peft,
    inject,
    linear_modules,
    trained_tensors,
)
from covey.engines.folders import ADAPTER, first_line, read_json
from covey.errors import ConfigError, MissingInputError

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PLAIN = {"use_dora": False, "use_rslora": False, "lora_bias": False, "modules_to_save": None, "bias": "none"}
"""Options of a peft configuration with the only values that covey keeps when it trains an adapter."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An adapter on disk: its configuration, the name of its base, and its tensors' file."""

    folder: Path
    raw: Mapping[str, Any]
    base: str


def read_stored(folder: Path, where: str) -> Stored:
    """What a PEFT folder says of itself; refuses what is no low-rank adapter on a named base."""
    raw = read_json(folder / ADAPTER, where)
    if raw.get("peft_type") != "LORA":
        found = f"its adapter is of type {raw.get('peft_type')!r}"
        raise ConfigError(where, found, "covey knows LORA; merge others into their base first.")
    for name, only in _PLAIN.items():
        if raw.get(name, only) not in (only, [] if only is None else only):
            raise ConfigError(where, f"its adapter has {name}={raw[name]!r:.60}", "Merge it into its base first.")
    if not raw.get("base_model_name_or_path"):
        raise ConfigError(where, f"{ADAPTER} does not name its base", "Set base_model_name_or_path.")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        found = "its adapter is pickled, which covey never opens" if pickled else f"it has no {WEIGHTS}"
        raise MissingInputError(where, found, f"Give {WEIGHTS}.")
    return Stored(folder, raw, str(raw["base_model_name_or_path"]))


def load_adapter(model: nn.Module, stored: Stored, where: str, *, expected: Lora | None = None) -> None:
    """Put a stored adapter into its base, every tensor of it. `expected`: what it has to be, if it goes on being trained."""
    peft = import_peft()
    if expected is not None:
        _check_expected(model, stored, expected)
    fields = {**stored.raw, "inference_mode": False, "lora_dropout": 0.0, "init_lora_weights": True}
    try:
        config = peft.LoraConfig.from_peft_type(**fields)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(where, f"{ADAPTER} cannot be understood ({first_line(error)})", "Update peft.") from None
    inject(model, config)
    tensors, parameters = read_adapter(stored.folder, where), trained_tensors(model)
    for name in sorted(tensors.keys() ^ parameters.keys()):
        what = "no" if name in parameters else "the unknown"
        raise MissingInputError(where, f"its adapter has {what} tensor '{name}'", "Give the base that it was made for.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.shape != parameters[name].shape:
                found = f"'{name}' has shape {list(tensor.shape)}, the model {list(parameters[name].shape)}"
                raise MissingInputError(where, found, "Give the base that it was made for.")
            parameters[name].copy_(tensor)


def _check_expected(model: nn.Module, stored: Stored, expected: Lora) -> None:
    """Refuse to train an adapter under settings that are not its own."""
    raw = stored.raw
    for name, found, wanted in (
        ("rank", raw.get("r"), expected.rank),
        ("alpha", raw.get("lora_alpha"), expected.alpha),
        ("rank", raw.get("rank_pattern") or None, None),
        ("alpha", raw.get("alpha_pattern") or None, None),
    ):
        if found != wanted:
            right = f"Set model.lora.{name}={found} to go on training it." if wanted is not None else "Merge it first."
            raise ConfigError(f"model.lora.{name}", f"{wanted}, but the adapter in {stored.folder} has {found}", right)
    targets = raw.get("target_modules")
    listed = tuple(targets) if isinstance(targets, list) else ("all-linear",) if targets == "all-linear" else ()
    if not listed or _modules(model, listed) != _modules(model, expected.targets):
        shown = json.dumps(sorted(listed) or targets)
        found = f"{list(expected.targets)}, but the adapter in {stored.folder} stands at {shown}"
        raise ConfigError("model.lora.targets", found, f"Set model.lora.targets={shown} to go on training it.")


def _modules(model: nn.Module, targets: tuple[str, ...]) -> set[str]:
    ends = find_targets(model, targets)
    return {name for name in linear_modules(model) if name in ends or name.rpartition(".")[2] in ends}


def read_adapter(folder: Path, where: str = "adapter") -> dict[str, Tensor]:
    """A PEFT folder's tensors under the names of the adapted model's parameters."""
    from safetensors.torch import load_file

    try:
        stored = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise MissingInputError(where, f"{WEIGHTS} cannot be read ({error})", "Copy the file again.") from None
    return {_own_name(name): tensor for name, tensor in stored.items()}


def _own_name(name: str) -> str:
    """`base_model.model.X.lora_A.weight` -> `X.lora_A.default.weight`."""
    stem, _, last = name.removeprefix(_PREFIX).rpartition(".")
    return f"{stem}.{TRAINED}.{last}"


def _stored_name(name: str) -> str:
    """The inverse of `_own_name`."""
    return _PREFIX + name.replace(f".{TRAINED}.", ".")


def write_adapter(folder: Path, *, model: nn.Module, tokenizer: Any, weights: Mapping[str, Tensor], base: str) -> None:
    """Write a PEFT folder: `weights` under the names of the model's parameters, the adapter's configuration, the tokenizer."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    own = {_stored_name(name): tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    files.write_bytes(folder / WEIGHTS, save(own, {"format": "pt"}))
    config = model.peft_config[TRAINED].to_dict()  # type: ignore[union-attr, index]
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    text = json.dumps({name: _plain(config[name]) for name in sorted(config)}, indent=2)
    files.write_bytes(folder / ADAPTER, f"{text}\n".encode())
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _plain(value: Any) -> Any:
    """A configuration's value as JSON has it, the same in every process: sets are sorted."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return getattr(value, "value", value)


def describe(model: nn.Module) -> str:
    """One line about what is adapted: how many layers, at which ends of names, with how many numbers."""
    layers = [name for name, _ in adapted_layers(model)]
    ends = sorted({name.rpartition(".")[2] for name in layers})
    trained = sum(value.numel() for value in trained_tensors(model).values())
    return f"adapters at {len(layers)} layers ({', '.join(ends)}): {trained:,} numbers are trained"
