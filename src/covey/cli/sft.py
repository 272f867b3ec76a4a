"""`covey sft`: supervised fine-tuning on rows of prompts and responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from covey.cli.settings import AsJson, ConfigFile, Settings, print_json
from covey.errors import ConfigError


def sft(settings: Settings = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Teach a model to answer as a JSONL file of examples does.

    Keys: data, model, out, steps, batch, lr, seed and others of `covey.sft.SftConfig`.
    """
    from covey.sft import SftConfig, run

    options = read_options(settings or [], config, list(SftConfig.model_fields))
    missing = [name for name, field in SftConfig.model_fields.items() if field.is_required() and name not in options]
    if missing:
        raise ConfigError(missing[0], "absent", f"Write {missing[0]}=VALUE.")
    folder = run(**options)
    if as_json:
        print_json({"model": str(folder)})
    else:
        typer.echo(f"saved {folder}")


def read_options(settings: list[str], file: Path | None, known: list[str]) -> dict[str, Any]:
    """Plain options of a file, then of KEY=VALUE; unknown and repeated keys are refused."""
    from covey.config.nearest import suggest
    from covey.config.text import read, read_setting, read_text

    options = {} if file is None else read(read_text(file), str(file))[0]
    given: dict[str, Any] = {}
    for text in settings:
        key, value = read_setting(text, known)
        if key in given:
            raise ConfigError(key, "given twice", "Give one of them.")
        given[key] = value
    for key in (*options, *given):
        if key not in known:
            place = key if key in given else f"{file}: {key}"
            raise ConfigError(place, "there is no such key", suggest(key, known, f"Known: {', '.join(known)}."))
    return {**options, **given}
