"""Two short runs on a small random model, whole weights and adapters, and what is exported of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from covey.engines.loading import TINY, load_model
from covey.engines.sampler import HFSampler
from covey.export import export
from covey.start import train
from covey.target import find_target
from covey.types import Message, Request, Sampling

PROMPTS = ("A(abc)=", "K(B(acaf))=", "12+7=", "L(dfca)=", "feed a cab")
MAX_TOKENS = 24
HEAD_DIM = 64
"""vLLM's CPU attention takes heads of 32 dimensions and more; those of the embedded models have 16."""


@dataclass(frozen=True)
class Made:
    """Folders: the base, a run of each kind, and exports of them."""

    base: Path
    full: Path
    lora: Path
    merged: Path
    adapter: Path


def make_all(place: Path) -> Made:
    """Train twice for two steps, at a rate at which both move far from the base, and export."""
    base = make_base(place / "base")
    full, lora = place / "full", place / "lora"
    settings: dict[str, Any] = {
        "model": str(base),
        "task": "arithmetic",
        "reward": shorter,
        "steps": 2,
        "budget.optimizer.lr": 1e-2,
        "budget.prompts_per_step": 4,
        "budget.samples_per_prompt": 4,
        "budget.eval_problems": 2,
        "budget.eval_samples": 1,
        "budget.sampling.max_tokens": MAX_TOKENS,
        "engines.threads": 1,
    }
    train(out=full, **settings)
    train(out=lora, **settings, **{"model.lora.rank": 8})
    merged = export(find_target(str(lora)), place / "merged", merge=True).folder
    adapter = export(find_target(str(lora)), place / "adapter").folder
    return Made(base, full, lora, merged, adapter)


def shorter(completion: str, answer: str) -> float:
    """A reward that a random model gets some of."""
    return -len(completion) / MAX_TOKENS + ("a" in completion)


def make_base(folder: Path) -> Path:
    """A random Qwen3 with the embedded model's tokenizer; its head is scaled until logits have a standard deviation of 2."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.1)
        logits = model(torch.arange(len(tokenizer))[None]).logits
        model.get_output_embeddings().weight.mul_(2.0 / logits.std())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def greedy(folder: Path) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompt and response tokens that covey's own sampler gives each prompt, the likeliest token at every place."""
    loaded = load_model(folder)
    sampler = HFSampler(loaded.model, tokenizer=loaded.tokenizer)
    requests = [Request(text, loaded.render((Message("user", text),)), (0,)) for text in PROMPTS]
    found = sampler.sample(requests, Sampling(0.0, max_tokens=MAX_TOKENS, stop_ids=loaded.stop_ids))
    return {
        request.id: (request.tokens, samples[0].turn.tokens) for request, samples in zip(requests, found, strict=True)
    }
