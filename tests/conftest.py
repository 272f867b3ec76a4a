"""Settings of all tests: checked shapes in the stages, one thread, reproducible properties."""

from __future__ import annotations

import os

import hypothesis
from jaxtyping import install_import_hook

# Shapes are promises in covey.stages and covey.functional; they are checked here and cost nothing in a run.
with install_import_hook(["covey.stages", "covey.functional"], "beartype.beartype"):
    import covey.functional
    import covey.stages.credit
    import covey.stages.objective

import torch

from covey.recipes.recipe import Recipe

# These names exist for type checkers only; beartype looks them up when a function is called.
covey.stages.credit.Recipe = Recipe  # type: ignore[attr-defined]
covey.stages.objective.Recipe = Recipe  # type: ignore[attr-defined]

torch.set_num_threads(1)

# The same examples every time, so that a failure is the change's fault; `EXPLORE=1` draws new ones, and more of them.
hypothesis.settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=200)
hypothesis.settings.load_profile("explore" if os.environ.get("EXPLORE") else "default")
