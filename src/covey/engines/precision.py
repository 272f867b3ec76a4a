"""Keep a float64 model in float64: transformers' norms, softmaxes and routers name float32 in their code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class KeepDouble(TorchFunctionMode):
    """Inside, a cast of a float64 tensor to float32 (`.float()`, `.to(float32)`, `softmax(dtype=float32)`) does nothing.

    Without it a float64 model rounds to float32 in every layer, and gradients of slices add up to 1e-8 instead of 1e-15.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not args or not isinstance(args[0], Tensor) or args[0].dtype != torch.float64:
            return func(*args, **kwargs)
        if func is Tensor.float:
            return args[0]
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in kwargs.items()}
        return func(*args, **kwargs)


def is_double(module: nn.Module) -> bool:
    """Whether a module's parameters are float64."""
    first = next(module.parameters(), None)
    return first is not None and first.dtype == torch.float64


def precision(model: nn.Module) -> AbstractContextManager[Any]:
    """The context in which a model's forward has to run."""
    return KeepDouble() if is_double(model) else nullcontext()


def keep_double(layer: nn.Module) -> None:
    """Make a layer keep float64 by itself, so that it also does when it is recomputed in the backward pass.

    The layer gets a subclass of its class (not a new `forward` attribute, which a deep copy would share with the original).
    """
    cls: Any = type(layer)
    if not is_double(layer) or getattr(cls, "keeps_double", False):
        return

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with KeepDouble():
            return cls.forward(self, *args, **kwargs)

    layer.__class__ = type(
        cls.__name__, (cls,), {"forward": forward, "keeps_double": True, "__module__": cls.__module__}
    )
