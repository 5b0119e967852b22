"""What this node has learnt of its links to peers, sans-IO: how fast they are, and which peers to leave alone.

Bandwidth is an exponentially weighted mean of measured transfers, so that one slow transfer does not banish a peer. A
peer that failed is left alone for a cool-down that doubles with each further failure: a node that has just died
would otherwise cost every request a timeout until membership knows.
"""

from dataclasses import dataclass
from typing import Final

_NEW_SHARE: Final = 0.3
"""Weight of the newest measurement: about three transfers decide."""
_MEASURABLE_BYTES: Final = 1 << 20
"""Smaller transfers measure the round trip, not the bandwidth."""
_DOUBLINGS_MAX: Final = 5


@dataclass(slots=True)
class _Link:
    bandwidth_bytes_s: float
    round_trip_s: float = 0.001
    failures: int = 0
    cold_until: float = 0.0


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """What the planner may assume of one link."""

    bandwidth_bytes_s: float
    round_trip_s: float


class Links:
    """Measurements by peer id. Forgets peers that left; holds as many entries as there are members."""

    def __init__(self, *, assumed_bandwidth_bytes_s: float, cooldown_s: float) -> None:
        self._assumed = assumed_bandwidth_bytes_s
        self._cooldown_s = cooldown_s
        self._links: dict[str, _Link] = {}

    def estimate(self, peer: str) -> LinkEstimate:
        """Return the estimate for `peer`, the assumed one if nothing was measured."""
        link = self._links.get(peer)
        if link is None:
            return LinkEstimate(self._assumed, 0.001)
        return LinkEstimate(link.bandwidth_bytes_s, link.round_trip_s)

    def usable(self, peer: str, now: float) -> bool:
        """Say whether `peer` may be asked now."""
        link = self._links.get(peer)
        return link is None or now >= link.cold_until

    def on_answer(self, peer: str, seconds: float) -> None:
        """Note a round trip to `peer`."""
        link = self._link(peer)
        link.round_trip_s += _NEW_SHARE * (seconds - link.round_trip_s)

    def on_transfer(self, peer: str, moved_bytes: int, seconds: float) -> None:
        """Note a transfer from `peer` that went well."""
        link = self._link(peer)
        link.failures, link.cold_until = 0, 0.0
        if moved_bytes >= _MEASURABLE_BYTES and seconds > 0:
            link.bandwidth_bytes_s += _NEW_SHARE * (moved_bytes / seconds - link.bandwidth_bytes_s)

    def on_failure(self, peer: str, now: float) -> None:
        """Note that `peer` did not answer, broke off or sent wrong bytes."""
        link = self._link(peer)
        link.cold_until = now + self._cooldown_s * 2 ** min(link.failures, _DOUBLINGS_MAX)
        link.failures += 1

    def forget(self, peer: str) -> None:
        """Drop what is known of a peer that is no longer a member."""
        self._links.pop(peer, None)

    def cold(self, now: float) -> tuple[str, ...]:
        """Return the peers that are left alone now."""
        return tuple(sorted(peer for peer, link in self._links.items() if now < link.cold_until))

    def _link(self, peer: str) -> _Link:
        return self._links.setdefault(peer, _Link(self._assumed))
