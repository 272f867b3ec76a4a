"""The models that are timed: random weights, so sequences end at random."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

EOS = 1
SIZES = {"small": (4, 128, 4, 2, 32), "medium": (5, 384, 6, 2, 64)}
"""Name -> layers, width, heads, key-value heads, head width."""


def build(size: str, vocabulary: int = 128) -> PreTrainedModel:
    """A Qwen3 model of about 0.8 (small) or 9 (medium) million parameters."""
    layers, width, heads, kv, head = SIZES[size]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=head,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()
