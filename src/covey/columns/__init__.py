"""Columns: named data per row or token that a recipe needs, provided once per rollout batch before credit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from covey.columns.critic import EndValues, Values
from covey.columns.noise import Noise
from covey.columns.reference import ReferenceLogp, Score
from covey.errors import ConfigError, did_you_mean
from covey.protocols import Column

PROVIDERS: dict[str, Callable[[Score, float], Column]] = {
    "noise": Noise,
    "ref_logp": ReferenceLogp,
    "value_end": EndValues,
}
"""Name of a column -> what makes its provider from (a forward pass, the sampling temperature)."""


def providers(
    needs: Sequence[str], score: Score, temperature: float, trained: Mapping[str, Column] | None = None
) -> list[Column]:
    """The providers of the columns that a recipe needs; those that are trained are given."""
    trained = trained or {}
    known = {*PROVIDERS, *trained}
    for name in needs:
        if name not in known:
            raise ConfigError("recipe", f"needs the column '{name}', which nothing provides", did_you_mean(name, known))
    return [trained[name] if name in trained else PROVIDERS[name](score, temperature) for name in needs]


__all__ = ["PROVIDERS", "Values", "providers"]
