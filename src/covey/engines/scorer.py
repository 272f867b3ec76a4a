"""The learner's forward: rows of a batch to log-probabilities and other live outputs per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from covey.batch import Batch
from covey.collect.rows import rows as rows_of
from covey.engines.attention import KEYWORD, decoder_of, layers_of, prepare
from covey.engines.head import LogitHead, score_tokens
from covey.engines.packed import Packed, pack
from covey.engines.plain import plain_logp
from covey.engines.precision import precision
from covey.engines.sampler import HFSampler
from covey.errors import ConfigError
from covey.types import Group, Prompt, Request, Rollout, RolloutKey, Sampling

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.25}
"""Largest difference of log-probabilities that rounding explains."""


class Scorer(nn.Module):
    """A causal LM as a function from rows to live outputs; can be the root of FSDP2's `fully_shard`.

    Every prompt is computed once per group and slice; dropout is off for ever, so that the learner's logp is the sampler's.
    `value_head`, where there is one, reads the output `value` from the hidden states.
    """

    def __init__(self, model: nn.Module, value_head: nn.Module | None = None) -> None:
        super().__init__()
        prepare(model)
        self.model, self.value_head = model, value_head
        super().train(False)

    def train(self, mode: bool = True) -> Scorer:
        """Stays in evaluation mode: a policy has no dropout."""
        return self

    def layers(self) -> list[nn.Module]:
        """The transformer layers: units of sharding and recomputation."""
        return [*layers_of(self.model), *([] if self.value_head is None else [self.value_head])]

    def forward(self, rows: Batch, *, outputs: Sequence[str] = (), temperature: float = 1.0) -> dict[str, Tensor]:
        """`logp` and the named outputs, each [N T] with gradient, 0 where `rows.mask` is False (float32 or float64)."""
        states, packed = read_states(decoder_of(self.model), rows)
        headed = self.value_head is not None and "value" in outputs
        found = score_tokens(
            LogitHead(self.model),
            states,
            packed.target,
            vocabulary=self.model.config.get_text_config().vocab_size,  # type: ignore[union-attr, operator]
            temperature=temperature,
            outputs=[name for name in outputs if not (headed and name == "value")],
        )
        if headed:
            found["value"] = self.value_head(states)  # type: ignore[misc]
        return {name: spread(value, rows.mask) for name, value in found.items()}


def read_states(decoder: nn.Module, rows: Batch) -> tuple[Tensor, Packed]:
    """The hidden state [L H] from which each predicted token is read (row-major over the mask), and how rows were packed."""
    packed = pack(rows)
    with precision(decoder):
        hidden = decoder(
            input_ids=packed.tokens[None],
            position_ids=packed.positions[None],
            use_cache=False,
            **{KEYWORD: packed.layout},
        ).last_hidden_state[0]
    return nn.functional.embedding(packed.source, hidden), packed


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Values of predicted tokens (row-major) to [N T]; adds an empty sum so that a slice without any has a gradient of 0."""
    whole = values.new_zeros(mask.shape) + values.sum() * 0.0
    return whole.masked_scatter(mask, values)


def verify(model: nn.Module, tokenizer: Any = None, *, tolerance: float | None = None) -> float:
    """Compare packed scoring and cached sampling with transformers' own forward on a short canary.

    Returns the largest difference of log-probabilities; raises a ConfigError that names the part that differs by more than the
    tolerance (1e-3 in float32): the model transforms its logits or attention in a way that covey does not know.
    """
    scorer = Scorer(model)
    rows = _canary(model, tokenizer)
    with torch.no_grad():
        plain = plain_logp(model, rows).cpu()
        scored = scorer(rows)["logp"]
    limit = TOLERANCE.get(plain_dtype(model), 1e-3) if tolerance is None else tolerance
    worst = 0.0
    for part, logp in (("packed scoring", scored.cpu()), ("cached sampling", rows.sampled_logp)):
        difference = float((logp.to(plain) - plain).abs().max())
        if not difference <= limit:
            raise ConfigError(
                "model",
                f"{type(model).__name__}: {part} differs from transformers' own forward by {difference:.3g} in log-probability",
                f"At most {limit:g} is rounding; this architecture is not supported.",
            )
        worst = max(worst, difference)
    return worst


def plain_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's parameters."""
    return next(model.parameters()).dtype


def _canary(model: nn.Module, tokenizer: Any) -> Batch:
    """Sampled continuations of two prompts, one of them longer than a sliding window of up to 1,024 tokens if there is one."""
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    window = getattr(config, "sliding_window", None) or 0
    device = next(model.parameters()).device
    context = getattr(config, "max_position_embeddings", None) or 4096
    lengths = (9, min(window + 24 if window <= 1024 else 40, max(context - 8, 2)))
    prompts = {
        group: tuple((17 * at + 5 * group + 3) % config.vocab_size for at in range(length))
        for group, length in enumerate(lengths)
    }
    requests = [Request(str(group), prompt, (2 * group, 2 * group + 1)) for group, prompt in prompts.items()]
    sampling = Sampling(max_tokens=6)
    groups = [
        Group(
            request.id,
            Prompt(request.id, (), None, "canary"),
            request.tokens,
            tuple(
                Rollout(RolloutKey(request.id, at), (sample.turn,), sample.stop, sampling.max_tokens)
                for at, sample in enumerate(samples)
            ),
        )
        for request, samples in zip(
            requests, HFSampler(model, tokenizer=tokenizer).sample(requests, sampling), strict=True
        )
    ]
    batch = rows_of(groups, {}, torch.float64)
    return batch.with_(tokens=batch.tokens.to(device), mask=batch.mask.to(device))
