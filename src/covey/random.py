"""Counter-based randomness: every number is a pure function of a key, so nothing has to be saved and order never matters."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")
_MASK = (1 << 64) - 1


def key(*parts: str | int) -> int:
    """A 64-bit key of (seed, purpose, prompt id, visit, sample index ...); distinct tuples give independent keys."""
    text = "\x1f".join(f"{type(part).__name__}:{part}".replace("\x1f", "\x1f ") for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def splitmix(state: int) -> int:
    """The 64-bit output of the SplitMix64 finaliser (Steele et al. 2014) for one counter value."""
    z = (state + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


class Draws:
    """The sequence of numbers that belongs to one key. Make a fresh one wherever the same numbers are wanted."""

    def __init__(self, *parts: str | int) -> None:
        self._key, self._count = key(*parts), 0

    def bits(self) -> int:
        """The next 64 random bits."""
        self._count += 1
        return splitmix((self._key + self._count * 0xD1342543DE82EF95) & _MASK)

    def uniform(self) -> float:
        """The next number in [0, 1), 53 bits."""
        return (self.bits() >> 11) * 2.0**-53

    def below(self, n: int) -> int:
        """The next integer in 0 .. n-1, exactly uniform (rejection)."""
        limit = (1 << 64) - (1 << 64) % n
        while (value := self.bits()) >= limit:
            pass
        return value % n

    def between(self, low: int, high: int) -> int:
        """The next integer in low .. high, both included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[Item]) -> Item:
        """The next item, uniform."""
        return items[self.below(len(items))]


def permutation(n: int, *parts: str | int) -> list[int]:
    """A uniform permutation of 0 .. n-1 that belongs to a key (Fisher-Yates)."""
    draws, order = Draws(*parts), list(range(n))
    for i in range(n - 1, 0, -1):
        j = draws.below(i + 1)
        order[i], order[j] = order[j], order[i]
    return order
