"""W-TinyLFU, the windowed LRU: newcomers wait in a window, and stay if they are used more than what would go for them.

Einziger, Friedman, Manes, "TinyLFU", ACM ToS 2017. Of the variants this is libCacheSim's, to the block: the window may fill
all of the cache until something has to go; the main part is a segmented LRU of one part probation to four parts protected;
the sketch counts hits in the main part, insertions, and each look at the window's end.
"""

from collections import OrderedDict
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.eviction.order import Spared, spare_none
from p2pkv.eviction.sketch import Hashes, Sketch, key_hashes

_WINDOW_SHARE: Final = 0.01
_SEGMENTS: Final = (1, 4)
"""Of the main part, probation and protected."""
_HALVED_AFTER: Final = 32
"""Hits per block of the main part."""


class WTinyLfu:
    """Keeps what is used often, and forgets slowly."""

    by_age: Final = False
    """See `Order`."""

    def __init__(self, capacity: int, hashes: Hashes = key_hashes) -> None:
        """`capacity` in blocks decides the sizes of the parts."""
        window = max(1, int(capacity * _WINDOW_SHARE))
        self._main_max: Final = capacity - window
        self._segment_max: Final = tuple(int(share / sum(_SEGMENTS) * self._main_max) for share in _SEGMENTS)
        self._window: OrderedDict[BlockKey, None] = OrderedDict()
        self._segments: tuple[OrderedDict[BlockKey, None], ...] = (OrderedDict(), OrderedDict())
        self._chosen: tuple[BlockKey, BlockKey] | None = None
        """Who was chosen to go last, and the end of the window that it was compared with."""
        self._sketch = Sketch(self._main_max, hashes)
        self._hits = 0

    def __contains__(self, key: object) -> bool:
        """See `Order`."""
        return key in self._window or key in self._segments[0] or key in self._segments[1]

    def __len__(self) -> int:
        """See `Order`."""
        return len(self._window) + self._main_len()

    def insert(self, key: BlockKey) -> None:
        """See `Order`."""
        assert key not in self
        self._window[key] = None
        self._sketch.add(key)

    def touch(self, key: BlockKey) -> None:
        """See `Order`."""
        if key in self._window:
            self._window.move_to_end(key)
            return
        probation, protected = self._segments
        if key in protected:
            protected.move_to_end(key)
        else:
            del probation[key]
            protected[key] = None
            if len(protected) > self._segment_max[1]:
                probation[protected.popitem(last=False)[0]] = None
        self._sketch.add(key)
        self._hits += 1
        if self._hits >= _HALVED_AFTER * self._main_max:
            self._hits = 0
            self._sketch.halve()

    def renew(self, key: BlockKey) -> None:
        """See `Order`."""
        if key in self._window:
            self._window.move_to_end(key)

    def victim(self, spared: Spared = spare_none) -> BlockKey | None:
        """See `Order`."""
        while (candidate := next((key for key in self._window if not spared(key)), None)) is not None:
            if self._main_len() < self._main_max:
                del self._window[candidate]
                self._into_main(candidate)
                self._sketch.add(candidate)
                continue
            victim = self._main_victim(spared)
            if victim is None or self._sketch.estimate(candidate) <= self._sketch.estimate(victim):
                victim = candidate
            self._chosen = (victim, candidate)
            return victim
        return self._main_victim(spared)

    def evict(self, key: BlockKey) -> None:
        """See `Order`."""
        self.remove(key)
        if self._chosen is not None and self._chosen[0] == key:
            candidate = self._chosen[1]
            if candidate in self._window:
                del self._window[candidate]
                self._into_main(candidate)
            self._sketch.add(candidate)
        self._chosen = None

    def remove(self, key: BlockKey) -> None:
        """See `Order`."""
        if key in self._window:
            del self._window[key]
        else:
            del self._segments[0 if key in self._segments[0] else 1][key]

    def _main_len(self) -> int:
        return len(self._segments[0]) + len(self._segments[1])

    def _main_victim(self, spared: Spared) -> BlockKey | None:
        return next((key for segment in self._segments for key in segment if not spared(key)), None)

    def _into_main(self, key: BlockKey) -> None:
        """Insert in the lowest segment that has room; in probation where rounding left none."""
        for segment, most in zip(self._segments, self._segment_max, strict=True):
            if len(segment) < most:
                segment[key] = None
                return
        self._segments[0][key] = None
