"""The typed configuration of a run: values, YAML, layers with their origin, and the schema of every key."""

from __future__ import annotations

from covey.config.layers import Resolved, resolve
from covey.config.values import (
    Budget,
    Engines,
    ModelConfig,
    OptimizerConfig,
    Report,
    RunConfig,
    SamplingConfig,
)

__all__ = [
    "Budget",
    "Engines",
    "ModelConfig",
    "OptimizerConfig",
    "Report",
    "Resolved",
    "RunConfig",
    "SamplingConfig",
    "resolve",
]
