"""Rollouts: covey's sampler against transformers' `generate` on the same prompts, tokens per processor second.

Both draw at temperature 1 until the end token; covey also returns each token's log-probability, `generate` does not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import GenerationConfig

from benchmarks.models import EOS, build
from benchmarks.timing import compare, report
from covey.engines.sampler import HFSampler
from covey.random import key
from covey.types import Request, Sampling

PROMPTS, SAMPLES, PROMPT_TOKENS = 16, 8, 24


def pair(size: str, longest: int) -> dict[str, Callable[[], int]]:
    """The two ways to sample the same prompts; each call returns the tokens it made."""
    ours, theirs = build(size), build(size)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, 100, (PROMPTS, PROMPT_TOKENS), generator=generator)
    sampler = HFSampler(ours, max_rows=PROMPTS * SAMPLES)
    requests = [
        Request(str(at), tuple(row), tuple(key("bench", at, i) for i in range(SAMPLES)))
        for at, row in enumerate(prompts.tolist())
    ]
    sampling = Sampling(max_tokens=longest, stop_ids=(EOS,))
    options = GenerationConfig(
        do_sample=True, max_new_tokens=longest, eos_token_id=EOS, pad_token_id=0, top_k=0, top_p=1.0, temperature=1.0
    )

    def sample() -> int:
        return sum(len(s.turn.tokens) for group in sampler.sample(requests, sampling) for s in group)

    def generate() -> int:
        rows = prompts.repeat_interleave(SAMPLES, 0)
        with torch.no_grad():
            out = theirs.generate(rows, attention_mask=torch.ones_like(rows), generation_config=options)
        made = out[:, PROMPT_TOKENS:]
        ended = made.eq(EOS)
        return int(torch.where(ended.any(1), ended.int().argmax(1) + 1, made.shape[1]).sum())

    return {"covey": sample, "transformers": generate}


def main() -> None:
    """Print one line per model and response length."""
    for size, longest in (("small", 64), ("small", 256), ("medium", 64)):
        report(f"sampling {size} T{longest}", compare(pair(size, longest)), "covey", "transformers")


if __name__ == "__main__":
    main()
