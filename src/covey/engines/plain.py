"""The slow, obvious forward: transformers' own eager model, one row at a time. The yardstick of every fast path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from covey.batch import Batch
from covey.engines.attention import borrowed_attention
from covey.engines.experts import borrowed_experts
from covey.engines.precision import precision


def plain_logits(model: nn.Module, tokens: Sequence[int]) -> Float[Tensor, "L V"]:
    """Logits after every token of one sequence, by the model's own forward with eager attention."""
    device = next(model.parameters()).device
    with borrowed_attention(model, "eager"), borrowed_experts(model, "eager"), precision(model):
        logits: Tensor = model(input_ids=torch.tensor([tokens], device=device), use_cache=False).logits[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def plain_logp(model: nn.Module, rows: Batch, temperature: float = 1.0) -> Float[Tensor, "N T"]:
    """Log-probability of every predicted token at a temperature, 0 elsewhere."""
    found = []
    for row in range(rows.size):
        prompt, tokens = rows.prompts[int(rows.group[row])], rows.tokens[row]
        logits = plain_logits(model, [*prompt, *tokens.tolist()])[len(prompt) - 1 : -1]
        logp = (logits / (temperature or 1.0)).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        found.append(logp.masked_fill(~rows.mask[row], 0.0))
    return torch.stack(found)
