"""From hidden states to log-probabilities and other numbers per token, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from covey.errors import ConfigError, did_you_mean

LOGITS_PER_CHUNK = 1 << 22
"""Logits held at a time (16 MiB in float32)."""

Output = Callable[[Float[Tensor, "M V"]], Float[Tensor, " M"]]


def entropy(logp: Float[Tensor, "M V"]) -> Float[Tensor, " M"]:
    """Entropy in nats of normalised log-probabilities; an impossible token adds 0."""
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)


OUTPUTS: dict[str, Output] = {"entropy": entropy}
"""Live outputs by name: functions of the log-probabilities of a chunk, run inside the head, with gradient."""


class LogitHead:
    """A model's logits from hidden states: its head, in float32 at least, and what its own forward does after it.

    transformers' models cap (`final_logit_softcapping`), multiply (`logit_scale`) or divide (`logits_scaling`) logits; whatever
    else a model does is found by `covey.engines.scorer.verify`.
    """

    def __init__(self, model: nn.Module) -> None:
        head = model.get_output_embeddings()  # type: ignore[operator]
        if head is None:
            raise ConfigError("model", f"{type(model).__name__} has no head over a vocabulary", "Use a causal LM.")
        config = model.config.get_text_config()  # type: ignore[union-attr, operator]
        self.head: nn.Module = head
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)

    def __call__(self, hidden: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        logits: Tensor = self.head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def score_tokens(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "M H"],
    target: Int[Tensor, " M"],
    *,
    vocabulary: int,
    temperature: float = 1.0,
    outputs: Sequence[str] = (),
) -> dict[str, Float[Tensor, " M"]]:
    """Log-probability of each target at a temperature, and the named outputs.

    Tokens go through the head in chunks of at most 2^22 logits; several chunks are recomputed in the backward pass, so memory
    does not grow with the number of tokens. Temperature 0 (greedy) is scored at 1.
    """
    functions = {name: _find(name) for name in outputs}
    size = max(1, LOGITS_PER_CHUNK // vocabulary)

    def score(hidden: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return _score_chunk(logits_of(hidden), target, temperature or 1.0, functions)

    chunks = list(zip(torch.split(hidden, size), torch.split(target, size), strict=True))
    if len(chunks) <= 1:
        parts = [score(hidden, target)]
    elif torch.is_grad_enabled():
        parts = [checkpoint(score, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    else:
        parts = [score(*chunk) for chunk in chunks]
    return dict(zip(("logp", *functions), map(torch.cat, zip(*parts, strict=True)), strict=True))


def _find(name: str) -> Output:
    if name not in OUTPUTS:
        raise ConfigError("live output", f"there is no output '{name}'", did_you_mean(name, OUTPUTS))
    return OUTPUTS[name]


def _score_chunk(
    logits: Tensor, target: Tensor, temperature: float, functions: Mapping[str, Output]
) -> tuple[Tensor, ...]:
    """The target's log-probability, then the outputs; the whole distribution is formed only where an output asks for it."""
    if temperature != 1.0:
        logits = logits / temperature
    if not functions:
        return (logits.gather(-1, target[:, None])[:, 0] - logits.logsumexp(-1),)
    logp = logits.log_softmax(-1)
    return (logp.gather(-1, target[:, None])[:, 0], *(function(logp) for function in functions.values()))
