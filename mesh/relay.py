"""Pings sent on behalf of others, whose answers are passed on.

Source: SWIM section 3.1, the helper's side of an indirect probe; Lifeguard section IV-A, the nack that tells a requester
that its helper is there even though the target does not answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

RELAYS_MAX: Final = 256
"""Relays open at a time. Beyond it requests are refused and counted; the requester has other helpers."""
NACK_SHARE: Final = 0.8
"""A helper gives up after this share of the time that the requester waits for it, so that its nack still arrives in time.
Source: Lifeguard section IV-A, "80 % of the probe timeout"."""


@dataclass(frozen=True, slots=True)
class Relay:
    """Whom to tell, under which number, that `target` has answered."""

    requester: str
    requester_address: str
    seq: int
    target: str
    until: float


def nack_after_s(*, period_s: float, timeout_s: float) -> float:
    """Return how long a helper waits before its nack: `0.8 min(timeout, period - timeout)`.

    A requester waits for helpers for what is left of its period after the timeout; with memberlist's LAN times both
    are 0.5 s, and a nack after the whole timeout would be late by the way it has to travel.
    """
    return NACK_SHARE * min(timeout_s, period_s - timeout_s)


class Relays:
    """The open relays by the number of the ping this node sent."""

    def __init__(self, *, keep_s: float, nack_s: float, sequence: Iterator[int], relays_max: int = RELAYS_MAX) -> None:
        self._keep_s = keep_s
        self._nack_s = nack_s
        self._nack_at: dict[int, float] = {}  # oldest first, like the relays
        self._sequence = sequence
        self._relays_max = relays_max
        self._open: dict[int, Relay] = {}  # oldest first, and all are kept equally long
        self.refused = 0
        """Requests refused because too many relays were open."""

    def open(
        self, *, requester: str, requester_address: str, seq: int, target: str, nack: bool, now: float
    ) -> int | None:
        """Return the number to ping `target` with, or None if the request is refused. `nack`: see `due`."""
        while self._open and next(iter(self._open.values())).until <= now:
            number = next(iter(self._open))
            del self._open[number]
            self._nack_at.pop(number, None)
        if len(self._open) >= self._relays_max:
            self.refused += 1
            return None
        number = next(self._sequence)
        self._open[number] = Relay(requester, requester_address, seq, target, now + self._keep_s)
        if nack:
            self._nack_at[number] = now + self._nack_s
        return number

    def close(self, number: int, target: str, now: float) -> Relay | None:
        """Return the relay that this answer of `target` belongs to, once; None if there is none or it came too late."""
        relay = self._open.get(number)
        if relay is None or relay.target != target or relay.until <= now:
            return None
        self._nack_at.pop(number, None)
        return self._open.pop(number)

    def next_deadline(self) -> float:
        """When `due` has something to return."""
        if not self._nack_at:  # asked after every message, and mostly so
            return float("inf")
        return next(iter(self._nack_at.values()))

    def due(self, now: float) -> tuple[Relay, ...]:
        """Return the relays to send a nack for, each once; an answer that comes later is passed on all the same."""
        due: list[Relay] = []
        while self.next_deadline() <= now:
            number = next(iter(self._nack_at))
            del self._nack_at[number]
            due.append(self._open[number])
        return tuple(due)

    def __len__(self) -> int:
        return len(self._open)
