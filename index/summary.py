"""What this node holds, as its peers will know it: a Bloom filter with versions, and the messages that carry it.

A summary has one writer, so no reconciliation is needed: a version is (epoch, seq), the epoch naming one life of the
writer's process. A *delta* lists the bits that flipped from seq - 1 to seq; a *snapshot* is the whole filter at one
version, in pages. What peers make of them is in peer_summary.py. A filter of another shape is a new version to which no
delta leads. Readers short of memory are served a folded filter, and the flips of that.

Bloom filters cannot forget. The writer counts how many keys hold each position and clears a bit when its count falls
to zero; the counts never travel. Four bits a count would do, eight are simpler: with m bits at a load of
k n / m <= ln 2, the chance that any count reaches 16 is 1.4e-15 m (Fan et al., "Summary Cache", section V-C).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np

from p2pkv.index.bloom import BITS_LOG2_MAX, BITS_LOG2_MIN, HASHES_MAX, BloomFilter, HashedKeys, key_positions
from p2pkv.index.codec import delta_of, page_of
from p2pkv.transport.wire import FLIPS_PER_DELTA_MAX, PAGE_BYTES_MAX, SummaryDelta, SummaryPage

COUNT_MAX: Final = 255
_REBUILD_KEYS: Final = 2**16
"""Keys hashed at a time when the filter is built anew, so that their positions take little memory."""


class SummaryWriter:
    """The producer's side. `add` and `remove` must pair up, as in a multiset.

    Memory: 9 bits for each bit of the filter, and the positions that flipped since the last `seal`.
    """

    def __init__(self, epoch: int, bits_log2: int, hashes: int) -> None:
        assert BITS_LOG2_MIN <= bits_log2 <= BITS_LOG2_MAX
        assert 1 <= hashes <= HASHES_MAX
        self.epoch = epoch
        self.seq = 0
        self.bits_log2 = bits_log2
        self.hashes = hashes
        self.saturated = 0
        """Counts that reached 255 and never fall again: their bits stay set, which costs false positives only."""
        self.refused = 0
        """Removals of keys that were not there; obeying them would have denied other keys."""
        # A bytearray, because single counts are what `add` and `remove` touch: a numpy item takes five times as long.
        self._counts = bytearray(1 << bits_log2)
        self._sealed = BloomFilter(bits_log2, hashes)
        self._flips: set[int] = set()

    def __repr__(self) -> str:
        return f"<SummaryWriter epoch {self.epoch} seq {self.seq}, 2^{self.bits_log2} bits, {len(self._flips)} flips>"

    @property
    def sealed(self) -> BloomFilter:
        """The last sealed version; look, do not change."""
        return self._sealed

    @property
    def flips_waiting(self) -> int:
        """Bits that differ from the last sealed version."""
        return len(self._flips)

    def add(self, key: bytes) -> None:
        """Say that a block is held. A key added twice is to be removed twice. About 2 µs."""
        counts = self._counts
        for position in key_positions(key, self.bits_log2, self.hashes):
            count = counts[position]
            if count == COUNT_MAX:
                continue
            counts[position] = count + 1
            if count == 0:
                self._turn(position)
            elif count + 1 == COUNT_MAX:
                self.saturated += 1

    def remove(self, key: bytes) -> None:
        """Say that a block is held once less. A key that cannot be there is refused and counted."""
        counts = self._counts
        positions = key_positions(key, self.bits_log2, self.hashes)
        if not all(counts[position] for position in positions):
            self.refused += 1
            return
        for position in positions:
            count = counts[position]
            if count == COUNT_MAX:  # how many more keys are behind it was lost when it got here
                continue
            counts[position] = count - 1
            if count == 1:
                self._turn(position)

    def seal(self) -> tuple[SummaryDelta, ...]:
        """Make the changes since the last call a new version; return the deltas that lead there, in order."""
        return tuple(deltas[self.bits_log2] for deltas in self.seal_for(()))

    def seal_for(
        self, sizes: Collection[int], flips_max: int = FLIPS_PER_DELTA_MAX
    ) -> tuple[Mapping[int, SummaryDelta], ...]:
        """Make the changes since the last call a new version, or several; return for each the delta that leads there.

        There is one for readers of the whole filter and one for each of `sizes`, powers of two below it, for readers of
        the filter folded to that; each has at most `flips_max` flips. Folding costs O(bits) for each size and delta.
        """
        flips = np.fromiter(self._flips, np.uint32, len(self._flips))
        self._flips.clear()
        flips.sort()
        folded = {size: self._sealed.fold_to(size) for size in sizes if size < self.bits_log2}
        versions = []
        for start in range(0, len(flips), flips_max):
            part = flips[start : start + flips_max]
            self.seq += 1
            self._sealed.flip(part)
            deltas = {self.bits_log2: delta_of(self.epoch, self.seq, self.bits_log2, part)}
            for size, before in folded.items():
                after = folded[size] = self._sealed.fold_to(size)
                deltas[size] = delta_of(self.epoch, self.seq, size, before.flips_to(after))
            versions.append(deltas)
        return tuple(versions)

    def rebuild(self, bits_log2: int, hashes: int, keys: Sequence[bytes]) -> None:
        """Make the filter of `keys`, which are all that are held, in another shape the next version.

        About 0.5 µs a key and a copy of the counts. What waited to be sealed is in it.
        """
        counts = np.zeros(1 << bits_log2, np.uint8)
        for start in range(0, len(keys), _REBUILD_KEYS):
            places = HashedKeys(keys[start : start + _REBUILD_KEYS]).positions(bits_log2, hashes)
            which, how_many = np.unique(places, return_counts=True)
            counts[which] = np.minimum(counts[which].astype(np.int64) + how_many, COUNT_MAX)
        self.bits_log2, self.hashes, self.seq = bits_log2, hashes, self.seq + 1
        self.saturated = int((counts == COUNT_MAX).sum())
        self._counts = bytearray(counts)
        self._flips.clear()
        self._sealed = BloomFilter(bits_log2, hashes, np.packbits(counts != 0, bitorder="little"))

    def snapshot(self, bits_log2: int = BITS_LOG2_MAX) -> tuple[SummaryPage, ...]:
        """Return the last sealed version in pages, folded to 2**bits_log2 bits if that is less than it has."""
        size = min(bits_log2, self.bits_log2)
        bits = self._sealed.fold_to(size).bits
        return tuple(
            page_of(self.epoch, self.seq, size, self.hashes, offset, bits[offset : offset + PAGE_BYTES_MAX])
            for offset in range(0, len(bits), PAGE_BYTES_MAX)
        )

    def _turn(self, position: int) -> None:
        """Note that a bit changed; changing it back before anyone was told is no change."""
        if position in self._flips:
            self._flips.remove(position)
        else:
            self._flips.add(position)
