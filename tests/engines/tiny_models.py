"""Tiny random causal LMs of five architectures, with logits of standard deviation about 2."""

from __future__ import annotations

import random
from collections.abc import Sequence

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

from covey.batch import Batch, Keep
from covey.collect.rows import rows
from covey.types import Group, Prompt, Request, Rollout, RolloutKey, Sample

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
    "gemma": lambda: GemmaConfig(**{**_SHAPE, "num_key_value_heads": 1}, tie_word_embeddings=False),
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


def make_rows(
    shape: dict[int, tuple[int, list[int]]],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    vocabulary: int = VOCABULARY,
) -> Batch:
    """Random rows: `shape` maps a group to (prompt length, response lengths); some tokens in the middle are not the policy's."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(3, vocabulary, (count,), generator=generator).tolist()

    groups, rollouts = [], []
    for at, (prompt, lengths) in shape.items():
        tokens = tuple(draw(prompt))
        for index, length in enumerate(lengths):
            rollouts.append((at, index, draw(length)))
        groups.append((at, tokens))
    width = max((len(tokens) for *_, tokens in rollouts), default=0) + 2
    n = len(rollouts)
    tokens, mask = torch.zeros(n, width, dtype=torch.long), torch.zeros(n, width, dtype=torch.bool)
    for row, (_, _, written) in enumerate(rollouts):
        tokens[row, : len(written)] = torch.tensor(written, dtype=torch.long)
        mask[row, : len(written)] = True
        if row % 3 == 1 and len(written) > 4:
            mask[row, 2:4] = False
    zeros = torch.zeros(n, width, dtype=dtype)
    whole = torch.zeros(n, width, dtype=torch.long)
    return Batch(
        prompts=dict(groups),
        tokens=tokens,
        mask=mask,
        sampled_logp=zeros,
        old_logp=zeros,
        turn=whole,
        version=whole,
        length=torch.tensor([len(written) for *_, written in rollouts], dtype=torch.long),
        group=torch.tensor([at for at, *_ in rollouts], dtype=torch.long),
        rollout=torch.arange(n),
        stop=torch.zeros(n, dtype=torch.long),
        limit=torch.full((n,), width),
        reward=torch.zeros(n, 1),
        reward_names=("score",),
        reward_weights=(1.0,),
        keep=Keep.all(n),
    )


def rows_of_samples(requests: Sequence[Request], found: Sequence[Sequence[Sample]], dtype: torch.dtype) -> Batch:
    """What a sampler returned, as rows."""
    groups = [
        Group(
            request.id,
            Prompt(request.id, (), None, "test"),
            request.tokens,
            tuple(Rollout(RolloutKey(request.id, at), (s.turn,), s.stop, 64) for at, s in enumerate(samples)),
        )
        for request, samples in zip(requests, found, strict=True)
    ]
    return rows(groups, {}, dtype)


def make_requests(count: int, samples: int, *, seed: int = 0, longest: int = 40) -> list[Request]:
    """Requests with prompts of 1 to `longest` tokens."""
    draw = random.Random(seed)
    return [
        Request(
            f"p{at}",
            tuple(draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, longest))),
            tuple(draw.getrandbits(64) for _ in range(samples)),
        )
        for at in range(count)
    ]
