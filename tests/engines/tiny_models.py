"""Tiny random causal LMs of five architectures, with logits of standard deviation about 2."""

from __future__ import annotations

import torch
from transformers import (
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

VOCABULARY = 61
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
CONFIGS = {
    "qwen3": lambda: Qwen3Config(**_SHAPE, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**{**_SHAPE, "num_key_value_heads": 4}, tie_word_embeddings=False),
    "gemma": lambda: GemmaConfig(**{**_SHAPE, "num_key_value_heads": 1}, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **_SHAPE, moe_intermediate_size=32, num_experts=6, num_experts_per_tok=2, tie_word_embeddings=False
    ),
    "gemma2": lambda: Gemma2Config(**_SHAPE, sliding_window=20, query_pre_attn_scalar=16),
}
CONTRACT = ("qwen3", "llama", "gemma", "gpt2", "qwen3_moe")


def make_model(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A model with random weights; its head is scaled until logits have a standard deviation of about 2."""
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3 if "emb" in key or "wte" in key else 0.15)
            elif "bias" in key:
                parameter.normal_(0.0, 0.1)
        if name == "qwen3_moe":
            model.set_experts_implementation("eager")
        logits = model(torch.arange(VOCABULARY)[None], use_cache=False).logits
        model.get_output_embeddings().weight.mul_(2.0 / logits.std())
    return model.to(dtype)
