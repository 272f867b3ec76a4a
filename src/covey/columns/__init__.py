"""Columns: named data per row or token that a recipe needs, provided once per rollout batch before credit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from covey.columns.reference import ReferenceLogp, Score
from covey.errors import ConfigError, did_you_mean
from covey.protocols import Column

PROVIDERS: dict[str, Callable[[Score, float], Column]] = {"ref_logp": ReferenceLogp}
"""Name of a column -> what makes its provider from (a forward pass, the sampling temperature)."""


def providers(needs: Sequence[str], score: Score, temperature: float) -> list[Column]:
    """The providers of the columns that a recipe needs."""
    for name in needs:
        if name not in PROVIDERS:
            raise ConfigError(
                "recipe", f"needs the column '{name}', which nothing provides", did_you_mean(name, PROVIDERS)
            )
    return [PROVIDERS[name](score, temperature) for name in needs]


__all__ = ["PROVIDERS", "providers"]
