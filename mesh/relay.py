"""Pings sent on behalf of others, whose answers are passed on.

Source: SWIM section 3.1, the helper's side of an indirect probe.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

RELAYS_MAX: Final = 256
"""Relays open at a time. Beyond it requests are refused and counted; the requester has other helpers."""


@dataclass(frozen=True, slots=True)
class Relay:
    """Whom to tell, under which number, that `target` has answered."""

    requester: str
    requester_address: str
    seq: int
    target: str
    until: float


class Relays:
    """The open relays by the number of the ping this node sent."""

    def __init__(self, *, keep_s: float, sequence: Iterator[int], relays_max: int = RELAYS_MAX) -> None:
        self._keep_s = keep_s
        self._sequence = sequence
        self._relays_max = relays_max
        self._open: dict[int, Relay] = {}  # oldest first, and all are kept equally long
        self.refused = 0
        """Requests refused because too many relays were open."""

    def open(self, *, requester: str, requester_address: str, seq: int, target: str, now: float) -> int | None:
        """Return the number to ping `target` with, or None if the request is refused."""
        while self._open and next(iter(self._open.values())).until <= now:
            del self._open[next(iter(self._open))]
        if len(self._open) >= self._relays_max:
            self.refused += 1
            return None
        number = next(self._sequence)
        self._open[number] = Relay(requester, requester_address, seq, target, now + self._keep_s)
        return number

    def close(self, number: int, target: str, now: float) -> Relay | None:
        """Return the relay that this answer of `target` belongs to, once; None if there is none or it came too late."""
        relay = self._open.get(number)
        if relay is None or relay.target != target or relay.until <= now:
            return None
        return self._open.pop(number)

    def __len__(self) -> int:
        return len(self._open)
