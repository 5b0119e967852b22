"""What this node holds, as its peers will know it: a Bloom filter with versions, and the messages that carry it.

A summary has one writer, so no reconciliation is needed: a version is (epoch, seq), the epoch naming one life of the
writer's process. A *delta* lists the bits that flipped from seq - 1 to seq; a *snapshot* is the whole filter at one
version, in pages. What peers make of them is in peer_summary.py.

Bloom filters cannot forget. The writer counts how many keys hold each position and clears a bit when its count falls
to zero; the counts never travel. Four bits a count would do, eight are simpler: with m bits at a load of
k n / m <= ln 2, the chance that any count reaches 16 is 1.4e-15 m (Fan et al., "Summary Cache", section V-C).
"""

from typing import Final

import numpy as np

from p2pkv.index.bloom import BITS_LOG2_MAX, BITS_LOG2_MIN, HASHES_MAX, BloomFilter, key_positions
from p2pkv.transport.wire import FLIPS_PER_DELTA_MAX, PAGE_BYTES_MAX, SummaryDelta, SummaryPage

COUNT_MAX: Final = 255


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
        flips = np.fromiter(self._flips, np.uint32, len(self._flips))
        self._flips.clear()
        flips.sort()
        self._sealed.flip(flips)
        deltas = []
        for start in range(0, len(flips), FLIPS_PER_DELTA_MAX):
            self.seq += 1
            part = flips[start : start + FLIPS_PER_DELTA_MAX].astype("<u4").tobytes()
            deltas.append(SummaryDelta(epoch=self.epoch, seq=self.seq, flips=part))
        return tuple(deltas)

    def snapshot(self) -> tuple[SummaryPage, ...]:
        """Return the last sealed version in pages. Zeros at a page's end are left out: an empty filter is short."""
        bits = self._sealed.bits
        return tuple(
            SummaryPage(
                epoch=self.epoch,
                seq=self.seq,
                bits_log2=self.bits_log2,
                hashes=self.hashes,
                offset=offset,
                data=bits[offset : offset + PAGE_BYTES_MAX].tobytes().rstrip(b"\0"),
            )
            for offset in range(0, len(bits), PAGE_BYTES_MAX)
        )

    def _turn(self, position: int) -> None:
        """Note that a bit changed; changing it back before anyone was told is no change."""
        if position in self._flips:
            self._flips.remove(position)
        else:
            self._flips.add(position)
