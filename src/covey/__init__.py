"""covey: reinforcement-learning post-training of language models, every method a short recipe of the same few stages."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covey import recipes
    from covey.callbacks import Callback
    from covey.run import Run
    from covey.start import train
    from covey.types import Prompt

__version__ = "0.1.0"
__all__ = ["Callback", "Prompt", "Run", "__version__", "recipes", "train"]

_LAZY = {
    "Callback": "covey.callbacks",
    "train": "covey.start",
    "Run": "covey.run",
    "recipes": "covey.recipes",
    "Prompt": "covey.types",
}


def __getattr__(name: str) -> Any:
    """Load what needs torch only when it is named, so that `import covey` stays instant."""
    if name not in _LAZY:
        raise AttributeError(f"module 'covey' has no attribute {name!r}")
    module = import_module(_LAZY[name])
    return module if _LAZY[name].rpartition(".")[2] == name else getattr(module, name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
