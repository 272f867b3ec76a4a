"""Models and tokenizers from folders in hub format, hub ids, and the model that ships with the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from covey.engines.adapters import Lora, add_adapter, is_adapted
from covey.engines.chat import PLAIN, Chat, check_chat, decode, opens_thought, split_thought
from covey.engines.chat import render as render
from covey.engines.folders import ADAPTER, check_config, check_folder, find_folder, first_line
from covey.engines.peft_folder import Stored, load_adapter, read_stored
from covey.engines.quantize import quantize_linear
from covey.errors import ConfigError, MissingInputError, did_you_mean
from covey.hub import quiet
from covey.models import find_model
from covey.types import Message

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
TINY = Path(find_model("tiny"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What a model is besides its files: adapters on it, how its frozen weights are kept, how it speaks.

    `seed` decides the values of fresh adapters. `quantize` is nf4, int8 or None.
    """

    lora: Lora | None = None
    quantize: str | None = None
    chat: Chat = PLAIN
    seed: int = 0


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM with its tokenizer. `stop_ids` are resolved once, here; nothing else of a generation config is used.

    `base` names the model under adapters so that others find it: an absolute folder or a hub id.
    """

    model: nn.Module
    tokenizer: Any
    stop_ids: tuple[int, ...]
    source: str
    base: str = ""
    chat: Chat = field(default=PLAIN)

    @property
    def adapted(self) -> bool:
        """Whether it bears adapters."""
        return is_adapted(self.model)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's token ids, ready for the model's turn; see `render`."""
        return render(self.tokenizer, messages, self.chat)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of response ids without special tokens; of a model that thinks, what follows the thought."""
        return self.split(tokens)[1]

    def think(self, tokens: Sequence[int]) -> str:
        """The thought in response ids: what stands between the thinking tags; empty without such tags."""
        return self.split(tokens)[0]

    def split(self, tokens: Sequence[int]) -> tuple[str, str]:
        """Thought and text of response ids."""
        tags = self.chat.thinking
        if tags is None:
            return "", decode(self.tokenizer, tokens)
        return split_thought(decode(self.tokenizer, tokens, tags), tags, opened=self._opened)

    @cached_property
    def _opened(self) -> bool:
        return opens_thought(self.tokenizer, self.chat)


def load_model(
    source: str | Path,
    *,
    dtype: str = "float32",
    options: ModelOptions = ModelOptions(),
) -> LoadedModel:
    """Load `tiny`, a local folder in hub format, or a hub id (from the local cache, or the hub where it can be reached).

    A PEFT folder gives its base with its adapter. With `options.lora` a model gets fresh adapters, and a PEFT folder's own go
    on being trained; they must be those that the options describe. Never runs code that comes with a model, never unpickles.
    One-line errors: MissingInputError for what is not there or cannot be read, ConfigError for what is there and cannot serve.
    """
    if dtype not in DTYPES:
        raise ConfigError("model.dtype", f"there is no dtype '{dtype}'", did_you_mean(str(dtype), DTYPES))
    where = f"model {source}"
    with quiet():
        folder = find_folder(str(source), where)
        stored = read_stored(folder, where) if (folder / ADAPTER).is_file() else None
        base = folder if stored is None else find_folder(stored.base, f"{where}: its base {stored.base}")
        model, tokenizer = _load_base(base, where if stored is None else f"{where}: its base {base}", DTYPES[dtype])
        if stored is not None and (folder / "tokenizer_config.json").is_file():
            tokenizer = _load_tokenizer(folder, where)
        _adapt(model, stored, options, where)
    _check_vocabulary(model, tokenizer, where)
    check_chat(tokenizer, options.chat)
    stop_ids = _find_stop_ids(model, tokenizer, where)
    name = _lasting_name(str(source) if stored is None else stored.base, base)
    return LoadedModel(model, tokenizer, stop_ids, str(source), name, options.chat)


def _load_base(folder: Path, where: str, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """An ordinary model folder's model and tokenizer."""
    if (folder / ADAPTER).is_file():
        raise ConfigError(where, "it is an adapter itself", "Merge it into its own base first.")
    check_folder(folder, where)
    check_config(folder, where)
    return _load_weights(folder, where, dtype), _load_tokenizer(folder, where)


def _adapt(model: nn.Module, stored: Stored | None, options: ModelOptions, where: str) -> None:
    """Round the frozen weights and put the adapters on: the stored ones, or fresh ones where they are asked for."""
    if options.quantize is not None:
        quantize_linear(model, options.quantize)
    if stored is not None:
        load_adapter(model, stored, where, expected=options.lora)
    elif options.lora is not None:
        add_adapter(model, options.lora, seed=options.seed)


def _lasting_name(source: str, folder: Path) -> str:
    """A name under which the model is found from any directory: a hub id as it is, else the absolute folder."""
    return str(folder.resolve()) if Path(find_model(source)).expanduser().is_dir() else source


def _load_weights(folder: Path, where: str, dtype: torch.dtype) -> nn.Module:
    """The model with all of its weights from the files: none made up, none left over by shape."""
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, SafetensorError) as error:
        raise MissingInputError(
            where, f"its weights cannot be loaded ({first_line(error)})", "Copy the files again."
        ) from None
    except (ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise ConfigError(where, f"it cannot be built ({first_line(error)})", "Check its config.json.") from None
    for what, names in (("no", report["missing_keys"]), ("a misshapen", report["mismatched_keys"])):
        if names:
            first = sorted(name if isinstance(name, str) else name[0] for name in names)[0]
            raise MissingInputError(where, f"its files hold {what} weight '{first}'", "Copy the whole model.")
    return model.eval()  # type: ignore[no-any-return]


def _load_tokenizer(folder: Path, where: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raise bare Exceptions
        found = f"its tokenizer cannot be loaded ({first_line(error)})"
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
