"""Checkpoints: everything that is state, in one verifiable folder that is there complete or not at all.

    checkpoints/step-000123/
        model/                 an ordinary transformers (or PEFT) folder
        optimizer.safetensors  tensors `<parameter>/<slot>`
        reference.safetensors  the reference policy, where it moves
        critic.safetensors     the critic, where there is one: its weights or, on the policy's trunk, its head
        critic_optimizer.safetensors  its optimizer's tensors
        state.json             step, states of components, offsets of logs, ledger ...
        manifest.json          size and SHA-256 of each file

There is no pointer file: the newest folder whose every file has its recorded hash is the one to resume from.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from covey import files
from covey.errors import DataError, MissingInputError, OutputError, StorageError
from covey.types import Json

FORMAT = 1
"""Version of what `state.json` means; a checkpoint of a later one is refused."""
_NAME = re.compile(r"(\.old-)?step-(\d{6,})")
_locked: set[int] = set()


@dataclass(frozen=True, kw_only=True)
class State:
    """What a checkpoint is made of.

    `write_model(folder)` writes a transformers folder (see `export`), `optimizer` holds full tensors named `<parameter>/<slot>`,
    `reference` the weights of a moving reference, `critic` and `critic_optimizer` those of a critic (empty without one), `record`
    is all the rest as plain data.
    """

    write_model: Callable[[Path], None]
    optimizer: Mapping[str, Tensor]
    record: Mapping[str, Json]
    reference: Mapping[str, Tensor] = field(default_factory=dict)
    critic: Mapping[str, Tensor] = field(default_factory=dict)
    critic_optimizer: Mapping[str, Tensor] = field(default_factory=dict)


_PERHAPS = ("reference", "critic", "critic_optimizer")
"""Fields of a state that have a file only if they hold something."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was found whole. `skipped` names newer folders that were not, with the reason."""

    folder: Path
    step: int
    skipped: tuple[tuple[Path, str], ...] = ()

    @property
    def model(self) -> Path:
        """The transformers folder."""
        return self.folder / "model"

    def record(self) -> dict[str, Json]:
        """The plain data of `State.record`."""
        return dict(json.loads((self.folder / "state.json").read_bytes())["record"])

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors."""
        from safetensors.torch import load_file

        return dict(load_file(self.folder / "optimizer.safetensors"))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `State.reference`, `critic` or `critic_optimizer`; empty where there are none."""
        from safetensors.torch import load_file

        path = self.folder / f"{name}.safetensors"
        return dict(load_file(path)) if path.exists() else {}

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The model's weights under the names that transformers gives its parameters (tied ones once)."""
        from transformers.models.auto.modeling_auto import AutoModelForCausalLM

        with _no_bars():
            model = AutoModelForCausalLM.from_pretrained(self.model, dtype=dtype, local_files_only=True)
        return {name: parameter.detach() for name, parameter in model.named_parameters()}


def save(run_folder: Path, step: int, state: State, *, keep: int = 2) -> Path:
    """Save a checkpoint and, once it stands, delete all but the `keep` newest. Returns its folder.

    A crash or an error at any point leaves the checkpoints that were there before, or those and the new one. Saving a step
    again replaces it. Raises StorageError (disk full, I/O) or OutputError (may not be written).
    """
    home = run_folder / "checkpoints"
    target = home / f"step-{step:06d}"
    with files.reported(home):
        home.mkdir(parents=True, exist_ok=True)

    def fill(folder: Path) -> None:
        with foreign_errors(folder / "model"):
            files.begin("open")
            state.write_model(folder / "model")
            if files.begin("write"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write_tensors(folder / "optimizer.safetensors", state.optimizer)
        for name in _PERHAPS:
            if tensors := getattr(state, name):
                _write_tensors(folder / f"{name}.safetensors", tensors)
        text = json.dumps({"format": FORMAT, "step": step, "record": state.record}, indent=1, allow_nan=False)
        files.write_bytes(folder / "state.json", text.encode())

    files.write_folder(target, fill, facts={"step": step})
    _prune(home, step, keep)
    return target


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors straight from their memory: as bytes they would be there two more times."""
    from safetensors.torch import save_file

    with foreign_errors(path):
        files.begin("open")
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        if files.begin("write"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def foreign_errors(path: Path) -> Iterator[None]:
    """Report a full disk also when another library's writer says it in its own words."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise StorageError(str(path), f"writing failed ({error})", "Make room, then resume or start again.") from error


def _folders(home: Path) -> list[tuple[int, Path]]:
    """All folders that may be checkpoints, newest first; one that stepped aside comes after the one that replaces it."""
    found = []
    for item in home.iterdir() if home.is_dir() else ():
        match = _NAME.fullmatch(item.name)
        if match and item.is_dir():
            found.append((int(match[2]), match[1] is None, item))
    return [(step, item) for step, _, item in sorted(found, reverse=True)]


def _prune(home: Path, step: int, keep: int) -> None:
    """Keep the newest `keep` up to `step`. Later ones belong to a history that resuming from an earlier step has left."""
    with files.reported(home):
        for item in home.glob(".tmp-step-*"):
            files.remove_folder(item)
        for item in home.glob(".old-step-*"):  # a crash left it while it was being replaced
            target = item.with_name(item.name.removeprefix(".old-"))
            if target.exists():
                files.remove_folder(item)
            else:
                files.rename(item, target)
        whole = [item for at, item in _folders(home) if at <= step and (item / files.MANIFEST).exists()]
        kept = set(whole[: max(1, keep)])
        for _, item in _folders(home):
            if item not in kept:
                files.remove_folder(item)


def latest(run_folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all as they were written, or None. Damaged newer ones are named in `skipped`."""
    skipped: list[tuple[Path, str]] = []
    for step, folder in _folders(run_folder / "checkpoints"):
        reason = files.fault(folder)
        if not reason:
            _refuse_newer(folder)
            return Checkpoint(folder=folder, step=step, skipped=tuple(skipped))
        skipped.append((folder, reason))
    return None


def _refuse_newer(folder: Path) -> None:
    version = json.loads((folder / "state.json").read_bytes()).get("format", FORMAT)
    if version > FORMAT:
        raise DataError(str(folder), f"format {version}", f"This covey reads formats up to {FORMAT}: update it.")


def load(run_folder: Path) -> Checkpoint:
    """The checkpoint to resume from. Raises MissingInputError where there is none that is whole, with the newest one's fault."""
    found = latest(run_folder)
    if found is not None:
        return found
    damaged = [(folder, files.fault(folder)) for _, folder in _folders(run_folder / "checkpoints")]
    what = "no checkpoint" if not damaged else f"no whole checkpoint ({damaged[0][0].name}: {damaged[0][1]})"
    raise MissingInputError(str(run_folder), what, "Resume a run that has saved one.")


def export(folder: Path, *, model: Any, tokenizer: Any, weights: Mapping[str, Tensor]) -> None:
    """Write an ordinary transformers folder: `weights` under the names and configuration of `model`, and the tokenizer."""
    own = {name: tensor.detach().to("cpu", copy=False).contiguous() for name, tensor in weights.items()}
    with _no_bars():
        model.save_pretrained(folder, state_dict=own)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' progress bars off the console, where a line per step is shown."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def active(run_folder: Path) -> Iterator[None]:
    """Hold the run folder for this process. Raises OutputError while another run holds it; a killed run holds nothing."""
    path = run_folder / "run.lock"
    with files.reported(path):
        run_folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(fd, path)
        _locked.add(fd)
        yield
    finally:
        _locked.discard(fd)
        os.close(fd)


def _take(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 64, 0).decode(errors="replace").strip()
        raise OutputError(
            str(path.parent),
            f"a run is active here (process {holder or 'unknown'})",
            "Wait for it or choose another folder.",
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)


def _let_go_in_child() -> None:
    """A forked worker that outlives a killed run must not keep its lock: closing the copy leaves the parent's lock alone."""
    for fd in _locked:
        with suppress(OSError):
            os.close(fd)
    _locked.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
