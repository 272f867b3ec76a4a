"""Does the sampler speak with the learner's weights? A fixed prompt, asked after every publish and, before a run, with noise.

A sampler that never gets new weights looks like a slightly stale one for a long time: after a small step its log-probabilities
may differ by no more than rounding explains. So the way from learner to sampler is proved once, before any step is paid for,
with weights that are moved until the difference is plain; and every publish compares exact fingerprints where a sampler can
give them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from covey.batch import Batch
from covey.collect.rows import rows
from covey.engines.cluster import Cluster
from covey.errors import DivergedError
from covey.random import key
from covey.types import Group, Prompt, Request, Rollout, RolloutKey, Sample, Sampling

TOLERANCE = {"float64": 1e-9, "float32": 3e-4, "bfloat16": 0.5}
"""Largest gap in nats between sampler and learner that rounding explains, at temperature 1, for log-probabilities down to -10."""
PROBE = -1
"""The version under which moved weights are published: never that of a step, so nothing kept from it can be taken for one."""
_SAMPLES, _TOKENS = 2, 4
_NUMBERS = 1 << 22
_SCALES = tuple(0.03 * 3.0**power for power in range(6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A prompt (rendered to `tokens`) that sampler and learner are both asked about at a temperature."""

    cluster: Cluster
    tokens: tuple[int, ...]
    temperature: float
    dtype: str
    max_tokens: int = _TOKENS

    def publish(self, version: int) -> Batch:
        """Give the samplers the learner's weights; stop with the reason if they did not arrive, or are not finite.

        Returns what the samplers say to the prompt now.
        """
        lost = self.cluster.publish(version)
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise DivergedError(
                _where(version), f"{lost[0]}{more} did not reach the sampler", "It would sample from another policy."
            )
        asked = self.ask()
        self.compare(asked, version)
        return asked

    def compare(self, asked: Batch, version: int) -> None:
        """Stop if the learner gives what a sampler said other log-probabilities than the sampler did."""
        gap, allowed = float(self._moves(asked).max()), self.allowed(asked)
        if not gap <= allowed:
            raise DivergedError(
                _where(version),
                f"sampler and learner differ by {gap:.2g} nats on the canary prompt (allowed {allowed:.2g})",
                "The published weights did not reach the sampler, or they are not finite.",
            )

    def prove(self, version: int) -> None:
        """Move the trained weights until the learner plainly disagrees, publish, see the samplers follow, and go back.

        Weights and optimizer are bit by bit what they were before. Costs a few short samples and forwards.
        """
        before = self.publish(version)
        own = self._chosen()
        try:
            self._move_away(before, own)
            self.publish(PROBE)
        finally:
            self.cluster.load(weights=own)
        again = self.publish(version)
        if again.tokens.shape != before.tokens.shape or not torch.equal(again.tokens, before.tokens):
            found = "the sampler did not come back to the weights it had before the publish probe"
            raise DivergedError(_where(version), found, "It keeps something from one version to the next.")

    def ask(self) -> Batch:
        """What every rank's sampler says to the prompt, as rows."""
        keys = tuple(key("canary", index) for index in range(_SAMPLES))
        requests = [Request(f"canary-{rank}", self.tokens, keys) for rank in range(self.cluster.world.size)]
        sampling = Sampling(self.temperature, max_tokens=min(_TOKENS, self.max_tokens))
        found = self.cluster.sample(requests, sampling)
        return rows([self._group(*pair, sampling.max_tokens) for pair in zip(requests, found, strict=True)], {})

    def allowed(self, asked: Batch) -> float:
        """What rounding explains: more where logits are divided by a small temperature, or are large."""
        largest = float(asked.sampled_logp.abs().max())
        return TOLERANCE[self.dtype] * max(1.0, 1 / self.temperature) * max(1.0, largest / 10)

    def _moves(self, asked: Batch) -> Tensor:
        """How far the learner's log-probabilities are from the sampler's, per token; infinitely, if none of these is finite."""
        found = self.cluster.forward(asked, (), self.temperature).logp - asked.sampled_logp
        return found[asked.mask].abs() if asked.mask.any() else torch.full((1,), torch.inf)

    def _chosen(self) -> dict[str, Tensor]:
        """Copies of the weights that the probe moves: of adapters all, of a whole model its smallest tensors."""
        weights = self.cluster.weights()
        adapters = all(".lora_" in name for name in weights)
        chosen: dict[str, Tensor] = {}
        numbers = 0
        for name in sorted(weights, key=lambda name: (weights[name].numel(), name)):
            numbers += weights[name].numel()
            if chosen and numbers > _NUMBERS and not adapters:
                break
            chosen[name] = weights[name].detach().clone()
        return chosen

    def _move_away(self, asked: Batch, own: Mapping[str, Tensor]) -> None:
        """Add more and more noise to the learner's weights until its log-probabilities move by what no rounding explains."""
        wanted = max(0.1, 4 * self.allowed(asked))
        moved = 0.0
        for scale in _SCALES:
            self.cluster.load(weights={name: _noisy(name, tensor, scale) for name, tensor in own.items()})
            moved = float(self._moves(asked).max())
            if moved >= wanted:
                return
        raise DivergedError(
            "publish probe",
            f"noise in the trained weights moves the learner's log-probabilities by {moved:.2g} nats only",
            "What is trained has no part in what the model says.",
        )

    def _group(self, request: Request, samples: Sequence[Sample], limit: int) -> Group:
        name = request.id
        rollouts = tuple(
            Rollout(RolloutKey(name, index), (sample.turn,), sample.stop, limit, rewards={"canary": 0.0})
            for index, sample in enumerate(samples)
        )
        return Group(name, Prompt(name, (), None, "canary"), request.tokens, rollouts)


def _noisy(name: str, tensor: Tensor, scale: float) -> Tensor:
    """A tensor with normal noise, a function of its name, of `scale` times its usual size (or that of a fresh layer)."""
    draw = torch.Generator().manual_seed(key("publish probe", name) >> 1)
    size = float(tensor.double().square().mean().sqrt())
    usual = max(size, tensor.shape[-1] ** -0.5) if tensor.ndim else max(size, 1.0)
    noise = torch.randn(tensor.shape, generator=draw, dtype=torch.float64) * scale * usual
    return (tensor.cpu().double() + noise).to(tensor.dtype)


def _where(version: int) -> str:
    return "publish probe" if version == PROBE else f"step {version}"
