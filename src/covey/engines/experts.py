"""Mixtures of experts whose result for a token does not depend on the other tokens of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "covey"
_UNIT = 16


def mix_experts(
    module: nn.Module,
    hidden: Float[Tensor, "M H"],
    chosen: Int[Tensor, "M E"],
    weights: Float[Tensor, "M E"],
) -> Float[Tensor, "M H"]:
    """Sum of each token's experts, in ascending order of the expert.

    The rows of every expert are filled up to a multiple of 16 (with copies that are dropped), because a matrix product gives
    a row the same bits in any batch only then.
    """
    experts: Any = module
    out = torch.zeros_like(hidden)
    for expert in range(experts.gate_up_proj.shape[0]):
        token, slot = (chosen == expert).nonzero(as_tuple=True)
        if not len(token):
            continue
        rows = torch.cat([token, token[:1].expand(-len(token) % _UNIT)])
        gated = experts._apply_gate(linear(hidden.index_select(0, rows), experts.gate_up_proj[expert]))
        result = linear(gated, experts.down_proj[expert])[: len(token)] * weights[token, slot, None]
        out = out.index_add(0, token, result.to(out.dtype))
    return out


ALL_EXPERTS_FUNCTIONS.register(NAME, mix_experts)


def _is_plain(module: nn.Module) -> bool:
    """Whether experts are two stacked projections with a gate between them and nothing else."""
    wanted = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}
    plain = all(getattr(module, name, None) is value for name, value in wanted.items())
    return plain and not getattr(module, "has_post_expert_norm", False) and hasattr(module, "_apply_gate")


def settle_experts(model: nn.Module) -> None:
    """Use our experts on a CPU where a model has experts of the usual form; otherwise what transformers chose."""
    experts = _experts_of(model)
    device = next(model.parameters()).device.type
    if experts and device == "cpu" and all(_is_plain(module) for module in experts):
        model.set_experts_implementation(NAME)  # type: ignore[operator]


@contextmanager
def borrowed_experts(model: nn.Module, name: str) -> Iterator[None]:
    """Another implementation of the experts for a while, where a model has any."""
    config: Any = model.config
    before = config._experts_implementation
    if not _experts_of(model):
        yield
        return
    model.set_experts_implementation(name)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_experts_implementation(before)  # type: ignore[operator]


def _experts_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "has_gate") and hasattr(module, "gate_up_proj")]
