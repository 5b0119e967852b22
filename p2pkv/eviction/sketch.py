"""How often keys were used lately, about: counters that several keys share, halved now and then."""

from collections.abc import Callable
from math import ceil, log
from typing import Final, TypeAlias

from p2pkv.blocks import BlockKey

Hashes: TypeAlias = Callable[[BlockKey], tuple[int, int]]
"""Two numbers of 32 bits for a key."""

_ERROR: Final = 0.001
"""Share of keys whose count another key's adds to."""
_LN2: Final = log(2)


def key_hashes(key: BlockKey) -> tuple[int, int]:
    """Return two numbers from a key, which is a digest already."""
    return int.from_bytes(key[:4], "little"), int.from_bytes(key[4:8], "little")


class Sketch:
    """A counting Bloom filter: a key's count is the least of its counters, never less than its uses since the last halvings."""

    def __init__(self, entries: int, hashes: Hashes = key_hashes) -> None:
        """Lay it out for so many keys."""
        per_entry = -log(_ERROR) / _LN2**2
        self._rows: Final = ceil(_LN2 * per_entry)
        self._size: Final = max(ceil(per_entry * entries), 2 * self._rows)
        self._counters = [0] * self._size
        self._hashes = hashes

    def _places(self, key: BlockKey) -> list[int]:
        first, step = self._hashes(key)
        size = self._size
        return [(first + row * step & 0xFFFFFFFF) % size for row in range(self._rows)]

    def add(self, key: BlockKey) -> None:
        """Count a use."""
        counters = self._counters
        for place in self._places(key):
            counters[place] += 1

    def estimate(self, key: BlockKey) -> int:
        """Return how often it was used, or more."""
        counters = self._counters
        return min([counters[place] for place in self._places(key)])

    def halve(self) -> None:
        """Make what was long ago count for less."""
        self._counters = [count >> 1 for count in self._counters]
