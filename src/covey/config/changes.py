"""What differs between two configurations, and what of it may differ when a run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from covey.config.paths import same
from covey.errors import ConfigError

HARMLESS = ("budget.eval_", "budget.checkpoint_", "budget.best", "report.", "engines.", "scoring.")
"""Keys that may change when a run goes on: they say how often to look and to save, and where it runs."""


def leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in plain data; members of a list of components stand under their kind."""
    for name, value in data.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) and "kind" in item for item in value):
            for item in value:
                yield from leaves(item, f"{path}.{item['kind']}.")
        else:
            yield path, value


def refuse_changes(run: Path, made: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with settings that change what is learnt, with old and new value; `made` and `wanted` are plain data."""
    before, after = dict(leaves(made)), dict(leaves(wanted))
    free = [*HARMLESS, *(["budget.steps"] if before.get("budget.optimizer.schedule") == "constant" else [])]
    changed = [
        f"{key} {before.get(key)!r:.40} -> {after.get(key)!r:.40}"
        for key in dict.fromkeys((*before, *after))
        if not same(before.get(key), after.get(key)) and not key.startswith(tuple(free))
    ]
    if changed:
        right = "Resume without these settings, or start a new run."
        raise ConfigError(str(run), f"the run was made with other settings: {', '.join(changed)}", right)
