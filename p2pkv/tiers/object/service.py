"""Whether the object store is asked at all, sans-IO. One that fails again and again would cost every prompt its deadline."""

from dataclasses import dataclass, field
from typing import Final

from p2pkv.breaker import Breaker

FAILURES_MAX: Final = 3
"""In a row: then the store rests."""
COOLDOWN_S: Final = 1.0
"""Of the first rest; each further one is twice as long, up to 32 s. Then one request at a time finds out how the store is."""


@dataclass(slots=True)
class Service:
    """Of one object store. Times are on the scale of `now`, seconds."""

    reason: str = ""
    """Of the newest failure, while it is not followed by a success."""
    rests: int = 0
    """How often it was taken out of service."""
    _failures: int = 0
    _breaker: Breaker = field(default_factory=Breaker)

    @property
    def in_service(self) -> bool:
        """Whether it counts as working: out of service ends with a request that went well."""
        return self._breaker.state(0.0) == "closed"

    def admits(self, now: float, patience_s: float) -> bool:
        """Say whether a request may go now; if so, it goes, and takes at most `patience_s`."""
        if not self._breaker.admits(now):
            return False
        self._breaker.on_asked(now, patience_s)
        return True

    def on_success(self) -> bool:
        """Take that the store answered, be it that it has nothing. Say whether it is in service again thereby."""
        again = not self.in_service
        self.reason, self._failures = "", 0
        self._breaker.on_success()
        return again

    def on_failure(self, now: float, reason: str) -> bool:
        """Take that it did not answer, or only that it cannot. Say whether that takes it out of service."""
        was_in_service = self.in_service
        self.reason = reason
        self._failures += 1
        if was_in_service and self._failures < FAILURES_MAX:
            return False
        self._breaker.on_failure(now, COOLDOWN_S)
        self.rests += was_in_service
        return was_in_service

    def on_inconclusive(self) -> None:
        """Take that a request ended and says nothing about the store."""
        self._breaker.on_inconclusive()
