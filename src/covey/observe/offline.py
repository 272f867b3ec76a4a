"""What W&B's client wrote while it was offline: it keeps some seconds in memory, and a kill takes them along.

Its log has blocks of 32 KiB after a header of 7 bytes; a record is checksum (4 bytes), length (2), type (1: whole, 2: first part,
3: middle, 4: last) and bytes. The last record may be torn.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK, _HEADER, _WHOLE, _FIRST, _LAST = 32768, 7, 1, 2, 4


def read_history(folder: Path, run_id: str) -> Iterator[tuple[int, set[str]]]:
    """Step and names of every row of a run's offline files."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb"))
    records = (Record.FromString(data) for file in files for data in read_log(file.read_bytes()))
    for record in records:
        row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        if "_step" in row:
            yield int(row["_step"]), set(row)


def read_log(data: bytes) -> Iterator[bytes]:
    """The whole records of a log."""
    at, parts = _HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # too little is left of a block for a record's head
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += _HEADER
        if kind == 0 or at + length > len(data):
            return
        parts = data[at : at + length] if kind in (_WHOLE, _FIRST) else parts + data[at : at + length]
        at += length
        if kind in (_WHOLE, _LAST):
            yield parts
