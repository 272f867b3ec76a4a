"""One attention function for transformers models, which leaves the arrangement of tokens to a layout object.

The layout travels as a keyword argument through the model's forward down to the attention function, so nothing is global
and a recomputed layer sees the layout that it had in the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from covey.engines.experts import settle_experts
from covey.engines.precision import keep_double
from covey.errors import ConfigError

NAME = "covey"
KEYWORD = "covey_layout"
BLOCK = 128
LARGEST_GRANULE = 64
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_FOREIGN = ("s_aux", "sinks", "position_bias", "head_mask")
_SMALL = 400


@dataclass(frozen=True, slots=True)
class Rule:
    """How a layer weighs keys: `softmax(cap(scaling * q k))`, over the last `window` positions if there is a window."""

    scaling: float
    window: int | None = None
    softcap: float | None = None


class Layout(Protocol):
    """Says which keys belong to a query: tokens come packed, as `[tokens, heads, size]`."""

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "M H D"],
        key: Float[Tensor, "M KV D"],
        value: Float[Tensor, "M KV E"],
        *,
        rule: Rule,
    ) -> Float[Tensor, "M H E"]: ...


def _read_rule(module: nn.Module, query: Tensor, options: dict[str, Any]) -> Rule:
    """What the layer asks for; refuses what a layout cannot honour."""
    name = type(module).__name__
    for foreign in _FOREIGN:
        if options.get(foreign) is not None:
            raise ConfigError("model", f"{name} passes '{foreign}' to its attention, which covey cannot honour", "")
    window = options.get("sliding_window")
    kinds = getattr(getattr(module, "config", None), "layer_types", None)
    kind = kinds[module.layer_idx] if kinds and isinstance(module.layer_idx, int) else None
    if kind == "sliding_attention" and window is None:
        raise ConfigError("model", f"{name} has a sliding window that it does not pass to its attention function", "")
    scaling = options.get("scaling")
    return Rule(query.shape[-1] ** -0.5 if scaling is None else scaling, window, options.get("softcap"))


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The function registered with transformers: `[1, heads, tokens, size]` in, `[1, tokens, heads, size]` out."""
    layout = options.get(KEYWORD)
    if layout is None:
        raise ConfigError(
            "model",
            f"{type(module).__name__} was called without covey's layout",
            "Use covey's scorer or sampler, or model.set_attn_implementation('sdpa') for a plain forward.",
        )
    rule = _read_rule(module, query, options)
    packed = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return layout.attend(module.layer_idx, *packed, rule=rule)[None], None


AttentionInterface.register(NAME, attention)


def attend_exactly(
    query: Float[Tensor, "S R D"],
    key: Float[Tensor, "S W D"],
    value: Float[Tensor, "S W E"],
    *,
    bias: Float[Tensor, "S R W"],
    rule: Rule,
) -> Float[Tensor, "S R E"]:
    """Attention of R queries to W keys in each of S places, bitwise the same for any S and any greater W (CPU, float32).

    `bias` is 0 where a key is seen and -inf elsewhere. Two things in matrix products depend on their size: below 400
    multiplications another kernel runs (see `granule`), and beyond 192 terms a sum is cut in halves. So the sum over keys
    is cut here, at multiples of 128, where every width cuts it.
    """
    if rule.softcap is None:
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=rule.scaling)
    else:
        scores = torch.bmm(query, key.transpose(1, 2)).mul_(rule.scaling / rule.softcap).tanh_().mul_(rule.softcap)
        scores += bias
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=exact).to(value.dtype)
    out = torch.bmm(weights[..., :BLOCK], value[:, :BLOCK])
    for start in range(BLOCK, value.shape[1], BLOCK):
        stop = min(start + BLOCK, value.shape[1])
        out.baddbmm_(weights[..., start:stop], value[:, start:stop])
    return out


def granule(rows: int, size: int) -> int:
    """The number that key widths are multiples of: 16 (vector lanes), more where a product would be tiny."""
    width = 16
    while width < LARGEST_GRANULE and width * rows * size < _SMALL:
        width *= 2
    return width


def round_up(count: int, unit: int = 16) -> int:
    """The smallest multiple of `unit` that is not below `count`."""
    return -(-count // unit) * unit


def visible(query_at: Int[Tensor, "*B Q"], width: int, window: int | None) -> Tensor:
    """Whether the key at position 0 .. width-1 is seen from a query's position: not later, and inside the window."""
    at = torch.arange(width, device=query_at.device)
    seen = at <= query_at[..., None]
    return seen if window is None else seen & (at > query_at[..., None] - window)


def prepare(model: Any) -> None:
    """Make a causal LM ready for covey: our attention function, no dropout ever. Refuses models it cannot serve."""
    config = model.config.get_text_config()
    unknown = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if unknown:
        raise ConfigError("model", f"layers of type {sorted(unknown)[0]}", "covey knows full and sliding attention.")
    model.eval()
    settle_experts(model)
    for layer in layers_of(model):
        keep_double(layer)
    switch_attention(model, NAME)


def switch_attention(model: Any, name: str) -> None:
    """Use another registered attention function from now on."""
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        found = f"{type(model).__name__} does not let its attention function be chosen"
        raise ConfigError("model", found, "Use a model on transformers' attention interface.")


@contextmanager
def borrowed_attention(model: Any, name: str) -> Iterator[None]:
    """Another attention function for a while."""
    before = model.config._attn_implementation
    switch_attention(model, name)
    try:
        yield
    finally:
        switch_attention(model, before)


def decoder_of(model: Any) -> nn.Module:
    """The part of a causal LM that ends in hidden states."""
    decoder: nn.Module = model.get_decoder()
    if decoder is model:
        raise ConfigError("model", f"{type(model).__name__} has no decoder apart from its head", "Use a causal LM.")
    return decoder


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The transformer layers, in order: the units of recomputation and of sharding."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
