"""The half of the exchange that reads: every usable member's summary, asked for where it is missing or behind.

A member normally sends its filter unasked. One that does not, or whose deltas show a gap, is asked; and asked ever
more rarely while that does not help. Because of that a lost message costs staleness and never agreement for good.
"""

from dataclasses import dataclass
from math import inf
from typing import Final

from p2pkv.effects import SendStream
from p2pkv.index.deadlines import Deadlines
from p2pkv.index.matcher import Matcher
from p2pkv.index.peer_summary import PeerSummary, ReadCounts
from p2pkv.index.publish import backoff_s
from p2pkv.transport.wire import SummaryDelta, SummaryPage, SummaryRequest

PATIENCE_PERIODS: Final = 2
"""How long a new member has to send its filter unasked, and a snapshot may stop coming, in periods."""


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
        self._sources: dict[str, _Source] = {}
        self._held_bytes = 0  # of all of them; a sum over a thousand peers for every page would cost more than the page
        self._asks = Deadlines()  # of those whose filter is missing or behind
        self.counts = ReadCounts()
        self.requests_sent = 0
        self.over_budget = 0

    def welcome(self, peer: str, address: str, now: float) -> None:
        """Expect the filter of a member that is new."""
        summary = PeerSummary(peer, self._matcher, self.counts, bits_log2_max=self._bits_log2_max)
        self._sources[peer] = _Source(address, summary)
        self._asks.set(peer, now + PATIENCE_PERIODS * self._period_s)

    def move(self, peer: str, address: str) -> None:
        """Ask a member at `address` from now on."""
        self._sources[peer].address = address

    def forget(self, peer: str) -> None:
        """Drop what a member said; harmless for one that is not there."""
        self._matcher.forget(peer)
        source = self._sources.pop(peer, None)
        if source is not None:
            self._held_bytes -= source.summary.held_bytes
        self._asks.drop(peer)

    def on_page(self, peer: str, page: SummaryPage, now: float) -> None:
        """Take a piece of a snapshot, if there is memory for it."""
        source = self._sources[peer]
        if self._held_bytes + source.summary.needs_memory(page) > self._filter_bytes_max:
            self.over_budget += 1
            return
        before = source.summary.held_bytes
        must_ask = source.summary.on_page(page)
        self._held_bytes += source.summary.held_bytes - before
        self._plan(peer, source, now, must_ask=must_ask)

    def on_delta(self, peer: str, delta: SummaryDelta, now: float) -> None:
        """Take a change."""
        source = self._sources[peer]
        before = source.summary.held_bytes
        must_ask = source.summary.on_delta(delta)
        self._held_bytes += source.summary.held_bytes - before
        self._plan(peer, source, now, must_ask=must_ask)

    def next_deadline(self) -> float:
        """Return when to call `on_time` next, `inf` for never."""
        return self._asks.earliest()

    def on_time(self, now: float) -> list[SendStream]:
        """Return the requests that are due."""
        return [self._ask(peer, now) for peer in self._asks.take(now)]

    def unsettled(self) -> int:
        """Return how many members' filters are missing, incomplete or known to be behind."""
        return sum(not source.summary.is_settled for source in self._sources.values())

    def _ask(self, peer: str, now: float) -> SendStream:
        source = self._sources[peer]
        source.asked_at = now
        source.asks += 1
        self._asks.set(peer, now + backoff_s(self._period_s, source.asks))
        self.requests_sent += 1
        return SendStream(source.address, SummaryRequest())

    def _plan(self, peer: str, source: _Source, now: float, *, must_ask: bool) -> None:
        """Decide whether and when to ask, after something of the peer's summary came."""
        if source.summary.is_settled:
            source.asks = 0
            self._asks.drop(peer)
        elif must_ask:
            self._asks.set(peer, max(now, source.asked_at + backoff_s(self._period_s, source.asks)))
        else:  # pages are coming in; ask only when they stop
            self._asks.set(peer, now + PATIENCE_PERIODS * self._period_s)
