"""An adapter and its base as one ordinary model folder, for whoever wants no adapters."""

from __future__ import annotations

from pathlib import Path

from covey import checkpoint
from covey.engines.adapters import merge_adapter
from covey.engines.loading import load_model
from covey.errors import ConfigError


def write_merged(source: str | Path, folder: Path, *, dtype: str = "float32") -> None:
    """Write the ordinary transformers folder `folder` of a PEFT folder: every W + alpha / rank * B A in the format `dtype`.

    The base is taken as it is, never rounded to few bits. Raises ConfigError for a model without an adapter.
    """
    loaded = load_model(source, dtype=dtype)
    if not loaded.adapted:
        raise ConfigError(
            f"model {source}", "it has no adapter that could be merged", "It is an ordinary model already."
        )
    model = merge_adapter(loaded.model)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    checkpoint.export(folder, model=model, tokenizer=loaded.tokenizer, weights=weights)
