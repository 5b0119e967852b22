"""When to leave a peer alone, sans-IO: closed, open, half-open.

    closed --failure--> open --cool-down over--> half-open --one question goes well--> closed
                          ^                          |
                          └──────── it fails ────────┘   (and the cool-down doubles)

A node that has just died would cost every request a timeout until membership knows. A peer that comes back would get
everybody's requests at once if its cool-down simply ended: so one question at a time finds out how it is.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

BreakerState: TypeAlias = Literal["closed", "open", "half-open"]

_DOUBLINGS_MAX: Final = 5


@dataclass(slots=True)
class Breaker:
    """Of one peer. Times are on the scale of `now`, seconds."""

    failures: int = 0
    """In a row."""
    open_until: float = 0.0
    probed_until: float = 0.0
    """Until when the question that finds out may take; no other is asked meanwhile."""

    def state(self, now: float) -> BreakerState:
        """Return what it is now."""
        if not self.failures:
            return "closed"
        return "open" if now < self.open_until else "half-open"

    def admits(self, now: float) -> bool:
        """Say whether a question may be asked now."""
        return not self.failures or now >= max(self.open_until, self.probed_until)

    def on_asked(self, now: float, patience_s: float) -> None:
        """Take that a question is asked; if half-open, it is the one for `patience_s`, or until it is over."""
        if self.failures:
            self.probed_until = now + patience_s

    def on_success(self) -> None:
        """Take that the peer did what was asked: all is forgiven."""
        self.failures, self.open_until, self.probed_until = 0, 0.0, 0.0

    def on_failure(self, now: float, cooldown_s: float) -> None:
        """Take that it did not; all that fails while it is open fails of one cause and counts once."""
        if self.state(now) == "open":
            return
        self.open_until = now + cooldown_s * 2 ** min(self.failures, _DOUBLINGS_MAX)
        self.failures += 1
        self.probed_until = 0.0

    def on_inconclusive(self) -> None:
        """Take that a question ended and says nothing about the peer: the next one may find out."""
        self.probed_until = 0.0
