"""What one peer says it holds, read from its messages: snapshots assembled, deltas applied, gaps noticed.

At any time the filter is one the peer really had, at one version (epoch, seq), and never a mixture of two: a delta is
applied only to the version right before it, and a snapshot replaces the filter only when all its pages are there.
Deltas that arrive meanwhile go to both: to the old filter, which answers until then, and to a list that is applied to
the new one. Messages may be lost, repeated, reordered or nonsense; none of them ever raises.
"""

from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from p2pkv.index.bloom import BITS_LOG2_MAX, BITS_LOG2_MIN, HASHES_MAX, BloomFilter
from p2pkv.transport.wire import PAGE_BYTES_MAX, SummaryDelta, SummaryPage

FLIP_BYTES: Final = 4
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
    """Deltas that nothing held could take, because one before them is missing."""
    too_big: int = 0
    """Pages of a filter larger than this node holds for one peer; such a peer counts as one without a summary."""
    assembled: int = 0
    """Snapshots that replaced a filter."""


@dataclass(slots=True)
class _Assembly:
    """A snapshot on its way: pages in any order, and the deltas that follow it."""

    seq: int
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
        self._epoch = -1
        self._seq = -1  # version of the filter in `filters`; -1 without one
        self._seq_newest = -1  # highest of this epoch heard of
        self._bits_log2 = 0
        self._assembly: _Assembly | None = None
        self._too_big = False

    def __repr__(self) -> str:
        coming = f", {len(self._assembly.missing)} pages to come" if self._assembly else ""
        return f"<PeerSummary {self._peer} epoch {self._epoch} seq {self._seq} of {self._seq_newest}{coming}>"

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to ask for: no newer version is known of, or the filter is too big anyway."""
        return self._too_big or (self._seq >= 0 and self._seq == self._seq_newest and self._assembly is None)

    @property
    def held_bytes(self) -> int:
        """Bytes of the filter held and of the one being assembled."""
        held = (1 << self._bits_log2) // 8 if self._seq >= 0 else 0
        coming = self._assembly
        return held + (coming.bloom.bits.nbytes + coming.pending_bytes if coming else 0)

    def needs_memory(self, page: SummaryPage) -> int:
        """Return the bytes that taking `page` would set aside: those of a filter, if it is the first of its version."""
        if page.epoch == self._epoch and page.seq <= max(self._seq, self._assembly.seq if self._assembly else -1):
            return 0
        if page.bits_log2 > self._bits_log2_max or not _is_well_formed(page):  # will not be taken
            return 0
        return (1 << page.bits_log2) // 8

    def on_page(self, page: SummaryPage) -> bool:
        """Take a piece of a snapshot; return whether a snapshot must be asked for."""
        if not _is_well_formed(page):
            self._counts.malformed += 1
        elif page.epoch < self._epoch:
            self._counts.repeated += 1
        else:
            self._enter(page.epoch)
            self._take_page(page)
        return self._must_ask()

    def on_delta(self, delta: SummaryDelta) -> bool:
        """Take a change; return whether a snapshot must be asked for."""
        if len(delta.flips) % FLIP_BYTES:
            self._counts.malformed += 1
        elif delta.epoch < self._epoch:
            self._counts.repeated += 1
        else:
            self._enter(delta.epoch)
            self._take_delta(delta.seq, np.frombuffer(delta.flips, "<u4").astype(np.uint32, copy=False))
        return self._must_ask()

    def _enter(self, epoch: int) -> None:
        """Go over to a greater epoch: a new life of the peer's process, and what the old one held went with it."""
        if epoch > self._epoch:
            self._drop()
            self._epoch, self._seq_newest, self._too_big = epoch, -1, False

    def _drop(self) -> None:
        self._filters.forget(self._peer)
        self._seq, self._assembly = -1, None

    def _must_ask(self) -> bool:
        reachable = max(self._seq, self._assembly.reaches if self._assembly else -1)
        return self._seq_newest > reachable and not self._too_big

    def _take_page(self, page: SummaryPage) -> None:
        if page.bits_log2 > self._bits_log2_max:
            self._drop()
            self._too_big = True
            self._counts.too_big += 1
            return
        coming = self._assembly
        if page.seq <= self._seq or (coming is not None and page.seq < coming.seq):
            self._counts.repeated += 1
            return
        if coming is None or page.seq > coming.seq:
            missing = set(range(0, (1 << page.bits_log2) // 8, PAGE_BYTES_MAX))
            coming = self._assembly = _Assembly(page.seq, BloomFilter(page.bits_log2, page.hashes), missing)
        bloom = coming.bloom
        if (page.bits_log2, page.hashes) != (bloom.bits_log2, bloom.hashes):
            self._counts.malformed += 1
        elif page.offset not in coming.missing:
            self._counts.repeated += 1
        else:
            self._seq_newest = max(self._seq_newest, page.seq)
            coming.missing.remove(page.offset)
            bloom.bits[page.offset : page.offset + len(page.data)] = np.frombuffer(page.data, np.uint8)
            if not coming.missing:
                self._finish(coming)

    def _finish(self, coming: _Assembly) -> None:
        """Put the assembled filter in place, brought up by the deltas that came meanwhile."""
        self._assembly = None
        assert coming.reaches > self._seq
        for flips in coming.pending:
            coming.bloom.flip(flips)
        self._filters.replace(self._peer, coming.bloom)
        self._counts.assembled += 1
        self._seq, self._bits_log2 = coming.reaches, coming.bloom.bits_log2

    def _take_delta(self, seq: int, flips: _Flips) -> None:
        """Offer a delta to the filter held and to the one being assembled; each takes only what comes next."""
        coming = self._assembly
        held_wants = self._seq >= 0 and seq == self._seq + 1
        coming_wants = coming is not None and seq == coming.reaches + 1
        highest = int(flips.max(initial=0))
        if (held_wants and highest >> self._bits_log2) or (
            coming is not None and coming_wants and highest >> coming.bloom.bits_log2
        ):
            self._counts.malformed += 1
            return
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
        if coming is not None and coming.reaches <= self._seq:  # overtaken: late deltas made it superfluous
            self._assembly = None


def _is_well_formed(page: SummaryPage) -> bool:
    """Whether the values of `page` agree with one another; each by itself was bounded when it was decoded."""
    size = (1 << page.bits_log2) // 8
    return (
        page.bits_log2 >= BITS_LOG2_MIN
        and 1 <= page.hashes <= HASHES_MAX
        and page.offset % PAGE_BYTES_MAX == 0
        and page.offset < size
        and len(page.data) <= size - page.offset
    )
