"""Chains of calls and what comes out of them when calls are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def spares_one(calls: Sequence[Callable[[str], str]], value: str, answer: str) -> bool:
    """Whether leaving out one call already gives the answer: the quick part of the rule that every call matters."""
    for skipped in range(len(calls)):
        found = value
        for place, function in enumerate(calls):
            found = found if place == skipped else function(found)
        if found == answer:
            return True
    return False


def list_shortcuts(calls: Sequence[Callable[[str], str]], value: str) -> set[str]:
    """The values of all proper sub-chains of calls (innermost first): any non-empty set removed, all included.

    Where the chain's own value is not among them, every call matters: nobody is right by ignoring one.
    """
    shortcuts = set[str]()
    for function in calls:
        shortcuts |= {function(part) for part in shortcuts} | {value}
        value = function(value)
    return shortcuts
