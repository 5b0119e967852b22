"""When this node tells the others something new about itself: at once, and then not again for a while.

An update of a record is carried by every node in `mult * ceil(log10(n + 1))` packets, so what changes all the time must not
become one. Small changes of what is offered are kept to ourselves, because the ring moves keys for each.
"""

from dataclasses import dataclass
from itertools import zip_longest
from math import inf
from typing import Final

import msgspec

from p2pkv.transport.wire import MemberRecord

UPDATE_PERIOD_S: Final = 60.0
"""Shortest time between two updates of a node's own record that are not refutations. Should all of 128 nodes use it up,
each sends 3.6 kB/s instead of 0.2 (`tests/sim/test_record_bytes.py` measures it)."""
OFFER_SHARE: Final = 1 / 16
"""Changes of the offered bytes below this part of what was said are not told."""


@dataclass(frozen=True, slots=True)
class Described:
    """What of a record may change while a node runs."""

    offered_bytes: int
    tier_bytes: tuple[int, ...]
    weights: tuple[str, ...]

    @classmethod
    def of(cls, record: MemberRecord) -> "Described":
        """Return what `record` says."""
        return cls(record.offered_bytes, record.tier_bytes, record.weights)

    def on(self, record: MemberRecord) -> MemberRecord:
        """Return `record` with this said in it."""
        return msgspec.structs.replace(
            record, offered_bytes=self.offered_bytes, tier_bytes=self.tier_bytes, weights=self.weights
        )


class Announcements:
    """What is to be said of this node, and when it may be."""

    def __init__(self) -> None:
        self._wanted: Described | None = None
        self._next_at = -inf

    def want(self, said: Described, wanted: Described) -> None:
        """Take that `wanted` should be said instead of `said`; a later wish replaces an earlier one."""
        worth = wanted.weights != said.weights or _largest_change(said, wanted) > OFFER_SHARE * said.offered_bytes
        self._wanted = wanted if worth else None

    @property
    def pending(self) -> Described | None:
        """What is to be said and was not yet."""
        return self._wanted

    def next_deadline(self) -> float:
        """When `due` has something to say."""
        return self._next_at if self._wanted is not None else inf

    def due(self, now: float) -> Described | None:
        """Return what is to be said now, or None."""
        if self._wanted is None or now < self._next_at:
            return None
        wanted, self._wanted = self._wanted, None
        self._next_at = now + UPDATE_PERIOD_S
        return wanted


def _largest_change(one: Described, other: Described) -> int:
    """Return the largest change of what a single tier offers, or all together."""
    tiers = zip_longest(one.tier_bytes, other.tier_bytes, fillvalue=0)
    return max(abs(one.offered_bytes - other.offered_bytes), *(abs(a - b) for a, b in tiers), 0)
