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

from covey.preflight.replay import Event


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
    """What a piece of code needs at its worst moment, beyond the tensors that were there before, and the largest tensor."""

    bytes: int = 0
    largest: Block | None = None


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made while it is active, each storage once, until they are let go.

    `events` are these comings and goings: (number, bytes), and (number, 0) when it goes.
    """

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = Traced()
        self.events: list[Event] = []
        self._live = 0
        self._largest: Block | None = None
        self._given = set(storages(given))
        self._numbers: dict[int, int] = {}

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
        if storage._cdata in self._given or storage._cdata in self._numbers:
            return
        count, number = storage.nbytes(), len(self.events)
        self._numbers[storage._cdata] = number
        weakref.finalize(storage, self._forget, storage._cdata, count)
        self.events.append((number, count))
        self._live += count
        if self._largest is None or count > self._largest.bytes:
            self._largest = Block(count, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), name)
        if self._live > self.peak.bytes:
            self.peak = Traced(self._live, self._largest)

    def _forget(self, key: int, count: int) -> None:
        self.events.append((self._numbers.pop(key), 0))
        self._live -= count

    def numbers(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        """The numbers of tensors that were made under this watch."""
        return tuple(self._numbers[key] for key in storages(tensors) if key in self._numbers)


@contextmanager
def watched(model: nn.Module) -> Iterator[Watch]:
    """Watch what code does with a model that has no gradients yet; it has none after it either."""
    try:
        with Watch([*model.parameters(), *model.buffers()]) as watch:
            yield watch
    finally:
        model.zero_grad(set_to_none=True)


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers."""
    return tensor.numel() * tensor.element_size()


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of the distinct storages of tensors."""
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage._cdata: storage.nbytes() for storage in found}
