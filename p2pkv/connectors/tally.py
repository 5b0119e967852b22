"""What happened in a connector: counts, and a log that says each kind of thing once loudly and then quietly."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from p2pkv.errors import P2pkvError

T = TypeVar("T")


class Tally:
    """Counts by name; errors by class. Any thread may use it."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        """Names are those of the guide's table; errors count under their class."""
        self._taken: Counter[str] = Counter()

    def add(self, name: str, count: int = 1) -> None:
        """Count something."""
        with self._lock:
            self.counts[name] += count

    def failed(self, exc: P2pkvError) -> None:
        """Count an error that ended as a miss; the first of each class is a warning, those after it are not."""
        kind = type(exc).__name__
        self.add(kind)
        level = logging.WARNING if self.counts[kind] == 1 else logging.DEBUG
        hint = f" Hint: {exc.hint}." if exc.hint else ""
        self._logger.log(level, "p2pkv: %s (%s); going on without it.%s", exc, kind, hint)

    def or_miss(self, call: Callable[[], T], miss: T) -> T:
        """Return `call()`, or `miss` when p2pkv fails: a cache never fails a request."""
        try:
            return call()
        except P2pkvError as exc:
            self.failed(exc)
            return miss

    def take(self) -> dict[str, int]:
        """Return what was counted since the last call."""
        with self._lock:
            now = Counter(dict(self.counts))
            fresh = now - self._taken
            self._taken = now
        return dict(fresh)

    def log_total(self, who: str) -> None:
        """Log all counts."""
        if self.counts:
            total = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
            self._logger.info("p2pkv %s: %s", who, total)
