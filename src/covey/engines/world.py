"""The processes of a run and what passes between them: plain data and tensors, as JSON and safetensors, never as pickle."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from covey import errors
from covey.errors import CoveyError
from covey.types import Json

Payload = tuple[Json, Mapping[str, Tensor]]
"""What is sent: a value that JSON can hold, and tensors by name."""


Sent = TypeVar("Sent")


class RankError(RuntimeError):
    """A rank other than 0 failed; the message holds its rank and traceback."""


def to_bytes(payload: Payload) -> bytes:
    """A payload as bytes: length of the JSON (8 bytes, little-endian), the JSON, and the tensors as safetensors."""
    from safetensors.torch import save

    data, tensors = payload
    own: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory, and a batch may hold one tensor under two names
        own[name] = plain.clone() if plain.untyped_storage().data_ptr() in storages else plain
        storages.add(plain.untyped_storage().data_ptr())
    text = json.dumps(data).encode()
    return len(text).to_bytes(8, "little") + text + bytes(save(own))


def from_bytes(data: bytes) -> Payload:
    """The inverse of `to_bytes`."""
    from safetensors.torch import load

    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), load(data[end:])


class Store(Protocol):
    """Where ranks leave word for each other: torch's key-value store, which outlives the process group."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class World:
    """This process among `size`; rank 0 leads. Alone (size 1) every transport is the identity and no process group exists.

    Every method that moves data is collective: all ranks call it in the same order. Plain data travels over gloo, also when the
    tensors of the model live on GPUs.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, device: str = "cpu", store: Store | None = None) -> None:
        self.rank, self.size, self._store = rank, size, store
        self.device = torch.device(device)

    @classmethod
    def from_environment(cls, device: str = "cpu", *, timeout_s: float = 86400.0) -> World:
        """The world that torchrun describes in the environment; alone where it describes none.

        `device` "cuda" means this process's own GPU (LOCAL_RANK). `timeout_s` bounds the wait inside one collective: it is long
        because ranks wait while rank 0 scores rewards; a rank that dies is noticed at once by its closed connection.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(device=device)
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            _stay_on_loopback()
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(device)
        store, rank, size = next(rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))
        return cls(rank, size, device=device, store=store)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def scatter(self, payloads: Sequence[Payload] | None = None) -> Payload:
        """Rank r's payload of those that rank 0 gives (one per rank)."""
        if self.size == 1:
            return _given(payloads)[0]
        if not self.leads:
            return from_bytes(_receive(0))
        for rank, payload in enumerate(_given(payloads)):
            if rank:
                _send(to_bytes(payload), rank)
        return _given(payloads)[0]

    def broadcast(self, payload: Payload | None = None) -> Payload:
        """Rank 0's payload on every rank."""
        if self.size == 1 or not self.leads:
            return self.scatter(None if payload is None else [payload])
        data = to_bytes(_given(payload))
        for rank in range(1, self.size):
            _send(data, rank)
        return _given(payload)

    def gather(self, payload: Payload) -> list[Payload]:
        """All payloads in the order of ranks on rank 0; nothing on the others."""
        if self.leads:
            return [payload, *(from_bytes(_receive(rank)) for rank in range(1, self.size))]
        _send(to_bytes(payload), 0)
        return []

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over ranks, in float64."""
        return self._reduced(torch.tensor(values, dtype=torch.float64), dist.ReduceOp.SUM)

    def highest(self, value: int) -> int:
        """The largest value over ranks."""
        return int(self._reduced(torch.tensor([value], dtype=torch.int64), dist.ReduceOp.MAX)[0])

    def _reduced(self, values: Tensor, how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size > 1:
            dist.all_reduce(values, op=how)
        return list(values.tolist())

    def share(self, tensor: Tensor) -> Tensor:
        """Rank 0's values of a CPU tensor on every rank, written in place (shapes and types agree on all ranks)."""
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def report(self, error: Exception, trace: str) -> None:
        """Leave word of a failure on this rank for rank 0, then cut the connections, so that nobody waits for this rank."""
        if is_disconnection(error):  # another rank's failure, which is that rank's to tell
            return self.close()
        record: dict[str, Json] = {"trace": trace}
        if isinstance(error, CoveyError):
            record = {"kind": type(error).__name__, "where": error.where, "found": error.found, "right": error.right}
        if self._store is not None:
            with suppress(RuntimeError):  # rank 0 may be gone, and its store with it
                self._store.set(f"covey/error/{self.rank}", json.dumps(record))
        return self.close()

    def cause(self) -> Exception:
        """On rank 0 after a lost connection: the error of the first rank that left word of one."""
        for rank in range(1, self.size):
            if self._store is None or not self._store.check([f"covey/error/{rank}"]):
                continue
            record = json.loads(self._store.get(f"covey/error/{rank}"))
            kind = getattr(errors, record.get("kind", ""), None)
            if kind is None:
                return RankError(f"rank {rank} failed\n{record['trace']}")
            rebuilt: Exception = kind(f"rank {rank}: {record['where']}", record["found"], record["right"])
            return rebuilt
        return RankError("a rank has ended without a word; it may have been killed, for example for want of memory")

    def close(self) -> None:
        """Leave the process group. Closing twice is harmless."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def is_disconnection(error: Exception) -> bool:
    """Whether a collective failed because a connection to another rank broke."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _given(value: Sent | None) -> Sent:
    if value is None:
        raise ValueError("rank 0 has to say what is sent")
    return value


def _send(data: bytes, to: int) -> None:
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.send(torch.tensor([buffer.numel()], dtype=torch.int64), to)
    dist.send(buffer, to)


def _receive(source: int) -> bytes:
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, source)
    buffer = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(buffer, source)
    return buffer.numpy().tobytes()


def _stay_on_loopback() -> None:
    """Let gloo use the loopback interface when all ranks are on one machine: its host name may not resolve."""
    names = {name for _, name in socket.if_nameindex()}
    for name in ("lo", "lo0"):
        if name in names:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
