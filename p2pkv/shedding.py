"""How much an owner lets peers have leased at a time, sans-IO: as much as it can send in good time, found by trying.

A lease that is given back within half of the time it was given for was served in time, and the window grows by its
bytes; one that took longer, or ran out, makes it shrink by twice as many. So one slow taker among fast ones changes
little, and when all are slow the window falls to what can be sent in half of the takers' patience. What does not fit is
refused at once: a refusal costs a round trip, a place in a queue that is too long costs the taker all of its time.
"""

from dataclasses import dataclass
from typing import Final

WINDOW_BYTES_MIN: Final = 8 * 2**20
_IN_TIME: Final = 0.5
_FALL: Final = 2
_NEW_SHARE: Final = 0.1
_RETRY_SHARE: Final = 0.25
"""Of the time that leases are held."""
_RETRY_MS: Final = (10, 2000)


@dataclass(slots=True)
class _Lent:
    size: int
    since: float
    lasts_s: float
    deadline: float


class Window:
    """Keeps no more than one small entry for each lease of a peer."""

    def __init__(self, *, bytes_max: int) -> None:
        """Begin with a quarter of `bytes_max`, which it never exceeds."""
        self._bytes_max = max(bytes_max, WINDOW_BYTES_MIN)
        self.bytes = max(WINDOW_BYTES_MIN, bytes_max // 4)
        """What may be leased at a time."""
        self.lent_bytes = 0
        """What is leased now."""
        self._lent: dict[int, _Lent] = {}
        self._held_s = 0.05
        self.refused = 0

    def admits(self, size: int) -> bool:
        """Say whether so many bytes more can be served in time; somebody always can who is alone."""
        fits = not self.lent_bytes or self.lent_bytes + size <= self.bytes
        self.refused += not fits
        return fits

    def retry_ms(self) -> int:
        """Return after how long to ask again: soon enough that places do not stay empty, as asking in vain costs little."""
        return round(min(max(self._held_s * 1000 * _RETRY_SHARE, _RETRY_MS[0]), _RETRY_MS[1]))

    def lend(self, lease: int, size: int, now: float, lasts_s: float) -> None:
        """Take that a lease was given."""
        self._lent[lease] = _Lent(size, now, lasts_s, now + lasts_s)
        self.lent_bytes += size

    def renew(self, lease: int, deadline: float) -> None:
        """Take that a lease ends later."""
        if lease in self._lent:
            self._lent[lease].deadline = deadline

    def give_back(self, lease: int, now: float) -> None:
        """Take that a lease was given back by the peer."""
        lent = self._end(lease)
        if lent is not None:
            held_s = now - lent.since
            self._held_s += _NEW_SHARE * (held_s - self._held_s)
            self._learn(lent.size, in_time=held_s <= _IN_TIME * lent.lasts_s)

    def drop(self, lease: int) -> None:
        """Take that a lease ended because its peer is gone; that says nothing."""
        self._end(lease)

    def expire(self, now: float) -> None:
        """Let time pass: leases that nobody gave back were not served in time."""
        for lease in [lease for lease, lent in self._lent.items() if lent.deadline <= now]:
            lent = self._end(lease)
            if lent is not None:
                self._learn(lent.size, in_time=False)

    def _end(self, lease: int) -> _Lent | None:
        lent = self._lent.pop(lease, None)
        if lent is not None:
            self.lent_bytes -= lent.size
        return lent

    def _learn(self, size: int, *, in_time: bool) -> None:
        changed = self.bytes + size if in_time else self.bytes - _FALL * size
        self.bytes = min(max(changed, WINDOW_BYTES_MIN), self._bytes_max)
