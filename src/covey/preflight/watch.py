"""Bytes that tensors take while code runs; with tensors that have a shape and no content, code runs without memory or data."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MAPPED = 32 << 20
"""glibc takes blocks from this size on from the system and returns them at once; smaller ones live in a heap with gaps."""


@dataclass(frozen=True, slots=True)
class Block:
    """One tensor's memory: bytes, shape, format, and the operation that made it."""

    bytes: int
    shape: tuple[int, ...]
    dtype: str
    made_by: str

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype} of {self.made_by}"


@dataclass(frozen=True, slots=True)
class Traced:
    """What a piece of code needs at its worst moment, beyond the tensors that were there before.

    `gradients` is the part of `bytes` that is gradients of parameters, `small` the part in blocks below 32 MiB, `block` the
    largest of those.
    """

    bytes: int = 0
    gradients: int = 0
    small: int = 0
    block: int = 0
    largest: Block | None = None


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made while it is active, each storage once, until they are let go.

    `gaps` is how much of the heap is lost between small blocks; it decides which moment is the worst.
    """

    def __init__(self, given: Iterable[Tensor] = (), *, gaps: float = 0.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gaps, self.peak, self.gradients = gaps, Traced(), 0
        self._live = self._small = self._block = 0
        self._worst = 0.0
        self._largest: Block | None = None
        self._known = dict.fromkeys(storages(given), 0)
        self._graded: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and to make sure of it would cost more than the watching."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor, str(func.overloadpacket.__name__))
        return made

    def _note(self, tensor: Tensor, name: str) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        count = storage.nbytes()
        self._known[storage._cdata] = count
        weakref.finalize(storage, self._forget, storage._cdata)
        self._live += count
        if count < MAPPED:
            self._small += count
            self._block = max(self._block, count)
        if self._largest is None or count > self._largest.bytes:
            self._largest = Block(count, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), name)
        worst = self._live + self.gaps * self._small
        if worst > self._worst:
            self._worst = worst
            self.peak = Traced(self._live, self.gradients, self._small, self._block, self._largest)

    def _forget(self, key: int) -> None:
        count = self._known.pop(key, 0)
        self._live -= count
        self._small -= count if count < MAPPED else 0

    def note_gradient(self, parameter: Tensor) -> None:
        """A parameter has a gradient from now on."""
        if id(parameter) not in self._graded:
            self._graded.add(id(parameter))
            self.gradients += size_of(parameter)


@contextmanager
def watched(model: nn.Module, *, gaps: float) -> Iterator[Watch]:
    """Watch what code does with a model that has no gradients yet; `peak` of the result is what it needed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    watch = Watch([*model.parameters(), *model.buffers()], gaps=gaps)
    hooks = [p.register_post_accumulate_grad_hook(watch.note_gradient) for p in trained]  # type: ignore[no-untyped-call]
    try:
        with watch:
            yield watch
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers."""
    return tensor.numel() * tensor.element_size()


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of the distinct storages of tensors."""
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage.nbytes() for storage in found}
