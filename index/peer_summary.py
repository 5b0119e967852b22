"""What one peer says it holds, read from its messages: snapshots assembled, deltas applied, gaps noticed.

At any time the filter is one the peer really had, at one version (epoch, seq), and never a mixture of two: a delta is
applied only to the version right before it, and a snapshot replaces the filter only when all its pages are there.
Deltas that arrive meanwhile go to both: to the old filter, which answers until then, and to a list that is applied to
the new one. Messages may be lost, repeated, reordered or nonsense; none of them ever raises.

A filter larger than `limit_log2` allows is folded while it is read. The peer's deltas do not fit it then, so the peer is
asked to fold on its side, and from its next snapshot on they do.
"""

from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from p2pkv.errors import MalformedMessage
from p2pkv.index.bloom import BITS_LOG2_MAX, BloomFilter
from p2pkv.index.codec import Bits, flips_of_untrusted, piece_of_untrusted
from p2pkv.transport.wire import PAGE_BYTES_MAX, SummaryDelta, SummaryPage

PENDING_BYTES_MAX: Final = 2**20
"""Bytes of deltas kept for one peer while its snapshot arrives; past them another snapshot is asked for."""
PENDING_DELTAS_MAX: Final = 1024

_Flips = npt.NDArray[np.uint32]


class Filters(Protocol):
    """Where what was read goes; `p2pkv.index.matcher.Matcher` is one."""

    def replace(self, peer: str, bloom: BloomFilter) -> None:
        """Take `bloom` for what `peer` holds."""

    def flip(self, peer: str, positions: _Flips) -> None:
        """Turn over bits of the filter of `peer`, which has one."""

    def fold(self, peer: str, bits_log2: int) -> None:
        """Fold the filter of `peer`, which has a larger one, to 2**bits_log2 bits."""

    def forget(self, peer: str) -> None:
        """Drop the filter of `peer`, if it has one."""


@dataclass(slots=True)
class ReadCounts:
    """What was noticed while reading; one object may count for many peers."""

    malformed: int = 0
    """Messages with values that cannot be; ignored as if they had not arrived."""
    repeated: int = 0
    """Messages, or pages, of a version already passed; ignored."""
    gaps: int = 0
    """Deltas that nothing held could take, because one before them is missing, or their filter has another size."""
    too_big: int = 0
    """Pages of a filter larger than this node holds for one peer; such a peer counts as one without a summary."""
    assembled: int = 0
    """Snapshots that replaced a filter."""
    folded: int = 0
    """Filters that were folded here, for want of memory."""


@dataclass(slots=True)
class _Assembly:
    """A snapshot on its way: pages in any order, and the deltas that follow it."""

    seq: int
    sent_log2: int
    """Size of the filter as it is sent; `bloom` may be folded."""
    bloom: BloomFilter
    missing: set[int]
    """Offsets of the pages still to come."""
    pending: list[_Flips] = field(default_factory=list)
    """Of the deltas seq + 1, seq + 2, ... that came before the last page."""
    pending_bytes: int = 0

    @property
    def reaches(self) -> int:
        """The version this will be once its pages are there."""
        return self.seq + len(self.pending)

    def put(self, offset: int, piece: Bits) -> None:
        """Take a piece of the filter as it is sent, into the one it is folded to."""
        bits = self.bloom.bits
        if len(piece) > len(bits):
            piece = np.bitwise_or.reduce(piece.reshape(-1, len(bits)), axis=0)
        at = offset % len(bits)
        bits[at : at + len(piece)] |= piece

    def fold(self, limit_log2: int) -> None:
        """Go on with a smaller filter."""
        if self.bloom.bits_log2 > limit_log2:
            self.bloom = self.bloom.fold_to(limit_log2)
            self.pending.clear()
            self.pending_bytes = 0

    def has_room(self, flips: _Flips) -> bool:
        """Whether the bounds on what waits allow `flips`."""
        return len(self.pending) < PENDING_DELTAS_MAX and self.pending_bytes + flips.nbytes <= PENDING_BYTES_MAX


class PeerSummary:
    """The receiver's side for one peer; the filter itself lives in `filters`."""

    def __init__(self, peer: str, filters: Filters, counts: ReadCounts, *, bits_log2_max: int = BITS_LOG2_MAX) -> None:
        self._peer = peer
        self._filters = filters
        self._counts = counts
        self._bits_log2_max = min(bits_log2_max, BITS_LOG2_MAX)
        self._limit_log2 = BITS_LOG2_MAX
        self._epoch = -1
        self._seq = -1  # version of the filter in `filters`; -1 without one
        self._seq_newest = -1  # highest of this epoch heard of from the peer
        self._seq_rumoured = -1  # and from others; the peer's next snapshot puts an end to it
        self._doubted = False
        self._bits_log2 = 0  # size of the filter held
        self._sent_log2 = 0  # size it had when it was sent
        self._size_log2 = 0  # largest that the peer has shown in this epoch, for when there is memory again
        self._assembly: _Assembly | None = None
        self._too_big = False

    def __repr__(self) -> str:
        coming = f", {len(self._assembly.missing)} pages to come" if self._assembly else ""
        return f"<PeerSummary {self._peer} epoch {self._epoch} seq {self._seq} of {self._seq_newest}{coming}>"

    @property
    def version(self) -> tuple[int, int]:
        """(epoch, seq) of the filter held; -1 where there is none."""
        return self._epoch, self._seq

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to ask for: no newer version is known of, or the filter is too big anyway."""
        return self._too_big or (
            self._seq >= 0
            and self._seq >= max(self._seq_newest, self._seq_rumoured)
            and self._assembly is None
            and not self._has_wrong_size
            and not self._doubted
        )

    @property
    def is_folded(self) -> bool:
        """Whether the filter held is smaller than the peer's own."""
        return self._seq >= 0 and self._bits_log2 < self._size_log2

    @property
    def size_log2(self) -> int:
        """The largest filter that the peer has shown, 0 for none."""
        return self._size_log2

    @property
    def held_bytes(self) -> int:
        """Bytes of the filter held and of the one being assembled."""
        held = (1 << self._bits_log2) // 8 if self._seq >= 0 else 0
        coming = self._assembly
        return held + (coming.bloom.bits.nbytes + coming.pending_bytes if coming else 0)

    def needs_memory(self, page: SummaryPage, limit_log2: int = BITS_LOG2_MAX) -> int:
        """Return the bytes that taking `page` would set aside: those of a filter, if it is the first of its version."""
        if page.epoch == self._epoch and self._is_old(page.seq):
            return 0
        if self._assembly is not None and (page.epoch, page.seq) == (self._epoch, self._assembly.seq):
            return 0
        if page.bits_log2 > self._bits_log2_max or page.offset >= (1 << page.bits_log2) // 8:  # will not be taken
            return 0
        return (1 << min(page.bits_log2, limit_log2)) // 8

    def limit(self, limit_log2: int) -> None:
        """Hold no filter of more than 2**limit_log2 bits from now on, the one held included."""
        self._limit_log2 = limit_log2
        if self._assembly is not None:
            self._assembly.fold(limit_log2)
        if self._seq >= 0 and self._bits_log2 > limit_log2:
            self._filters.fold(self._peer, limit_log2)
            self._bits_log2 = limit_log2
            self._counts.folded += 1

    def doubt(self) -> None:
        """Take that what is held was contradicted too often: the peer's next snapshot replaces it, even at this seq."""
        self._doubted = self._seq >= 0

    def hear_of(self, epoch: int, seq: int) -> None:
        """Take another's word that the peer is at `seq`; 32 bits of either number are told.

        Of another epoch membership will tell. What differs by half of all numbers or more is older.
        """
        ahead = (seq - self._seq) & 0xFFFFFFFF
        if self._seq >= 0 and epoch == self._epoch & 0xFFFFFFFF and 0 < ahead < 2**31:
            self._seq_rumoured = max(self._seq_rumoured, self._seq + ahead)

    def on_page(self, page: SummaryPage) -> bool:
        """Take a piece of a snapshot; return whether a snapshot must be asked for."""
        if page.epoch < self._epoch:
            self._counts.repeated += 1
            return self._must_ask()
        try:
            self._enter(page.epoch)
            self._take_page(page)
        except MalformedMessage:
            self._counts.malformed += 1
        return self._must_ask()

    def on_delta(self, delta: SummaryDelta) -> bool:
        """Take a change; return whether a snapshot must be asked for."""
        if delta.epoch < self._epoch:
            self._counts.repeated += 1
            return self._must_ask()
        try:
            flips = flips_of_untrusted(delta, peer=self._peer)
            self._enter(delta.epoch)
            self._take_delta(delta, flips)
        except MalformedMessage:
            self._counts.malformed += 1
        return self._must_ask()

    @property
    def _has_wrong_size(self) -> bool:
        """Whether the peer must send another size: deltas do not fit what is held, or there is room for more."""
        return self._bits_log2 != self._sent_log2 or self._bits_log2 < min(self._size_log2, self._limit_log2)

    def _enter(self, epoch: int) -> None:
        """Go over to a greater epoch: a new life of the peer's process, and what the old one held went with it."""
        if epoch > self._epoch:
            self._drop()
            self._epoch, self._seq_newest, self._seq_rumoured = epoch, -1, -1
            self._size_log2, self._too_big = 0, False

    def _drop(self) -> None:
        self._filters.forget(self._peer)
        self._seq, self._assembly, self._doubted = -1, None, False

    def _must_ask(self) -> bool:
        if self._too_big:
            return False
        reachable = max(self._seq, self._assembly.reaches if self._assembly else -1)
        return self._seq_newest > reachable or (self._seq >= 0 and self._assembly is None and self._has_wrong_size)

    def _is_old(self, seq: int) -> bool:
        """Whether a snapshot at `seq` would bring nothing."""
        passed = self._assembly is not None and seq < self._assembly.seq
        return passed or seq < self._seq or (seq == self._seq and not self._doubted and not self._has_wrong_size)

    def _take_page(self, page: SummaryPage) -> None:
        if page.bits_log2 > self._bits_log2_max:
            self._drop()
            self._too_big = True
            self._counts.too_big += 1
            return
        coming = self._assembly
        if self._is_old(page.seq):
            if page.seq == self._seq:  # the peer's own word that others were wrong
                self._seq_rumoured = -1
            self._counts.repeated += 1
            return
        piece = piece_of_untrusted(page, peer=self._peer)
        if coming is None or page.seq > coming.seq:
            missing = set(range(0, (1 << page.bits_log2) // 8, PAGE_BYTES_MAX))
            bloom = BloomFilter(min(page.bits_log2, self._limit_log2), page.hashes)
            coming = self._assembly = _Assembly(page.seq, page.bits_log2, bloom, missing)
        if (page.bits_log2, page.hashes) != (coming.sent_log2, coming.bloom.hashes):
            self._counts.malformed += 1
        elif page.offset not in coming.missing:
            self._counts.repeated += 1
        else:
            self._seq_newest = max(self._seq_newest, page.seq)
            self._size_log2 = max(self._size_log2, page.bits_log2)
            coming.missing.remove(page.offset)
            coming.put(page.offset, piece)
            if not coming.missing:
                self._finish(coming)

    def _finish(self, coming: _Assembly) -> None:
        """Put the assembled filter in place, brought up by the deltas that came meanwhile."""
        self._assembly = None
        if coming.reaches < self._seq:  # it did not fit what came meanwhile; a version never falls
            return
        for flips in coming.pending:
            coming.bloom.flip(flips)
        self._filters.replace(self._peer, coming.bloom)
        self._counts.assembled += 1
        self._counts.folded += coming.bloom.bits_log2 < coming.sent_log2
        self._seq, self._seq_rumoured, self._doubted = coming.reaches, -1, False
        self._bits_log2, self._sent_log2 = coming.bloom.bits_log2, coming.sent_log2
        if self._sent_log2 < self._limit_log2:  # this is as much as the peer has, whatever it had once
            self._size_log2 = self._sent_log2

    def _take_delta(self, delta: SummaryDelta, flips: _Flips) -> None:
        """Offer a delta to the filter held and to the one being assembled; each takes only what comes next."""
        coming, seq = self._assembly, delta.seq
        held_wants = self._seq >= 0 and seq == self._seq + 1 and delta.bits_log2 == self._bits_log2
        coming_wants = coming is not None and seq == coming.reaches + 1 and delta.bits_log2 == coming.bloom.bits_log2
        self._seq_newest = max(self._seq_newest, seq)
        if held_wants:
            self._filters.flip(self._peer, flips)
            self._seq = seq
        if coming is not None and coming_wants and coming.has_room(flips):
            coming.pending.append(flips)
            coming.pending_bytes += flips.nbytes
        elif not held_wants:
            reached = max(self._seq, coming.reaches if coming else -1)
            self._counts.repeated += seq <= reached
            self._counts.gaps += seq > reached
        if coming is not None and coming.reaches <= self._seq and not self._has_wrong_size and not self._doubted:
            self._assembly = None  # overtaken: late deltas made it superfluous
