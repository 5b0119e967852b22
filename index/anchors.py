"""What this node holds of stretches of chains, for the directory: how many blocks from the start of each.

A chain is cut in stretches of 32 blocks. The key of a stretch's first block, its *anchor*, stands for the stretch, so the
directory has one record where a summary has five keys and more. A key of unknown depth is an anchor by itself.

Where chains part within a stretch, one anchor stands for several branches, and the longest counts. Who asks for another
branch is told too much, and the holder says so.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from p2pkv.transport.wire import ANCHOR_BYTES

STRETCH_BLOCKS: Final = 32
"""512 tokens in blocks of 16. Longer stretches make fewer records, and say less where chains part."""


def anchor_of(key: bytes) -> bytes:
    """Return the anchor that stands for the stretch which begins with `key`."""
    return key[-ANCHOR_BYTES:]


def anchors(chain: Sequence[bytes], first: int = 0) -> list[bytes]:
    """Return the anchors of the stretches of `chain` from the one that block `first` lies in."""
    return [anchor_of(key) for key in chain[first // STRETCH_BLOCKS * STRETCH_BLOCKS :: STRETCH_BLOCKS]]


class _Stretch:
    """How many of the held keys stand at each place of one stretch, and how long the run from its start is."""

    __slots__ = ("counts", "run")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.run = 0

    def put(self, place: int, change: int) -> bool:
        """Count a key that came to `place` or went; say whether the run is another now."""
        count = self.counts.get(place, 0) + change
        if count:
            self.counts[place] = count
        else:
            del self.counts[place]
        before = self.run
        if not count and place < before:
            self.run = place
        elif place == before:
            while self.run in self.counts:
                self.run += 1
        return self.run != before


class Anchors:
    """Runs of all stretches this node holds something of. `changed` collects those to be told of.

    Memory: an entry per held key. A key whose parent is not known to be in any stretch waits for it; until then it is
    not counted, because nobody could use it from here alone.
    """

    def __init__(self) -> None:
        self.changed: dict[bytes, None] = {}
        """Anchors whose run changed since somebody last emptied this, the earliest first."""
        self._stretches: dict[bytes, _Stretch] = {}
        self._of: dict[bytes, tuple[bytes, int, bytes]] = {}
        """Anchor (b"" while it is unknown), place and parent of each held key."""
        self._orphans: dict[bytes, dict[bytes, None]] = {}
        """Held keys by the parent they wait for."""

    def __len__(self) -> int:
        return len(self._stretches)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stretches)

    def blocks(self, anchor: bytes) -> int:
        """Return how many blocks of the stretch from its start are held."""
        stretch = self._stretches.get(anchor)
        return stretch.run if stretch is not None else 0

    def place(self, key: bytes) -> tuple[bytes, int] | None:
        """Return anchor and place in the stretch of a held key, None if they are not known."""
        known = self._of.get(key)
        return known[:2] if known is not None and known[0] else None

    def add(self, key: bytes, depth: int | None, parent: bytes) -> None:
        """Take that a key is held, at `depth` if that is known, behind `parent` unless that is empty."""
        if key in self._of:
            return
        place = 0 if depth is None else depth % STRETCH_BLOCKS
        if place == 0:
            self._enter(key, anchor_of(key), 0, parent if depth is not None else b"")
            return
        before = self._of.get(parent)
        if before is None or not before[0]:
            self._of[key] = (b"", place, parent)
            if parent:
                self._orphans.setdefault(parent, {})[key] = None
            return
        self._enter(key, before[0], place, parent)

    def remove(self, key: bytes) -> None:
        """Take that a key is held no longer."""
        known = self._of.pop(key, None)
        if known is None:
            return
        anchor, place, parent = known
        if anchor:
            self._count(anchor, place, -1)
            return
        if parent:
            waiting = self._orphans[parent]
            del waiting[key]
            if not waiting:
                del self._orphans[parent]

    def _enter(self, key: bytes, anchor: bytes, place: int, parent: bytes) -> None:
        """Count a key whose stretch is known, and those that waited for it."""
        entering = [(key, place, parent)]
        while entering:
            one, at, before = entering.pop()
            self._of[one] = (anchor, at, before)
            self._count(anchor, at, 1)
            entering += [(orphan, self._of[orphan][1], one) for orphan in self._orphans.pop(one, ())]

    def _count(self, anchor: bytes, place: int, change: int) -> None:
        stretch = self._stretches.get(anchor)
        if stretch is None:
            stretch = self._stretches[anchor] = _Stretch()
        if stretch.put(place, change):
            self.changed[anchor] = None
        if not stretch.counts:
            del self._stretches[anchor]
