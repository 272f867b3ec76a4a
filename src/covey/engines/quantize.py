"""A frozen model's linear layers in 4 or 8 bits; what is trained are adapters on top (QLoRA, arXiv 2305.14314).

nf4: blocks of 64 numbers on the 16 levels of a normal distribution, scales rounded to 8 bits in turn, by bitsandbytes.
int8: one scale per row. Only weights are rounded, never activations, and a layer spreads its weight out again whenever it is
used, in the forward of the sampler and of the learner alike: both compute with the same numbers. Embedding, head, norms, and
experts that are stacked tensors keep their format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from covey.engines.adapters import hush, linear_modules
from covey.errors import ConfigError, MissingInputError, did_you_mean

FORMATS = ("nf4", "int8")
_BLOCK = 64


def quantize_linear(model: nn.Module, form: str) -> None:
    """Round the weights of a model's linear layers, in place, one after another; the head stays as it is."""
    if form not in FORMATS:
        raise ConfigError("model.quantize", f"there is no format '{form}'", did_you_mean(form, FORMATS))
    linear = linear_modules(model)
    if not linear:
        raise ConfigError("model.quantize", f"{type(model).__name__} has no linear layers to round", "Leave it out.")
    for name in list(linear):
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, RoundedLinear(linear.pop(name), form))
    for value in model.parameters():  # a view of the weights' file would keep the whole file in memory
        value.data = value.data.clone()
    model.requires_grad_(False)


def count_rounded(model: nn.Module) -> int:
    """How many numbers of a model are kept in few bits: they are no parameters."""
    return sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, RoundedLinear))


class RoundedLinear(nn.Linear):
    """A linear layer whose weight is kept in few bits; `weight` is what they stand for, in the layer's format."""

    def __init__(self, module: Any, form: str) -> None:
        nn.Module.__init__(self)
        weight = module.weight.detach() if isinstance(module, nn.Linear) else module.weight.detach().T
        self.out_features, self.in_features = weight.shape
        self.form, self.dtype = form, weight.dtype
        self.state: Any = None
        self.packed: Tensor
        self.scale: Tensor
        self.register_parameter("bias", None if module.bias is None else nn.Parameter(module.bias.detach(), False))
        exact = weight.to(torch.float32 if weight.dtype == torch.float64 else weight.dtype).contiguous()
        if form == "nf4":
            packed, self.state = import_bitsandbytes().functional.quantize_4bit(
                exact, blocksize=_BLOCK, compress_statistics=True, quant_type="nf4"
            )
            self.register_buffer("packed", packed)
            return
        scale = exact.float().abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("packed", (exact.float() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The rounded weight [outputs, inputs], spread out anew at every use."""
        if self.form == "nf4":
            spread: Tensor = import_bitsandbytes().functional.dequantize_4bit(self.packed, self.state)
            return spread.to(self.dtype)
        return self.packed.float().mul_(self.scale).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """W x + b. The backward pass spreads the weight out once more, so that none of them is held in between."""
        y: Tensor = _Product.apply(x, lambda: self.weight)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RoundedLinear:
        """Go to another device together with the scales; the formats of what is packed never change."""
        packed, scale = self.packed, self._buffers.get("scale")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.packed = packed.to(self.packed.device)
        if scale is not None:
            self.scale = scale.to(self.packed.device)
        if self.state is not None:
            self.state.to(self.packed.device)
        return self


class _Product(torch.autograd.Function):
    """x W^T with a weight that is made when it is needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, make: Callable[[], Tensor]) -> Tensor:
        ctx.make = make
        return nn.functional.linear(x, make())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.make(), None


def import_bitsandbytes() -> Any:
    """The bitsandbytes library, or one line that says how to get it."""
    hush()
    try:
        import bitsandbytes
    except ImportError:
        raise MissingInputError("model.quantize", "needs `pip install covey[quantize]` (bitsandbytes)") from None
    return bitsandbytes
