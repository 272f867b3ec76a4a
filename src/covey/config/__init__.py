"""The typed configuration of a run: values, YAML, layers with their origin, and the schema of every key."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covey.config.layers import Resolved, resolve
    from covey.config.values import (
        BestConfig,
        Budget,
        Engines,
        LoraConfig,
        ModelConfig,
        OptimizerConfig,
        Report,
        RunConfig,
        SamplingConfig,
        Scoring,
    )

__all__ = [
    "BestConfig",
    "Budget",
    "Engines",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Report",
    "Resolved",
    "RunConfig",
    "SamplingConfig",
    "Scoring",
    "resolve",
]


def __getattr__(name: str) -> Any:
    """Load values (and with them recipes and torch) when they are named: YAML alone is read without them."""
    if name not in __all__:
        raise AttributeError(f"module 'covey.config' has no attribute {name!r}")
    module = "layers" if name in ("Resolved", "resolve") else "values"
    return getattr(import_module(f"covey.config.{module}"), name)
