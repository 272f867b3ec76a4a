"""A run that saves checkpoints and may be killed in the middle: `checkpoint_process.py FOLDER FIRST LAST`."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

from covey import checkpoint, files


def make_state(step: int, *, size: int = 4096) -> checkpoint.State:
    """A state that is a pure function of its step."""

    def write_model(folder: Path) -> None:
        files.write_bytes(folder / "config.json", b'{"step": %d}' % step)
        files.write_bytes(folder / "model.safetensors", hashlib.sha256(str(step).encode()).digest() * (size // 32))

    moments = {
        "head.weight/exp_avg": torch.full((3, size // 3), step / 7),
        "head.weight/step": torch.tensor(float(step)),
    }
    return checkpoint.State(
        write_model=write_model, optimizer=moments, record={"offset": 10 * step, "states": {"a": 0.1 * step}}
    )


def holds(found: checkpoint.Checkpoint, *, size: int = 4096) -> bool:
    """Whether a checkpoint is the state of its step, bit by bit."""
    expected = make_state(found.step, size=size)
    optimizer = found.optimizer()
    return (
        found.record() == expected.record
        and optimizer.keys() == expected.optimizer.keys()
        and all(torch.equal(optimizer[name], tensor) for name, tensor in expected.optimizer.items())
        and (found.model / "model.safetensors").read_bytes()[:32] == hashlib.sha256(str(found.step).encode()).digest()
    )


if __name__ == "__main__":
    folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with checkpoint.active(folder):
        print("ready", flush=True)
        for number in range(first, last + 1):
            checkpoint.save(folder, number, make_state(number, size=65536))
            print(number, flush=True)
