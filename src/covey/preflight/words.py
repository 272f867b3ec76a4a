"""A model without its weights: tokenizer, configuration and the ids that end a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import transformers

from covey.engines import loading
from covey.engines.chat import PLAIN, Chat, check_chat, render
from covey.engines.folders import ADAPTER, check_config, check_folder, find_folder
from covey.engines.peft_folder import read_stored
from covey.errors import ConfigError
from covey.hub import quiet
from covey.models import find_model
from covey.types import Message


@dataclass(frozen=True)
class Words:
    """How a model reads and writes text."""

    tokenizer: Any
    config: Any
    stop_ids: tuple[int, ...]
    folder: Path
    chat: Chat = PLAIN

    @property
    def context(self) -> int | None:
        """The longest sequence that the model was made for, in tokens; None where its configuration does not say."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's token ids, as a run renders them."""
        return render(self.tokenizer, messages, self.chat)

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of a bare text, without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def open_words(source: str, chat: Chat = PLAIN) -> Words:
    """Everything of a model but its weights; of a folder of adapters, its base's. Raises what loading the model would raise."""
    where = f"model {source}"
    with quiet():
        folder = find_folder(source, where, weights=False)
        if (folder / ADAPTER).is_file():
            source = read_stored(folder, where).base
            folder = find_folder(source, where, weights=False)
        if Path(find_model(source)).expanduser().is_dir():  # of a hub id the weights may still be there
            check_folder(folder, where)
        check_config(folder, where)
        config = transformers.AutoConfig.from_pretrained(folder)
        tokenizer = loading._load_tokenizer(folder, where)
        try:
            generation: Any = transformers.GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError):  # the file is optional; then the configuration's end token is what a model has
            generation = SimpleNamespace(eos_token_id=getattr(config.get_text_config(), "eos_token_id", None))
    stop_ids = loading._find_stop_ids(cast(Any, SimpleNamespace(generation_config=generation)), tokenizer, where)
    rows, highest = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        found = f"the tokenizer has ids up to {highest}, the embedding has {rows} rows"
        raise ConfigError(where, found, "Resize the embedding or give the right tokenizer.")
    check_chat(tokenizer, chat)
    return Words(tokenizer, config, stop_ids, folder, chat)
