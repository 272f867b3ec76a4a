"""Which token comes next: the distribution that sampling settings make of logits, and a draw from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from covey.engines.noise import noise
from covey.types import Sampling

_NUMBERS_PER_CHUNK = 1 << 21


class Choice(NamedTuple):
    """A token per row, its log-probability as sampled and, where truncation acts, under the whole distribution."""

    token: Int[Tensor, " B"]
    sampled_logp: Float[Tensor, " B"]
    policy_logp: Float[Tensor, " B"] | None


def truncates(sampling: Sampling, vocabulary: int) -> bool:
    """Whether top-p or top-k can take anything away."""
    return sampling.temperature > 0 and (sampling.top_p < 1 or 0 < sampling.top_k < vocabulary)


def truncate(logp: Float[Tensor, "B V"], *, top_k: int, top_p: float) -> Float[Tensor, "B V"]:
    """Renormalised log-probabilities of the `top_k` likeliest tokens, then of the smallest set of those that holds `top_p`.

    The likeliest token always stays; among equals the lower id comes first. top_k 0 and top_p 1 leave everything.
    """
    ordered, index = logp.sort(dim=-1, descending=True, stable=True)
    if 0 < top_k < logp.shape[-1]:
        ordered[:, top_k:] = -torch.inf
        ordered = ordered.log_softmax(-1)
    if top_p < 1:
        probability = ordered.exp()
        before = probability.cumsum(-1) - probability
        before[:, 0] = -1.0
        ordered = ordered.masked_fill(before >= top_p, -torch.inf).log_softmax(-1)
    return torch.empty_like(logp).scatter_(-1, index, ordered)


def choose(logits: Float[Tensor, "B V"], keys: Int[Tensor, " B"], step: int, sampling: Sampling) -> Choice:
    """Draw token `step` of every row: `argmax(p / noise)`, an exact sample of p that depends on the row's key alone.

    Temperature 0 takes the likeliest token; its log-probability is that at temperature 1.
    """
    rows = max(1, _NUMBERS_PER_CHUNK // logits.shape[-1])
    parts = [
        _choose(part, key, step, sampling)
        for part, key in zip(torch.split(logits, rows), torch.split(keys, rows), strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    token, sampled, policy = zip(*parts, strict=True)
    return Choice(torch.cat(token), torch.cat(sampled), None if policy[0] is None else torch.cat(policy))


def _choose(logits: Tensor, keys: Tensor, step: int, sampling: Sampling) -> Choice:
    if sampling.temperature == 0:
        token = logits.argmax(-1)
        return Choice(token, _pick(logits.log_softmax(-1), token), None)
    policy = (logits if sampling.temperature == 1 else logits / sampling.temperature).log_softmax(-1)
    cut = truncates(sampling, logits.shape[-1])
    logp = truncate(policy, top_k=sampling.top_k, top_p=sampling.top_p) if cut else policy
    token = (logp.exp().to(torch.float64) / noise(keys, step, logits.shape[-1])).argmax(-1)
    return Choice(token, _pick(logp, token), _pick(policy, token) if cut else None)


def _pick(logp: Tensor, token: Tensor) -> Tensor:
    return logp.gather(-1, token[:, None])[:, 0]
