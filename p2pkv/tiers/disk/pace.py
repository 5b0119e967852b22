"""A bound on how fast a disk is read for nobody, sans-IO."""


class Pace:
    """So many bytes a second, in pieces: a piece may come when those before it have had their time."""

    def __init__(self, rate_bytes_s: float) -> None:
        self._rate_bytes_s = rate_bytes_s
        self._next = 0.0

    def wait_s(self, size: int, now: float) -> float:
        """Return how long to wait before `size` bytes are read; time that passed unused is not made up for."""
        begin = max(self._next, now)
        self._next = begin + size / self._rate_bytes_s
        return begin - now
