"""Where rows are: files by their endings, several files at once, folders and hub ids of data sets, and rows given in Python.

`read` yields values with their places: `FILE line N` (from 1) where a file has lines, `FILE row N` (from 0) where it has none.
JSON lines and CSV are read by the standard library alone; Parquet, folders and hub ids need the extra `data`.
"""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from covey.errors import DataError, MissingInputError
from covey.registry import Component, plain
from covey.tasks.table import number_rows, plain_value

Placed = Iterator[tuple[str, Any]]
"""Values, each with the place that a mistake in it is told by."""
HANDLE = "python:"
RIGHT = "Give a file of rows (.jsonl, .json, .csv, .tsv, .parquet), a folder or a hub id."
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
_LONGEST_CELL = 2**31 - 1


def read(path: str, *, split: str | None = None, columns: Sequence[str] | None = None) -> Placed:
    """The rows that `path` names: a file, a pattern such as `data/*.jsonl`, a folder, a hub id, or a handle of given rows.

    `split` names a part of a data set of several (without it: `train`, or the only one); `columns` are those that are
    wanted, where a format can leave others unread. Raises MissingInputError or DataError.
    """
    if path.startswith(HANDLE):
        return _find_given(path).read(split)
    place = Path(path).expanduser()
    if place.is_dir():
        from covey.tasks.arrow import read_folder

        return read_folder(place, path, split)
    files = [(path, place)] if place.is_file() else [(name, Path(name)) for name in _match(str(place))]
    if not files and is_hub_id(path):
        from covey.tasks.arrow import read_hub

        return read_hub(path, split)
    if not files:
        found = "no file matches" if glob.has_magic(path) else "there is no such file"
        raise MissingInputError(path, found, RIGHT)
    if split is not None:
        raise DataError(path, f"a file has no split '{split}'", "Splits are for folders and hub ids: leave it out.")
    return (pair for name, file in files for pair in read_file(name, file, columns))


def _match(pattern: str) -> list[str]:
    """The files that a pattern names, in the order of their names; none for a plain path."""
    found = glob.glob(pattern, recursive=True) if glob.has_magic(pattern) else []
    return sorted(name for name in found if Path(name).is_file())


def is_hub_id(path: str) -> bool:
    """Whether a text may be a data set's id on the hub: `owner/name` or `owner/name:config`, and no file by its ending."""
    return bool(_HUB_ID.fullmatch(path)) and _ending(Path(path)) not in FORMATS


def read_file(path: str, file: Path, columns: Sequence[str] | None = None) -> Placed:
    """The rows of one file, by its ending; `.gz` after it means that it is compressed."""
    ending = _ending(file)
    if ending not in FORMATS:
        raise DataError(path, f"its ending '{ending}' names no format", f"Known: {', '.join(FORMATS)}.")
    if ending != ".parquet":
        return FORMATS[ending](path, file)
    from covey.tasks.arrow import read_parquet

    return read_parquet(path, file, columns)


def _ending(file: Path) -> str:
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _lines(path: str, file: Path) -> Iterator[bytes]:
    """The lines of a file as bytes; only a line feed ends one, as other separators may stand inside a text."""
    try:
        with gzip.open(file, "rb") if file.name.lower().endswith(".gz") else file.open("rb") as stream:
            first = True
            for line in stream:
                yield line.removeprefix(b"\xef\xbb\xbf") if first else line
                first = False
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(path, f"it is no whole gzip file ({error})", "Compress the file again.") from None
    except OSError as error:
        raise MissingInputError(path, f"it cannot be read ({error.strerror})", RIGHT) from None


def read_lines(path: str, file: Path | None = None) -> Placed:
    """The values of a file of JSON lines; blank lines are skipped. Raises DataError if it is not UTF-8 or a line is no JSON."""
    for number, line in enumerate(_lines(path, file or Path(path)), start=1):
        if line.strip():
            yield (
                f"{path} line {number}",
                _parse(line.rstrip(b"\r\n"), f"{path} line {number}", "Write one object per line."),
            )


def read_list(path: str, file: Path) -> Placed:
    """The members of a file that is one JSON list; a file that does not begin with a bracket is taken as JSON lines."""
    if next((line.lstrip() for line in _lines(path, file) if line.strip()), b"")[:1] != b"[":
        yield from read_lines(path, file)
        return
    whole = _parse(b"".join(_lines(path, file)), path, "Write a list of objects.")
    for number, value in enumerate(whole):
        yield f"{path} row {number}", value


def _parse(text: bytes, where: str, right: str) -> Any:
    try:
        return _DECODER.decode(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from None
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno} column {error.colno}"
        raise DataError(where, f"no JSON: {error.msg} at {at}", right) from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(where, f"no JSON: {reason}", right) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    return DataError(where, f"byte {error.start + 1} is not UTF-8", "Save the file as UTF-8.")


def read_cells(path: str, file: Path, delimiter: str = ",") -> Placed:
    """The rows of a table with a header: every cell is text, an empty one null. Quotes are as in RFC 4180.

    A row stands at the line on which it begins, as a quoted cell may go over several. Blank lines are skipped.
    """
    texts = _decode(path, file)
    before = csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    try:
        header: list[str] = []
        line = 1
        for cells in reader:
            where, line = f"{path} line {line}", reader.line_num + 1
            if cells and not header:
                header = _check_header(cells, where)
            elif cells:
                yield where, _as_row(header, cells, where)
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}", f"no table: {error}", 'Quote cells as "...".') from None
    finally:
        csv.field_size_limit(before)


def _decode(path: str, file: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path, file), start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(f"{path} line {number}", error) from None


def _check_header(cells: list[str], where: str) -> list[str]:
    for place, name in enumerate(cells, start=1):
        if not name.strip():
            raise DataError(where, f"column {place} has no name", "The first line names every column.")
        if name in cells[: place - 1]:
            raise DataError(where, f"column '{name}' is there twice", "Give each column its own name.")
    return cells


def _as_row(header: Sequence[str], cells: Sequence[str], where: str) -> dict[str, str | None]:
    if len(cells) != len(header):
        raise DataError(
            where, f"{len(cells)} cells, but the header names {len(header)}", "Quote cells with a separator."
        )
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _read_tabs(path: str, file: Path) -> Placed:
    return read_cells(path, file, "\t")


FORMATS: dict[str, Callable[[str, Path], Placed]] = {
    ".jsonl": read_lines, ".ndjson": read_lines, ".json": read_list,
    ".csv": read_cells, ".tsv": _read_tabs, ".parquet": read_lines,
}  # fmt: skip
"""Readers by ending; `.parquet` has one of its own, which needs the extra `data`."""


class Given:
    """Rows that live in Python, under a handle that says what they are: equal rows have equal handles.

    They live as long as this object; `read` finds them by the handle, so that a configuration can name them.
    """

    def __init__(self, splits: Mapping[str, Sequence[Any]]) -> None:
        self.splits = splits
        self.handle = HANDLE + _digest(splits)

    def read(self, split: str | None) -> Placed:
        """The rows of a split (without it: `train`, or the only one)."""
        return number_rows(each(self.splits[choose_split(self.splits, split, "data")]))


_GIVEN: WeakValueDictionary[str, Given] = WeakValueDictionary()


def give(rows: Any) -> Given:
    """Keep rows for `read`: an iterable of mappings, a table, or a `datasets` Dataset or DatasetDict. They are checked for JSON.

    Raises DataError for what holds no rows, or a value that JSON cannot hold.
    """
    if isinstance(rows, Mapping) and _is_split(rows):
        given = Given({str(name): part for name, part in rows.items()})
    else:
        given = Given({"": _list_rows(rows)})
    return _GIVEN.setdefault(given.handle, given)


def hand_over(data: Any) -> tuple[Any, list[Given]]:
    """What `data=` of a configuration says for data from Python, and the rows that have to be kept while it is in use.

    Paths stay, rows become their handle, and a mapping or a list of such things is one of the same form.
    """
    if data is None or isinstance(data, str):
        return data, []
    if isinstance(data, Path):
        return str(data), []
    if isinstance(data, Component):
        return plain(data), []
    if isinstance(data, list | tuple) and data and all(isinstance(part, str | Path) for part in data):
        return [str(part) for part in data], []
    if not isinstance(data, Mapping) or _is_split(data):
        given = give(data)
        return given.handle, [given]
    if "prompt" in data or not all(isinstance(part, str | Path | Component | Iterable) for part in data.values()):
        found = f"one object with {', '.join(map(str, data)) or 'nothing'}"
        raise DataError("data", found, "Give a list of objects, one per row, or sources by name: {NAME: rows}.")
    parts = {str(name): hand_over(part) for name, part in data.items()}
    return {name: part for name, (part, _) in parts.items()}, [given for _, kept in parts.values() for given in kept]


def _is_split(data: Mapping[Any, Any]) -> bool:
    """Whether a mapping is a DatasetDict: splits of one data set, not several sources."""
    return type(data).__module__.startswith("datasets.")


def find_given(path: str) -> Given | None:
    """The rows behind a handle, if there are such; None for any other path too."""
    return _GIVEN.get(path)


def _find_given(path: str) -> Given:
    given = _GIVEN.get(path)
    if given is None:
        found = "the rows were given in Python and are not here"
        raise MissingInputError(f"data {path}", found, "Give the same rows again: covey.train(data=..., ...).")
    return given


def _list_rows(rows: Any) -> Sequence[Any]:
    if hasattr(rows, "column_names") and hasattr(rows, "__getitem__") and hasattr(rows, "features"):
        return rows  # type: ignore[no-any-return]  # a Dataset: its rows stay in its own memory-mapped table
    for method, options in (("to_pylist", ()), ("to_dicts", ()), ("to_dict", ("records",))):
        if hasattr(rows, "columns") and hasattr(rows, method):  # tables of pyarrow, polars, pandas
            return list(getattr(rows, method)(*options))
    if isinstance(rows, Mapping):
        found = f"one object with {', '.join(map(str, rows)) or 'nothing'}"
        raise DataError("data", found, "Give a list of objects, one per row.")
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise DataError("data", f"{type(rows).__name__} holds no rows", "Give a path or an iterable of dicts.")
    return tuple(rows)


def _digest(splits: Mapping[str, Sequence[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, rows in splits.items():
        digest.update(repr(name).encode())
        for where, row in number_rows(each(rows)):
            plain = {key: plain_value(item, where, str(key)) for key, item in row.items()} if _is_row(row) else row
            digest.update(repr(plain).encode())
    return digest.hexdigest()


def each(rows: Any) -> Iterator[Any]:
    """The rows one by one; those of a Dataset in batches straight from its table, unless a transform of the user's makes them."""
    if not hasattr(rows, "with_format") or rows.format["type"] == "custom":
        yield from rows
        return
    for batch in rows.with_format("arrow").iter(batch_size=1024):
        yield from batch.to_pylist()


def _is_row(value: Any) -> bool:
    return isinstance(value, Mapping)


def choose_split(splits: Iterable[str], wanted: str | None, where: str) -> str:
    """The split that is asked for; without a wish `train`, or the only one. Raises DataError with those that there are."""
    names = list(splits)
    if wanted is None and len(names) == 1:
        return names[0]
    if (wanted or "train") in names:
        return wanted or "train"
    there = ", ".join(name for name in names if name)
    right = f"Splits: {there}; write task.split=NAME." if there else "These rows have no splits: leave it out."
    raise DataError(where, f"there is no split '{wanted or 'train'}'", right)
