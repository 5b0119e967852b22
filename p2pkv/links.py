"""What this node has learnt of its links to peers, sans-IO: how fast they are, how long to wait, whom to leave alone.

Bandwidth and round trip are exponentially weighted means of what was measured, so that one slow transfer does not banish
a peer. A link nothing was measured on yet is taken to be like the others of its nearness. Where several transfers from
one peer overlap, their bytes are measured together: each alone would make the link look slower than it is.

What was measured is forgotten with time. Or else a peer that was slow once, and is not asked for that, would never be
found to be fast again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from p2pkv.breaker import Breaker, BreakerState
from p2pkv.nearness import Nearness
from p2pkv.quantile import RecentQuantile

_NEW_SHARE: Final = 0.3
"""Weight of the newest measurement: about three transfers decide."""
_MEASURABLE_BYTES: Final = 1 << 20
"""Smaller transfers measure the round trip, not the bandwidth."""
_SPAN_S: Final = 4.0
"""Transfers that overlap without end are measured in spans of this length."""
_ROUND_TRIP_S: Final = (0.0002, 0.0005, 0.001, 0.005)
"""Assumed by nearness until something was measured."""
_FRESH_S: Final = 30.0
"""A measurement counts in full for this long, and then half as much after every further span of the same length."""
_LATE: Final = 0.95
"""What takes longer than this share of answers, or transfers, is late."""


class LinkEstimate(msgspec.Struct, frozen=True, gc=False):
    """What the planner may assume of one link."""

    bandwidth_bytes_s: float
    round_trip_s: float


@dataclass(slots=True)
class _Link:
    estimate: LinkEstimate
    measured_at: float = 0.0
    breaker: Breaker = field(default_factory=Breaker)
    busy_until: float = 0.0
    answers: RecentQuantile = field(default_factory=RecentQuantile)
    stretches: RecentQuantile = field(default_factory=RecentQuantile)
    """How many times longer transfers took than was expected of them."""
    moving: int = 0
    span_from: float = 0.0
    span_bytes: int = 0


class Links:
    """Measurements by peer id. Forgets peers that left; holds as many entries as there are members."""

    def __init__(
        self,
        *,
        assumed_bandwidth_bytes_s: float,
        cooldown_s: float,
        nearness: Callable[[str], Nearness] = lambda _: Nearness.ZONE,
    ) -> None:
        """Begin with nothing measured; `nearness` says how near a peer stands."""
        self._cooldown_s = cooldown_s
        self._nearness = nearness
        self._links: dict[str, _Link] = {}
        self.byte_s: Final[dict[str, float]] = {}
        """Seconds a byte takes from each peer that was measured, however long ago: for a first look at many peers."""
        self._assumed = [LinkEstimate(assumed_bandwidth_bytes_s, round_trip_s) for round_trip_s in _ROUND_TRIP_S]
        self._alike = [_Link(assumed) for assumed in self._assumed]
        """What was measured of all links of one nearness."""
        self._answers = RecentQuantile(window=256)
        """Of all links: for one of which too little is known."""

    # -- what is known ------------------------------------------------------------------------------------------

    def estimate(self, peer: str, now: float) -> LinkEstimate:
        """Return the estimate for `peer`, that of links alike if nothing was measured lately."""
        link = self._links.get(peer)
        if link is not None and now - link.measured_at <= _FRESH_S:
            return link.estimate
        near = self._nearness(peer)
        alike = _aged(self._alike[near], self._assumed[near], now)
        return alike if link is None else _aged(link, alike, now)

    def assumed_byte_s(self) -> float:
        """Return the seconds a byte takes over a link nothing was measured on, about."""
        return 1 / self._alike[Nearness.ZONE].estimate.bandwidth_bytes_s

    def usable(self, peer: str, now: float) -> bool:
        """Say whether `peer` may be asked now."""
        link = self._links.get(peer)
        return link is None or (now >= link.busy_until and link.breaker.admits(now))

    def state(self, peer: str, now: float) -> BreakerState:
        """Return the state of the breaker for `peer`."""
        link = self._links.get(peer)
        return "closed" if link is None else link.breaker.state(now)

    def busy_s(self, peer: str, now: float) -> float:
        """Return for how much longer `peer` asked to be left alone, 0 if it did not."""
        link = self._links.get(peer)
        return 0.0 if link is None else max(0.0, link.busy_until - now)

    def cold(self, now: float) -> tuple[str, ...]:
        """Return the peers that are left alone now."""
        return tuple(sorted(peer for peer in self._links if not self.usable(peer, now)))

    def late_answer_s(self, peer: str) -> float | None:
        """Return after how long an answer of `peer` is late; None if nothing is known of that."""
        link = self._links.get(peer)
        own = link.answers.at(_LATE) if link is not None else None
        return own if own is not None else self._answers.at(_LATE)

    def late_stretch(self, peer: str) -> float | None:
        """Return after how many times the time expected of it a transfer from `peer` is late; None if not known."""
        link = self._links.get(peer)
        return link.stretches.at(_LATE) if link is not None else None

    # -- what happened ------------------------------------------------------------------------------------------

    def on_asked(self, peer: str, now: float, *, patience_s: float) -> None:
        """Note that `peer` was asked for something and has `patience_s` to answer."""
        link = self._links.get(peer)
        if link is not None:
            link.breaker.on_asked(now, patience_s)

    def on_answer(self, peer: str, seconds: float, now: float) -> None:
        """Note a round trip to `peer`."""
        self._learn(peer, now, round_trip_s=seconds)
        self._links[peer].answers.add(seconds)
        self._answers.add(seconds)

    def on_busy(self, peer: str, until: float, now: float) -> None:
        """Note that `peer` asked to be left alone until then. That speaks for it: it is alive and knows its limits."""
        link = self._link(peer, now)
        link.busy_until = until
        link.breaker.on_inconclusive()

    def on_started(self, peer: str, now: float) -> None:
        """Note that a transfer from `peer` begins."""
        link = self._link(peer, now)
        if not link.moving:
            link.span_from, link.span_bytes = now, 0
        link.moving += 1

    def on_ended(self, peer: str, moved_bytes: int, now: float, *, well: bool) -> None:
        """Note that a transfer from `peer` is over, and how much it brought; one that did not go well measures nothing."""
        link = self._links.get(peer)
        if link is None or not link.moving:  # forgotten meanwhile
            return
        link.moving -= 1
        if not well:
            link.span_from, link.span_bytes = now, 0
            return
        link.span_bytes += moved_bytes
        passed_s = now - link.span_from
        if link.moving and passed_s < _SPAN_S:
            return
        if link.span_bytes >= _MEASURABLE_BYTES and passed_s > 0:
            self._learn(peer, now, bandwidth_bytes_s=link.span_bytes / passed_s)
        link.span_from, link.span_bytes = now, 0

    def on_success(self, peer: str, now: float, *, stretch: float | None = None) -> None:
        """Note that a transfer went well, and how many times the time expected of it it took."""
        link = self._link(peer, now)
        link.breaker.on_success()
        if stretch is not None:
            link.stretches.add(stretch)

    def on_failure(self, peer: str, now: float) -> None:
        """Note that `peer` did not answer, broke off or sent wrong bytes."""
        self._link(peer, now).breaker.on_failure(now, self._cooldown_s)

    def on_inconclusive(self, peer: str) -> None:
        """Note that a question ended and says nothing of the peer."""
        link = self._links.get(peer)
        if link is not None:
            link.breaker.on_inconclusive()

    def forget(self, peer: str) -> None:
        """Drop what is known of a peer that is no longer a member."""
        self._links.pop(peer, None)
        self.byte_s.pop(peer, None)

    def _learn(
        self, peer: str, now: float, *, bandwidth_bytes_s: float | None = None, round_trip_s: float | None = None
    ) -> None:
        """Move what is assumed of this link, and of those as near."""
        near = self._nearness(peer)
        before = self._alike[near]
        before.estimate = _aged(before, self._assumed[near], now)
        for link in (self._link(peer, now), before):
            old = link.estimate
            rate = old.bandwidth_bytes_s if bandwidth_bytes_s is None else bandwidth_bytes_s
            seconds = old.round_trip_s if round_trip_s is None else round_trip_s
            link.estimate = LinkEstimate(
                old.bandwidth_bytes_s + _NEW_SHARE * (rate - old.bandwidth_bytes_s),
                old.round_trip_s + _NEW_SHARE * (seconds - old.round_trip_s),
            )
            link.measured_at = now
        self.byte_s[peer] = 1 / self._links[peer].estimate.bandwidth_bytes_s

    def _link(self, peer: str, now: float) -> _Link:
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = _Link(self.estimate(peer, now), now)
        return link


def _aged(link: _Link, other: LinkEstimate, now: float) -> LinkEstimate:
    """Return what is left of a measurement, the rest taken from `other`."""
    age_s = now - link.measured_at - _FRESH_S
    if age_s <= 0:
        return link.estimate
    left = 0.5 ** (age_s / _FRESH_S)
    old = link.estimate
    return LinkEstimate(
        left * old.bandwidth_bytes_s + (1 - left) * other.bandwidth_bytes_s,
        left * old.round_trip_s + (1 - left) * other.round_trip_s,
    )
