"""Least recently used first, and first in first out."""

from collections import OrderedDict

from p2pkv.blocks import BlockKey
from p2pkv.eviction.order import Spared, spare_none


class Lru:
    """Least recently used first. A chain touched tail first loses its tail first, all by itself."""

    by_age: bool = True
    """See `Order`."""

    def __init__(self) -> None:
        self._keys: OrderedDict[BlockKey, None] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        """See `Order`."""
        return key in self._keys

    def __len__(self) -> int:
        """See `Order`."""
        return len(self._keys)

    def insert(self, key: BlockKey) -> None:
        """See `Order`."""
        assert key not in self._keys
        self._keys[key] = None

    def touch(self, key: BlockKey) -> None:
        """See `Order`."""
        self._keys.move_to_end(key)

    def renew(self, key: BlockKey) -> None:
        """See `Order`."""
        self.touch(key)

    def victim(self, spared: Spared = spare_none) -> BlockKey | None:
        """See `Order`."""
        for key in self._keys:
            if not spared(key):
                return key
        return None

    def evict(self, key: BlockKey) -> None:
        """See `Order`."""
        del self._keys[key]

    def remove(self, key: BlockKey) -> None:
        """See `Order`."""
        del self._keys[key]


class Fifo(Lru):
    """First in, first out: a use changes nothing."""

    by_age = False
    """See `Order`."""

    def touch(self, key: BlockKey) -> None:
        """See `Order`."""
        assert key in self._keys
