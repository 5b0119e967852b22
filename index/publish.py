"""The half of the exchange that sends: our summary to every usable member, whole at first and then in deltas.

Deltas go out once per period on average. After a quiet time `BURST_FLUSHES` may go one right after another: a prompt's
blocks are brought from peers first and computed then, and it is the computed ones that nobody else has. A reader whose
link was lost may have missed anything, so it is sent the whole filter again, after a pause that doubles while the
link keeps failing.

Both have a budget (budget.py). A delta goes to one reader after another as there is room, and nothing is sealed until
all have it: what changes meanwhile is merged, and what changes back is never sent. Snapshots have a budget of their
own, or else a flood of changes would keep newcomers from their first hit.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final, TypeAlias

from p2pkv.effects import SendStream
from p2pkv.index.bloom import BITS_LOG2_MAX, BITS_LOG2_MIN
from p2pkv.index.budget import Budget
from p2pkv.index.deadlines import Deadlines
from p2pkv.index.summary import SummaryWriter
from p2pkv.transport.wire import FLIPS_PER_DELTA_MAX, SummaryDelta, SummaryPage, encode

GATHER_S_MAX: Final = 0.05
"""The blocks of one prompt are committed one after another. Without this pause the first would travel alone and the
rest wait for the next period."""
BURST_FLUSHES: Final = 6
"""Deltas that a node may send at once if it sent none for as many periods. With one, a recorded load of agents lost 4.1 %
of its hits to staleness; decision 19 has the figures."""
BACKOFF_LOG2_MAX: Final = 5
_KEPT_BYTES_MAX: Final = 64 * 1024
"""A filter of up to so many bytes stays packed between snapshots: a node that joins a mesh sends it to members who turn up one
by one. A larger one is packed anew, and takes no second room meanwhile."""
_DELTA_HEAD_BYTES: Final = 64
_FLIP_BYTES_MAX: Final = 5
"""Of the largest filter, where a flip is coded in 33 bits at worst."""

_Pages: TypeAlias = tuple[tuple[SummaryPage, int], ...]
"""Of a snapshot, with the bytes of each as a message."""


def backoff_s(period_s: float, failures: int) -> float:
    """Return how long to wait after `failures` in a row: the period, doubled by each but the first."""
    return period_s * float(2 ** min(max(0, failures - 1), BACKOFF_LOG2_MAX))


@dataclass(slots=True)
class _Reader:
    address: str
    size_log2: int = BITS_LOG2_MAX
    """It takes no larger filter."""
    sent_at: float = -inf
    losses: int = 0
    """Losses of the link since anything was heard over it."""
    seq: int = -1
    """The version it was sent last, in whole or by deltas; -1 while a snapshot is due."""
    declined: bool = False
    """It asked to be sent nothing."""


class Publisher:
    """Sends what `writer` holds to the readers it is told of; one entry for each is all it keeps.

    Bounds: the deltas of one version, one reference for each reader; the pages of one snapshot of each size that
    readers ask for, kept while some reader is being sent them.
    """

    def __init__(
        self,
        writer: SummaryWriter,
        *,
        period_s: float,
        budget_bytes_s: int,
        snapshot_bytes_s: int,
        refit: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin without readers. `refit` may give the writer another size, and says whether it did."""
        self._writer = writer
        self._period_s = period_s
        self._gather_s = min(GATHER_S_MAX, period_s / 10)
        self._refit = refit
        self._readers: dict[str, _Reader] = {}
        self._due = Deadlines()  # of snapshots, for those who take no deltas yet
        self._flush_at = inf
        self._paid_until = -inf  # the flushes so far, at one a period, last until then
        self._deltas: deque[tuple[str, SummaryDelta, int]] = deque()  # to whom, what, its bytes
        self._delta_budget = Budget(budget_bytes_s)
        self._flips_max = max(1, min(FLIPS_PER_DELTA_MAX, (budget_bytes_s - _DELTA_HEAD_BYTES) // _FLIP_BYTES_MAX))
        self._waiting: dict[str, None] = {}  # readers whose snapshot is next, first come first served
        self._sending: tuple[str, _Pages, int] | None = None  # to whom, which pages, how many have gone
        self._page_budget = Budget(snapshot_bytes_s)
        self._packed: dict[int, tuple[int, _Pages]] = {}  # by size: seq, snapshot
        self.deltas_sent = 0
        self.delta_bytes_sent = 0
        self.snapshots_sent = 0
        self.snapshot_bytes_sent = 0
        self.requests_ignored = 0
        self.deferred = 0

    def changed(self, now: float) -> None:
        """Take that the writer's keys are others now; a flush is planned if that flipped anything."""
        if self._flush_at == inf and self._writer.flips_waiting:
            self._flush_at = max(now + self._gather_s, self._paid_until - (BURST_FLUSHES - 1) * self._period_s)

    def welcome(self, peer: str, address: str, now: float) -> None:
        """Have the whole filter sent to a reader that is new, or new at `address`."""
        self.forget(peer)
        self._readers[peer] = _Reader(address)
        self._due.set(peer, now)

    def forget(self, peer: str) -> None:
        """Send no more to a reader; harmless for one that is not there."""
        self._stop_sending(peer)
        self._readers.pop(peer, None)
        self._due.drop(peer)

    def heard(self, peer: str) -> None:
        """Take that something came from a reader, so that its link works."""
        self._readers[peer].losses = 0

    def on_request(self, peer: str, bits_log2_max: int, now: float) -> None:
        """Have the whole filter sent, unless that was just done, and the request crossed it, or is about to be."""
        reader = self._readers[peer]
        reader.declined = False
        size_log2 = max(BITS_LOG2_MIN, min(bits_log2_max or BITS_LOG2_MAX, BITS_LOG2_MAX))
        same_size = min(size_log2, self._writer.bits_log2) == self._size_for(reader)
        reader.size_log2 = size_log2
        if peer in self._waiting or (same_size and reader.seq >= 0 and now < reader.sent_at + self._period_s):
            self.requests_ignored += 1  # who waits keeps its turn, and gets the size it asked for last
        else:
            self._restart(peer, now)

    def on_declined(self, peer: str) -> None:
        """Send nothing to a reader until it asks."""
        reader = self._readers[peer]
        reader.declined = True
        reader.seq = -1
        self._stop_sending(peer)
        self._due.drop(peer)

    def on_link_lost(self, address: str, now: float) -> None:
        """Take that what was sent to `address` may not have arrived."""
        for peer, reader in self._readers.items():
            if reader.address == address and not reader.declined:
                reader.losses += 1
                self._restart(peer, now + backoff_s(self._period_s, reader.losses))

    def next_deadline(self) -> float:
        """Return when to call `on_time` next, `inf` for never."""
        deltas_at = self._delta_budget.next_room_s() if self._deltas else self._flush_at
        pages_at = self._page_budget.next_room_s() if self._sending or self._waiting else inf
        return min(deltas_at, pages_at, self._due.earliest())

    def on_time(self, now: float) -> list[SendStream]:
        """Return what is due to be sent."""
        effects: list[SendStream] = []
        if self._deltas:
            self._send_deltas(now, effects)
        if now >= self._flush_at and not self._deltas:
            self._flush(now)
            self._send_deltas(now, effects)
        self._waiting.update(dict.fromkeys(self._due.take(now)))
        self._send_pages(now, effects)
        return effects

    # -- deltas -------------------------------------------------------------------------------------------------------

    def _flush(self, now: float) -> None:
        """Have what changed sent, or the whole filter where that is smaller or the filter is another one now."""
        self._flush_at = inf
        if self._refit():
            self._pay(now)
            self._restart_all(now)
            return
        versions = self._writer.seal_for({self._size_for(reader) for reader in self._readers.values()}, self._flips_max)
        if versions:
            self._pay(now)
        sized = [{size: (delta, len(encode(delta))) for size, delta in deltas.items()} for deltas in versions]
        if sum(of_size[self._writer.bits_log2][1] for of_size in sized) > self._writer.sealed.bits.nbytes:
            self._restart_all(now)
            return
        for peer, reader in self._readers.items():
            if reader.seq >= 0:
                self._deltas.extend((peer, *of_size[self._size_for(reader)]) for of_size in sized)

    def _pay(self, now: float) -> None:
        self._paid_until = max(now, self._paid_until) + self._period_s

    def _send_deltas(self, now: float, effects: list[SendStream]) -> None:
        """Send deltas as far as there is room; one for a reader that waits for a snapshot is dropped."""
        while self._deltas:
            peer, delta, size = self._deltas[0]
            reader = self._readers.get(peer)
            if reader is not None and 0 <= reader.seq < delta.seq and delta.bits_log2 == self._size_for(reader):
                if size > self._delta_budget.room(now):
                    self.deferred += 1
                    return
                self._delta_budget.take(now, size)
                reader.seq = delta.seq
                self.deltas_sent += 1
                self.delta_bytes_sent += size
                effects.append(SendStream(reader.address, delta))
            self._deltas.popleft()

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def _restart(self, peer: str, at: float) -> None:
        """Have a reader sent the whole filter from `at` on, and nothing before; one on its way stops."""
        self._stop_sending(peer)
        self._readers[peer].seq = -1
        self._due.set(peer, at)

    def _restart_all(self, now: float) -> None:
        for peer, reader in self._readers.items():
            if reader.seq >= 0:
                self._restart(peer, now)

    def _stop_sending(self, peer: str) -> None:
        self._waiting.pop(peer, None)
        if self._sending is not None and self._sending[0] == peer:
            self._sending = None

    def _send_pages(self, now: float, effects: list[SendStream]) -> None:
        """Send pages as far as there is room, one reader's after another's."""
        while self._sending is not None or self._waiting:
            if self._sending is None:
                self._begin_snapshot(next(iter(self._waiting)))
            assert self._sending is not None
            peer, pages, gone = self._sending
            page, size = pages[gone]
            if size > self._page_budget.room(now):
                return
            self._page_budget.take(now, size)
            self.snapshot_bytes_sent += size
            reader = self._readers[peer]
            reader.sent_at = now
            effects.append(SendStream(reader.address, page))
            self._sending = (peer, pages, gone + 1) if gone + 1 < len(pages) else None
        if self._packed and self._writer.sealed.bits.nbytes > _KEPT_BYTES_MAX:
            self._packed.clear()

    def _begin_snapshot(self, peer: str) -> None:
        """Take the filter as it is now for a reader; deltas that follow go to it from here on."""
        del self._waiting[peer]
        reader = self._readers[peer]
        reader.seq = self._writer.seq
        self._sending = peer, self._pages(self._size_for(reader)), 0
        self.snapshots_sent += 1

    def _pages(self, size_log2: int) -> _Pages:
        seq, pages = self._packed.get(size_log2, (-1, ()))
        if seq != self._writer.seq:
            pages = tuple((page, len(encode(page))) for page in self._writer.snapshot(size_log2))
            self._packed[size_log2] = self._writer.seq, pages
        return pages

    def _size_for(self, reader: _Reader) -> int:
        return min(reader.size_log2, self._writer.bits_log2)
