"""Errors of users and their exit codes: one line that says where, what was found and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CoveyError(Exception):
    """A mistake that the user can mend. `str(error)` is one line: `where: what was found. What would be right.`"""

    exit_code = 2

    def __init__(self, where: str, found: str, right: str = "") -> None:
        self.where, self.found, self.right = where, found, right
        line = f"{where}: {found}. {right}" if right else f"{where}: {found}"
        super().__init__(" ".join(line.split()))


class ConfigError(CoveyError):
    """A key, value or combination that cannot be right."""


class DataError(CoveyError):
    """Rows, prompts or rewards that cannot be used."""

    exit_code = 65


class MissingInputError(CoveyError):
    """A file, folder or model that is not there or cannot be read."""

    exit_code = 66


class ServerError(CoveyError):
    """A server that does not answer, or answers what cannot be right."""

    exit_code = 69


class DivergedError(CoveyError):
    """Training produced non-finite numbers."""

    exit_code = 70


class CapacityError(CoveyError):
    """The machine's memory is not enough."""

    exit_code = 71


class OutputError(CoveyError):
    """The output cannot be created: in use, not a folder, read-only."""

    exit_code = 73


class StorageError(CoveyError):
    """An input/output operation failed, or the disk is full."""

    exit_code = 74


class ProofError(CoveyError):
    """A recipe that does not keep a property which every recipe has to keep."""

    exit_code = 76


class RefusedError(CoveyError):
    """An unsafe action that needs to be asked for by name."""

    exit_code = 77


EXIT_CODES = {
    0: "done",
    1: "a bug in covey (traceback)",
    2: "usage or configuration",
    65: "data",
    66: "missing or unreadable input",
    69: "a server does not serve",
    70: "training diverged",
    71: "out of memory",
    73: "output cannot be created",
    74: "input/output failed or disk full",
    76: "a recipe breaks a property",
    77: "unsafe action not asked for",
    130: "interrupted; the run can be resumed",
}


def did_you_mean(name: str, options: Iterable[str], *, otherwise: str = "") -> str:
    """A sentence that proposes the option nearest to `name`; when none is near `otherwise`, or a list of the options."""
    known = sorted(set(options))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [option for option in known if option.lower() == name.lower()]
    if near:
        return f"Did you mean '{near[0]}'?"
    if otherwise:
        return otherwise
    return f"Known: {', '.join(known)}." if known else ""
