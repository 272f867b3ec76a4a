"""Models and tokenizers from folders in hub format, hub ids, and the model that ships with the package."""

from __future__ import annotations

import json
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn

from covey.errors import ConfigError, DataError, MissingInputError, RefusedError, did_you_mean
from covey.models import find_model
from covey.types import Message

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
TINY = Path(find_model("tiny"))


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM with its tokenizer. `stop_ids` are resolved once, here; nothing else of a generation config is used."""

    model: nn.Module
    tokenizer: Any
    stop_ids: tuple[int, ...]
    source: str

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's token ids, ready for the model's turn; see `render`."""
        return render(self.tokenizer, messages)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of response ids without special tokens."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


def load_model(source: str | Path, *, dtype: str = "float32") -> LoadedModel:
    """Load `tiny`, a local folder in hub format, or a hub id (from the local cache, or the hub where it can be reached).

    Never runs code that comes with a model, never unpickles. One-line errors: MissingInputError for what is not there or cannot
    be read, ConfigError for what is there and cannot serve.
    """
    if dtype not in DTYPES:
        raise ConfigError("model.dtype", f"there is no dtype '{dtype}'", did_you_mean(str(dtype), DTYPES))
    where = f"model {source}"
    with quiet():
        folder = _find_folder(str(source), where)
        _check_folder(folder, where)
        _check_config(folder, where)
        model = _load_weights(folder, where, DTYPES[dtype])
        tokenizer = _load_tokenizer(folder, where)
    _check_vocabulary(model, tokenizer, where)
    return LoadedModel(model, tokenizer, _find_stop_ids(model, tokenizer, where), str(source))


def render(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """Token ids of a conversation up to the model's turn.

    With a chat template the text is the template's and no special tokens are added to it; without one it is the messages'
    contents, one after another, with the special tokens that the tokenizer puts in front. There is never more than one BOS.
    """
    if getattr(tokenizer, "chat_template", None):
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template may raise anything, and says why
            found = f"it raised {type(error).__name__}: {error}"
            raise ConfigError("model chat template", found, "Mend the template or the prompt's messages.") from None
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        ids = tokenizer("".join(message.content for message in messages), verbose=False)["input_ids"]
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    if not ids:
        raise DataError("prompt", "it has no tokens", "Give a text.")
    return tuple(ids)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without warnings and progress bars; what matters of them is an error here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _find_folder(source: str, where: str) -> Path:
    """The folder of a model: the package's own, a local one, or a hub id's in the local cache (filled where the hub answers)."""
    folder = Path(find_model(source)).expanduser()
    if folder.is_dir():
        return folder
    if source == "tiny" or source.startswith((".", "~", os.sep)) or source.count("/") > 1 or folder.exists():
        raise MissingInputError(where, "there is no such folder", "Give a folder in hub format, a hub id, or 'tiny'.")
    for offline in (False, True) if _hub_answers() else (True,):
        try:
            return Path(huggingface_hub.snapshot_download(source, allow_patterns=_FILES, local_files_only=offline))
        except (OSError, ValueError):  # not there, no access, no such id: the next source may have it
            continue
    raise MissingInputError(
        where,
        "it is no folder here, not in the local cache, and not to be had from the hub",
        "Give a folder, 'tiny', or a hub id once while online.",
    )


def _hub_answers() -> bool:
    """Whether a download can be tried at all: the hub's client goes on retrying for half a minute where there is no network."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    address = urllib.parse.urlparse(huggingface_hub.constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=3.0):
            return True
    except OSError:
        return False


def _check_folder(folder: Path, where: str) -> None:
    """A model's files, before anything is loaded: configuration, every shard, whole and not pickled."""
    if not (folder / "config.json").is_file():
        raise MissingInputError(where, "the folder has no config.json", "Give a model folder in hub format.")
    index = folder / "model.safetensors.index.json"
    shards = {path.name for path in folder.glob("*.safetensors")}
    wanted = set(_read_json(index, where)["weight_map"].values()) if index.is_file() else set()
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


def _read_json(path: Path, where: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MissingInputError(where, f"{path.name} cannot be read ({error})", "Copy the file again.") from None
    return value


def _check_config(folder: Path, where: str) -> None:
    """The architecture: known to transformers, without code of its own, a causal LM."""
    raw = _read_json(folder / "config.json", where)
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _load_weights(folder: Path, where: str, dtype: torch.dtype) -> nn.Module:
    """The model with all of its weights from the files: none made up, none left over by shape."""
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, SafetensorError) as error:
        raise MissingInputError(
            where, f"its weights cannot be loaded ({_first_line(error)})", "Copy the files again."
        ) from None
    except (ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise ConfigError(where, f"it cannot be built ({_first_line(error)})", "Check its config.json.") from None
    for what, names in (("no", report["missing_keys"]), ("a misshapen", report["mismatched_keys"])):
        if names:
            first = sorted(name if isinstance(name, str) else name[0] for name in names)[0]
            raise MissingInputError(where, f"its files hold {what} weight '{first}'", "Copy the whole model.")
    return model.eval()  # type: ignore[no-any-return]


def _load_tokenizer(folder: Path, where: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raise bare Exceptions
        found = f"its tokenizer cannot be loaded ({_first_line(error)})"
        raise MissingInputError(where, found, "The folder needs tokenizer.json and tokenizer_config.json.") from None


def _check_vocabulary(model: nn.Module, tokenizer: Any, where: str) -> None:
    """Every id that the tokenizer can make has a row in the embedding."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    highest, rows = max(vocabulary.values(), default=-1), model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if highest >= rows:
        found = f"the tokenizer has ids up to {highest}, the embedding has {rows} rows"
        raise ConfigError(where, found, "Resize the embedding or give the right tokenizer.")
    if not vocabulary:
        raise MissingInputError(where, "its tokenizer has no vocabulary", "The folder needs tokenizer.json.")


def _find_stop_ids(model: nn.Module, tokenizer: Any, where: str) -> tuple[int, ...]:
    """The ids that end a turn: the tokenizer's, then those of the generation config, each once."""
    config: Any = getattr(model, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    candidates = [tokenizer.eos_token_id, *(listed if isinstance(listed, (list, tuple)) else [listed])]
    found = tuple(dict.fromkeys(int(item) for item in candidates if item is not None))
    if not found:
        raise ConfigError(where, "neither tokenizer nor generation config has an end token", "Set eos_token.")
    return found
