"""Where a model's files are, and whether they can be what a model is made of, before anything is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import transformers
from huggingface_hub import errors as hub
from safetensors import SafetensorError, safe_open

from covey.errors import ConfigError, MissingInputError, RefusedError
from covey.hub import hub_answers
from covey.models import find_model

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
ADAPTER = "adapter_config.json"
"""The file that makes a folder an adapter's."""


def find_folder(source: str, where: str, *, weights: bool = True) -> Path:
    """The folder of a model: the package's own, a local one, or a hub id's in the local cache (filled where the hub answers).

    Without `weights` those of a hub id are not fetched.
    """
    folder = Path(find_model(source)).expanduser()
    if folder.is_dir():
        return folder
    if source == "tiny" or source.startswith((".", "~", os.sep)) or source.count("/") > 1 or folder.exists():
        raise MissingInputError(where, "there is no such folder", "Give a folder in hub format, a hub id, or 'tiny'.")
    reason = "it is no folder here, not in the local cache, and the hub does not answer"
    right = "Give a folder, 'tiny', or a hub id once while online."
    wanted = [pattern for pattern in _FILES if weights or pattern != "*.safetensors"]
    for offline in (False, True) if hub_answers() else (True,):
        try:
            return Path(huggingface_hub.snapshot_download(source, allow_patterns=wanted, local_files_only=offline))
        except (OSError, ValueError) as error:  # not there, no access, no such id: the local cache may have it
            reason, right = _explain(error) or (reason, right)
    raise MissingInputError(where, reason, right)


def _explain(error: Exception) -> tuple[str, str] | None:
    """What the hub's refusal means and what to do about it; None for an error that says no more than "not there"."""
    if isinstance(error, FileNotFoundError):
        return None
    if isinstance(error, hub.HFValidationError):
        return "it is no folder here and cannot be a hub id", "Give a folder, 'tiny', or an id like OWNER/NAME."
    if isinstance(error, hub.GatedRepoError):
        return (
            "the hub asks for its licence first",
            "Accept it on the model's page, then `hf auth login` or set HF_TOKEN.",
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        found = "it is no folder here, and the hub has no model of that name, or a private one"
        return found, "Check the name; for a private model `hf auth login` or set HF_TOKEN."
    if isinstance(error, hub.HfHubHTTPError):
        return f"the hub refuses it ({first_line(error)})", "Try again, or download it and give its folder."
    if isinstance(error, OSError) and error.errno is not None:
        return f"it cannot be stored ({error.strerror})", "Make room in HF_HOME, or give a folder."
    return None


def check_folder(folder: Path, where: str) -> None:
    """A model's files, before anything is loaded: configuration, every shard, whole and not pickled."""
    if not (folder / "config.json").is_file():
        raise MissingInputError(where, "the folder has no config.json", "Give a model folder in hub format.")
    index = folder / "model.safetensors.index.json"
    shards = {path.name for path in folder.glob("*.safetensors")}
    wanted = set(read_json(index, where)["weight_map"].values()) if index.is_file() else set()
    if missing := sorted(wanted - shards):
        raise MissingInputError(where, f"the shard {missing[0]} is missing", "Copy the whole folder.")
    if not shards:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        found = "its weights are pickled, which covey never opens" if pickled else "it has no weights"
        raise MissingInputError(where, found, "Give model.safetensors.")
    for name in sorted(shards):
        try:
            with safe_open(folder / name, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise MissingInputError(where, f"{name} cannot be read ({error})", "Copy the file again.") from None


def read_json(path: Path, where: str) -> dict[str, Any]:
    """The object in a JSON file; one line where it cannot be read."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MissingInputError(where, f"{path.name} cannot be read ({error})", "Copy the file again.") from None
    return value


def check_config(folder: Path, where: str) -> None:
    """The architecture: known to transformers, without code of its own, a causal LM."""
    raw = read_json(folder / "config.json", where)
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    kind = raw.get("model_type")
    if kind not in known:
        if raw.get("auto_map"):
            raise RefusedError(
                where,
                "it needs code of its own (auto_map), which covey never runs",
                "Give a model that transformers knows.",
            )
        raise ConfigError(where, f"config.json has the unknown model_type {kind!r}", "Update transformers.")
    mapping = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if kind not in mapping:
        raise ConfigError(where, f"'{kind}' is no causal language model", "Give a decoder-only model.")
    if quantised := raw.get("quantization_config"):
        method = quantised.get("quant_method", "unknown method") if isinstance(quantised, dict) else quantised
        raise ConfigError(where, f"its weights are quantised ({method})", "Give float32, bfloat16 or float16 weights.")


def first_line(error: Exception) -> str:
    """What an error says first, shortened to one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
