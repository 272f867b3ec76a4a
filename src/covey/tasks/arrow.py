"""Rows from Parquet files, folders of data sets and hub ids, through the extra `data` (pyarrow, datasets).

Nothing of a data set's own code is ever run: the library refuses loading scripts, and code is not asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from covey.errors import DataError, MissingInputError, RefusedError
from covey.hub import hub_answers
from covey.tasks.sources import Placed, choose_split, each

_BATCH = 1024
_CONFIGURED = "One of several configurations is named as owner/name:config."


def need(module: str, where: str) -> Any:
    """An optional library. Raises MissingInputError with the extra that brings it."""
    need_spec(module.partition(".")[0], where)
    return importlib.import_module(module)


def need_spec(library: str, where: str) -> None:
    """Whether an optional library is installed, without loading it. Raises MissingInputError with the extra that brings it."""
    try:
        there = importlib.util.find_spec(library) is not None
    except ValueError:
        there = False
    if not there:
        found = f"needs `pip install covey[data]` ({library})"
        raise MissingInputError(where, found, "JSON lines and CSV are read without it.")


def read_parquet(path: str, file: Path, columns: Sequence[str] | None = None) -> Placed:
    """The rows of a Parquet file, some at a time; of the columns those that are wanted, if the file has any of them."""
    parquet, arrow = need("pyarrow.parquet", path), need("pyarrow", path)
    number = 0
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        wanted = None if columns is None or columns[0] not in names else [name for name in columns if name in names]
        for batch in table.iter_batches(batch_size=_BATCH, columns=wanted):
            for row in batch.to_pylist():
                yield f"{path} row {number}", row
                number += 1
    except arrow.ArrowException as error:
        raise DataError(path, f"it cannot be read as Parquet ({_first(error)})", "Write the file again.") from None
    except OSError as error:
        raise MissingInputError(path, f"it cannot be read ({error.strerror or _first(error)})") from None
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{path} row {number}", f"a value cannot be read ({_first(error)})", "Write it as text."
        ) from None


def read_folder(folder: Path, path: str, split: str | None) -> Placed:
    """The rows of a folder: one that `save_to_disk` made, or files in hub layout (`data/train-00000-of-00001.parquet` ...)."""
    datasets = need("datasets", path)
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    with _quiet(datasets), _explained(path, "the folder"):
        found = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder.resolve()))
    return _read_set(found, path, split)


def read_hub(path: str, split: str | None) -> Placed:
    """The rows of `owner/name` or `owner/name:config`: from the local cache, or from the hub where it can be reached."""
    name, _, config = path.partition(":")
    offline = not hub_answers()
    if offline and not _is_cached(name):
        need_spec("datasets", path)
        raise _nowhere(path)
    datasets = need("datasets", path)
    with _quiet(datasets), _explained(path, "the data set"), _offline(datasets, offline):
        found = datasets.load_dataset(name, config or None)
    return _read_set(found, path, split)


def _is_cached(name: str) -> bool:
    """Whether something of a hub id is on this machine; told without the library, which takes seconds to load."""
    from huggingface_hub import constants

    made = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets"))
    copied = Path(constants.HF_HUB_CACHE)
    return (made / name.replace("/", "___")).is_dir() or (copied / f"datasets--{name.replace('/', '--')}").is_dir()


def _nowhere(path: str) -> MissingInputError:
    found = "it is no file or folder here, not in the local cache, and not to be had from the hub"
    return MissingInputError(f"data {path}", found, "Give a path, or a hub id once while online.")


def _read_set(found: Any, path: str, split: str | None) -> Placed:
    """The rows of a Dataset or of a split of a DatasetDict."""
    if isinstance(found, Mapping):
        name = choose_split(found, split, path)
        return _read_rows(found[name], f"{path} {name}")
    if split not in (None, str(found.split)):
        raise DataError(path, f"there is no split '{split}'", "It is a single table: leave the split out.")
    return _read_rows(found, path)


def _read_rows(rows: Any, where: str) -> Placed:
    return ((f"{where} row {number}", row) for number, row in enumerate(each(rows)))


@contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    """Tell in one line why a data set cannot be had."""
    try:
        yield
    except RuntimeError as error:
        if "script" not in str(error):
            raise DataError(path, f"{what} cannot be read ({_first(error)})") from None
        raise RefusedError(path, "it is read by code of its own, which is never run", "Use its Parquet form.") from None
    except (ConnectionError, FileNotFoundError) as error:
        if what == "the folder":
            raise MissingInputError(
                path, f"it holds no rows ({_first(error)})", "Give JSON lines, CSV or Parquet."
            ) from None
        raise _nowhere(path) from None
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise DataError(
            path, f"{what} cannot be read ({_first(error)})", _CONFIGURED if what == "the data set" else ""
        ) from None
    except Exception as error:  # the library's own classes, which have no common base outside of it
        if not type(error).__module__.startswith(("datasets", "pyarrow", "huggingface_hub", "fsspec")):
            raise
        raise DataError(path, f"{what} cannot be read ({_first(error.__cause__ or error)})") from None


def _first(error: BaseException) -> str:
    """The first line of what a library says, cut."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def _offline(datasets: Any, offline: bool) -> Iterator[None]:
    """Keep the library off a network that does not answer: it would go on trying."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Keep progress bars and warnings off the console, where a line per step is shown."""
    hub = importlib.import_module("huggingface_hub.utils")
    bars, hub_bars = datasets.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    level = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    hub.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
        if hub_bars:
            hub.enable_progress_bars()
