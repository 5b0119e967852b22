"""Bytes per second that may be spent, and when there are some again."""

from math import inf


class Allowance:
    """A second's worth may be spent at once; the last message that was begun within it is let out whole."""

    def __init__(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._room = bytes_per_s
        self._at = -inf

    def open(self, now: float) -> bool:
        """Say whether anything may be sent now."""
        if now > self._at:
            if self._at > -inf:
                self._room = min(self._rate, self._room + (now - self._at) * self._rate)
            self._at = now
        return self._room > 0

    def spend(self, size: int) -> None:
        """Take that `size` bytes were sent."""
        self._room -= size

    def opens_at(self) -> float:
        """Return when something may be sent; not after the last `open` if that said yes."""
        return self._at if self._room > 0 else self._at + (1 - self._room) / self._rate
