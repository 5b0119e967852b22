"""The half of the exchange that reads: every usable member's summary, asked for where it is missing or behind.

A member normally sends its filter unasked. One that does not, or whose deltas show a gap, is asked; and asked ever
more rarely while that does not help. Because of that a lost message costs staleness and never agreement for good. A gap
that no later delta shows is found by comparing versions with others (versions.py).

If all filters together would take more memory than there is, none is refused: the largest are folded in half, those
held at once, and their owners are asked to fold them from then on. What is lost is exactness, not peers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from p2pkv.effects import SendStream
from p2pkv.index.bloom import BITS_LOG2_MAX, BITS_LOG2_MIN
from p2pkv.index.deadlines import Deadlines
from p2pkv.index.matcher import Matcher
from p2pkv.index.peer_summary import PeerSummary, ReadCounts
from p2pkv.index.publish import backoff_s
from p2pkv.transport.wire import SummaryDelta, SummaryPage, SummaryRequest

PATIENCE_PERIODS: Final = 2
"""How long a new member has to send its filter unasked, a snapshot may stop coming, and a version that others have may
still be on its way, in periods."""


@dataclass(slots=True)
class _Source:
    address: str
    summary: PeerSummary
    asked_at: float = -inf
    asks: int = 0
    """Requests since the filter was last complete."""


class Follower:
    """Reads the summaries of the members it is told of into `matcher`, within `filter_bytes_max` for all of them."""

    def __init__(self, matcher: Matcher, *, period_s: float, bits_log2_max: int, filter_bytes_max: int) -> None:
        self._matcher = matcher
        self._period_s = period_s
        self._bits_log2_max = bits_log2_max
        self._filter_bytes_max = filter_bytes_max
        self._limit_log2 = BITS_LOG2_MAX
        self._sources: dict[str, _Source] = {}
        self._held_bytes = 0  # of all of them; a sum over a thousand peers for every page would cost more than the page
        self._asks = Deadlines()  # of those whose filter is missing or behind
        self.changes = 0
        """Grows with whatever may change what `versions` returns."""
        self.counts = ReadCounts()
        self.requests_sent = 0
        self.over_budget = 0

    def welcome(self, peer: str, address: str, now: float) -> None:
        """Expect the filter of a member that is new."""
        self.changes += 1
        summary = PeerSummary(peer, self._matcher, self.counts, bits_log2_max=self._bits_log2_max)
        summary.limit(self._limit_log2)
        self._sources[peer] = _Source(address, summary)
        self._asks.set(peer, now + PATIENCE_PERIODS * self._period_s)

    def move(self, peer: str, address: str) -> None:
        """Ask a member at `address` from now on."""
        self._sources[peer].address = address

    def forget(self, peer: str, now: float) -> None:
        """Drop what a member said; harmless for one that is not there."""
        self.changes += 1
        self._matcher.forget(peer)
        source = self._sources.pop(peer, None)
        self._asks.drop(peer)
        if source is not None:
            self._held_bytes -= source.summary.held_bytes
            self._relax(now)

    def on_page(self, peer: str, page: SummaryPage, now: float) -> None:
        """Take a piece of a snapshot; where there is no memory for it, filters are folded until there is."""
        self.changes += 1
        source = self._sources[peer]
        needed = source.summary.needs_memory(page, self._limit_log2)
        if needed and self._held_bytes + needed > self._filter_bytes_max and not self._tighten(source, page, now):
            self.over_budget += 1
            return
        before = source.summary.held_bytes
        must_ask = source.summary.on_page(page)
        self._held_bytes += source.summary.held_bytes - before
        self._plan(peer, source, now, must_ask=must_ask)

    def on_delta(self, peer: str, delta: SummaryDelta, now: float) -> None:
        """Take a change."""
        self.changes += 1
        source = self._sources[peer]
        before = source.summary.held_bytes
        must_ask = source.summary.on_delta(delta)
        self._held_bytes += source.summary.held_bytes - before
        self._plan(peer, source, now, must_ask=must_ask)

    def hear_of(self, versions: Iterable[tuple[str, int, int]], now: float) -> None:
        """Take that others have these (peer, epoch, seq); whoever is behind then is asked if nothing comes by itself."""
        for peer, epoch, seq in versions:
            source = self._sources.get(peer)
            if source is None:
                continue
            was_settled = source.summary.is_settled
            source.summary.hear_of(epoch, seq)
            if was_settled and not source.summary.is_settled:
                self._plan(peer, source, now, must_ask=False)

    def doubt(self, peer: str, now: float) -> None:
        """Have a member's filter sent anew, because too much of what it claims is not there."""
        source = self._sources.get(peer)
        if source is not None:
            source.summary.doubt()
            self._plan(peer, source, now, must_ask=True)

    def versions(self) -> Mapping[str, tuple[int, int]]:
        """Return (epoch, seq) of each filter held."""
        held = {peer: source.summary.version for peer, source in self._sources.items()}
        return {peer: version for peer, version in held.items() if version[1] >= 0}

    def next_deadline(self) -> float:
        """Return when to call `on_time` next, `inf` for never."""
        return self._asks.earliest()

    def on_time(self, now: float) -> list[SendStream]:
        """Return the requests that are due."""
        return [self._ask(peer, now) for peer in self._asks.take(now)]

    def unsettled(self) -> int:
        """Return how many members' filters are missing, incomplete or known to be behind."""
        return sum(not source.summary.is_settled for source in self._sources.values())

    def folded(self) -> int:
        """Return how many members' filters are held smaller than they are."""
        return sum(source.summary.is_folded for source in self._sources.values())

    def _tighten(self, newcomer: _Source, page: SummaryPage, now: float) -> bool:
        """Fold the largest filters until one more fits; say whether it does."""
        largest = max(page.bits_log2, *(source.summary.size_log2 for source in self._sources.values()))
        for limit_log2 in range(min(self._limit_log2, largest) - 1, BITS_LOG2_MIN - 1, -1):
            for peer, source in self._sources.items():
                before = source.summary.held_bytes
                source.summary.limit(limit_log2)
                self._held_bytes += source.summary.held_bytes - before
                self._plan(peer, source, now, must_ask=source.summary.is_folded)
            self._limit_log2 = limit_log2
            needed = newcomer.summary.needs_memory(page, limit_log2)
            if self._held_bytes + needed <= self._filter_bytes_max:
                return True
        return False

    def _relax(self, now: float) -> None:
        """Allow filters twice as large once all of them together would take half of the memory; they are asked for."""
        if self._limit_log2 == BITS_LOG2_MAX:
            return
        sizes = [source.summary.size_log2 for source in self._sources.values()]
        limit_log2 = self._limit_log2 + 1
        if 2 * sum((1 << min(size, limit_log2)) // 8 for size in sizes) > self._filter_bytes_max:
            return
        self._limit_log2 = limit_log2 if max(sizes, default=0) > limit_log2 else BITS_LOG2_MAX
        for peer, source in self._sources.items():
            source.summary.limit(self._limit_log2)
            if not source.summary.is_settled:
                self._plan(peer, source, now, must_ask=True)

    def _ask(self, peer: str, now: float) -> SendStream:
        source = self._sources[peer]
        source.asked_at = now
        source.asks += 1
        self._asks.set(peer, now + backoff_s(self._period_s, source.asks))
        self.requests_sent += 1
        limit_log2 = self._limit_log2 if self._limit_log2 < BITS_LOG2_MAX else 0
        return SendStream(source.address, SummaryRequest(limit_log2))

    def _plan(self, peer: str, source: _Source, now: float, *, must_ask: bool) -> None:
        """Decide whether and when to ask, after something of the peer's summary came."""
        if source.summary.is_settled:
            source.asks = 0
            self._asks.drop(peer)
        elif must_ask:
            self._asks.set(peer, max(now, source.asked_at + backoff_s(self._period_s, source.asks)))
        else:  # pages are coming in; ask only when they stop
            self._asks.set(peer, now + PATIENCE_PERIODS * self._period_s)
