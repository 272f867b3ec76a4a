"""The learner's forward and backward: covey's packed rows with shared prompts against transformers on padded rows.

Both in micro-batches of the same two groups, with the same loss (the mean log-probability of the responses).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.models import build
from benchmarks.timing import compare, report
from covey.batch import Batch, Keep
from covey.engines.scorer import Scorer

GROUPS, SAMPLES = 16, 8


def make_batch(prompt: int, longest: int) -> Batch:
    """Rows with responses of 1 to `longest` tokens."""
    generator = torch.Generator().manual_seed(0)
    n = GROUPS * SAMPLES
    length = torch.randint(1, longest + 1, (n,), generator=generator)
    length[0] = longest
    tokens = torch.randint(3, 100, (n, longest), generator=generator)
    mask = torch.arange(longest)[None] < length[:, None]
    zeros, flags = torch.zeros(n, longest), torch.zeros(n, dtype=torch.long)
    prompts = {g: tuple(torch.randint(3, 100, (prompt,), generator=generator).tolist()) for g in range(GROUPS)}
    return Batch(
        prompts=prompts,
        tokens=torch.where(mask, tokens, 0),
        mask=mask,
        sampled_logp=zeros,
        old_logp=zeros,
        turn=mask.long() * 0,
        version=mask.long() * 0,
        length=length,
        group=torch.arange(GROUPS).repeat_interleave(SAMPLES),
        rollout=torch.arange(n),
        stop=flags,
        limit=flags + longest,
        reward=torch.zeros(n, 1).double(),
        reward_names=("r",),
        reward_weights=(1.0,),
        keep=Keep.all(n),
    )


def pair(size: str, prompt: int, longest: int) -> dict[str, Callable[[], int]]:
    """The two ways to form the same gradient; each call returns the tokens it trained on."""
    batch = make_batch(prompt, longest)
    slices = [torch.arange(at, at + 2 * SAMPLES) for at in range(0, GROUPS * SAMPLES, 2 * SAMPLES)]
    scorer, plain = Scorer(build(size)), build(size)
    tokens = int(batch.mask.sum())

    def packed() -> int:
        for rows in slices:
            scorer(batch.rows(rows), outputs=(), temperature=1.0)["logp"].sum().backward()
        return tokens

    def padded() -> int:
        for rows in slices:
            part = batch.rows(rows)
            ids = torch.tensor([part.prompts[int(g)] for g in part.group])
            full = torch.cat([ids, part.tokens], 1)
            logits = plain(full[:, :-1]).logits[:, ids.shape[1] - 1 :]
            logp = logits.log_softmax(-1).gather(-1, part.tokens[..., None]).squeeze(-1)
            torch.where(part.mask, logp, 0.0).sum().backward()
        return tokens

    return {"covey": packed, "transformers": padded}


def main() -> None:
    """Print one line per model, prompt length and response length."""
    for size, prompt, longest in (("small", 24, 64), ("small", 24, 256), ("small", 256, 128), ("medium", 24, 64)):
        rates = compare(pair(size, prompt, longest), rounds=3)
        report(f"training {size} prompt {prompt} T{longest}", rates, "covey", "transformers")


if __name__ == "__main__":
    main()
