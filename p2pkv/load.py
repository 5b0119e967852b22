"""How busy a node is with serving blocks, sans-IO: the bytes it sent of late, as a percentage of what its link can do.

An exponentially weighted mean over about five seconds: long enough that one prompt does not look like a crowd, and short
enough that a peer which looks again after a fetch sees the difference.
"""

from math import exp
from typing import Final

MEMORY_S: Final = 5.0


class LoadGauge:
    """Bytes go in, percent come out."""

    def __init__(self, *, capacity_bytes_s: float) -> None:
        self._capacity_bytes_s = capacity_bytes_s
        self._rate_bytes_s = 0.0
        self._sent = 0
        self._asked_at: float | None = None

    def sent(self, count: int) -> None:
        """Take that `count` bytes of blocks went out."""
        self._sent += count

    def percent(self, now: float) -> int:
        """Return the load, 0 to 100."""
        if self._asked_at is not None and now > self._asked_at:
            passed_s = now - self._asked_at
            keep = exp(-passed_s / MEMORY_S)
            self._rate_bytes_s = keep * self._rate_bytes_s + (1 - keep) * self._sent / passed_s
            self._sent = 0
        self._asked_at = now if self._asked_at is None else max(now, self._asked_at)
        return min(100, round(100 * self._rate_bytes_s / self._capacity_bytes_s))
