"""The reference policy without a second copy of the model where adapters can be switched, and its moves after the policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from covey.batch import Batch, Live
from covey.engines.adapters import REFERENCE, exact_dtype, renamed, switched
from covey.engines.learner import SlicedScorer, inner, part_of, whole


class AdapterScorer(SlicedScorer):
    """Scores rows with the learner's own model under another adapter, or under none: a reference that costs no memory."""

    def __init__(self, learner: SlicedScorer, name: str | None) -> None:
        self.scorer, self.world, self.tokens_per_slice = learner.scorer, learner.world, learner.tokens_per_slice
        self.name = name

    def forward(
        self, batch: Batch, outputs: Sequence[str] = (), temperature: float = 1.0, *, idle: bool = False
    ) -> Live:
        """As the learner's, with the other adapter."""
        with switched(inner(self.scorer), self.name):
            return super().forward(batch, outputs, temperature, idle=idle)


class Follower:
    """Moves a reference after the policy: after every `every` steps, reference <- mix * policy + (1 - mix) * reference.

    Each rank moves its own shards, number by number, so that every layout gives the same bits. Where the reference is kept in
    fewer bits than float32, exact values are kept beside it: a small `mix` would be lost in rounding. `at` is the step up to
    which it has followed.
    """

    def __init__(
        self, policy: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, every: int, mix: float
    ) -> None:
        self.policy, self.reference, self.every, self.mix, self.at = policy, reference, every, mix, 0
        self._exact = {name: _exact(tensor, copied=mix < 1) for name, tensor in reference.items()}

    def follow(self, step: int) -> None:
        """Move if steps were taken since the last call and `step` is a multiple of `every`."""
        if step <= self.at:
            return
        self.at = step
        if step % self.every:
            return
        with torch.no_grad():
            for name, policy in self.policy.items():
                exact, new = self._exact[name], local(policy)
                exact.copy_(new) if self.mix == 1 else exact.lerp_(new.to(exact.dtype), self.mix)
            self._write()

    def tensors(self) -> dict[str, Tensor]:
        """The whole exact values under the policy's names; all ranks take part."""
        return {name: whole(_like(exact, self.reference[name])) for name, exact in self._exact.items()}

    def load(self, tensors: Iterable[tuple[str, Tensor]], at: int) -> None:
        """Replace the reference by what `tensors` gave at a step (the same full tensors on every rank)."""
        with torch.no_grad():
            for name, tensor in tensors:
                exact = self._exact[name]
                exact.copy_(local(part_of(tensor, _like(exact, self.reference[name]))))
            self._write()
        self.at = at

    def _write(self) -> None:
        """The exact values into the reference's weights, in their format."""
        for name, exact in self._exact.items():
            own = local(self.reference[name])
            if own.data_ptr() != exact.data_ptr():
                own.copy_(exact)


def _exact(tensor: Tensor, *, copied: bool) -> Tensor:
    """This rank's numbers of a tensor: its own memory, or an exact copy where that has too few bits to be moved a little."""
    own = local(tensor)
    dtype = exact_dtype(own.dtype)
    return own if own.dtype == dtype or not copied else own.to(dtype)


def _like(own: Tensor, tensor: Tensor) -> Tensor:
    """This rank's numbers laid out over the ranks as `tensor` is."""
    if not isinstance(tensor, DTensor):
        return own
    return DTensor.from_local(
        own, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def local(tensor: Tensor) -> Tensor:
    """This rank's numbers of a tensor, in the tensor's own memory."""
    own = tensor.detach()
    return own.to_local() if isinstance(own, DTensor) else own


def parameters_of(model: nn.Module, trained: Mapping[str, Tensor], *, adapted: bool) -> dict[str, Tensor]:
    """The reference's parameters under the policy's names: of the second adapter, or of the second model."""
    own = dict(model.named_parameters())
    return {name: own[renamed(name, REFERENCE) if adapted else name] for name in trained}
