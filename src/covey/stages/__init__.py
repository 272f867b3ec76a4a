"""Ring one: the stages of a recipe as pure mathematics. Tensors in, tensors out: no I/O, no randomness, no config, no logging."""

from covey.stages import (
    admit,
    advantages,
    corrections,
    coupled,
    covariance,
    detached,
    filters,
    gae,
    mix,
    penalties,
    ratios,
    reference,
    shapers,
    surrogates,
    values,
    weighting,
)

__all__ = [
    "admit",
    "advantages",
    "corrections",
    "coupled",
    "covariance",
    "detached",
    "filters",
    "gae",
    "mix",
    "penalties",
    "ratios",
    "reference",
    "shapers",
    "surrogates",
    "values",
    "weighting",
]
