"""S3-FIFO: a small queue that most blocks leave soon, a main one, and a memory of what left the small one.

Yang et al., "FIFO queues are all you need for cache eviction", SOSP'23; parameters and details as in libCacheSim.
"""

from collections import OrderedDict
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.eviction.order import Spared, spare_none

_SMALL_SHARE: Final = 0.1
_GHOST_SHARE: Final = 0.9
_PROMOTED_AT: Final = 2
"""Uses in the small queue after which a block goes over to the main one."""
_USES_MAX: Final = 3
"""Rounds that a block may stay in the main queue without a use."""


class S3Fifo:
    """Blocks wanted once go soon; a scan passes through without pushing out what is used again."""

    by_age: Final = False
    """See `Order`."""

    def __init__(self, capacity: int) -> None:
        """`capacity` in blocks decides the sizes of the queues."""
        small = max(1, int(capacity * _SMALL_SHARE))
        self._main_max: Final = capacity - small
        self._ghosts_max: Final = max(1, int(capacity * _GHOST_SHARE))
        self._small: OrderedDict[BlockKey, int] = OrderedDict()
        """Uses of each block, the oldest block in front."""
        self._main: OrderedDict[BlockKey, int] = OrderedDict()
        self._ghosts: OrderedDict[BlockKey, None] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        """See `Order`."""
        return key in self._small or key in self._main

    def __len__(self) -> int:
        """See `Order`."""
        return len(self._small) + len(self._main)

    def insert(self, key: BlockKey) -> None:
        """See `Order`."""
        assert key not in self
        if key in self._ghosts:
            del self._ghosts[key]
            self._main[key] = 0
        else:
            self._small[key] = 0
        # Not in `evict`: the newcomer that it made room for may be the oldest ghost.
        while len(self._ghosts) > self._ghosts_max:
            self._ghosts.popitem(last=False)

    def touch(self, key: BlockKey) -> None:
        """See `Order`."""
        queue = self._small if key in self._small else self._main
        queue[key] += 1

    def renew(self, key: BlockKey) -> None:
        """See `Order`: here nothing is the newer for it."""

    def victim(self, spared: Spared = spare_none) -> BlockKey | None:
        """See `Order`."""
        queues = [self._of_small, self._of_main]
        if len(self._main) > self._main_max or not self._small:
            queues.reverse()
        for first_of in queues:
            key = first_of(spared)
            if key is not None:
                return key
        return None

    def evict(self, key: BlockKey) -> None:
        """See `Order`."""
        if self._small.pop(key, None) is not None:
            self._ghosts[key] = None
        else:
            del self._main[key]

    def remove(self, key: BlockKey) -> None:
        """See `Order`."""
        if self._small.pop(key, None) is None:
            del self._main[key]

    def _of_small(self, spared: Spared) -> BlockKey | None:
        """Return the first block of the small queue that was hardly used, with those that were taken over before it."""
        found: BlockKey | None = None
        passed: list[BlockKey] = []
        for key, uses in self._small.items():
            if uses >= _PROMOTED_AT:
                passed.append(key)
            elif not spared(key):
                found = key
                break
        for key in passed:
            del self._small[key]
            self._main[key] = 0
        return found

    def _of_main(self, spared: Spared) -> BlockKey | None:
        """Return the first block of the main queue that has no round left, with those that had one sent to its end."""
        main = self._main
        for _ in range((_USES_MAX + 1) * len(main)):
            key = next(iter(main))
            uses = main[key]
            if uses == 0 and not spared(key):
                return key
            main[key] = min(uses, _USES_MAX) - 1 if uses else 0
            main.move_to_end(key)
        return None
