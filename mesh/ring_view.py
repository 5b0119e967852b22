"""The ring of the members of now, built when somebody wants it and not with every change of the membership."""

from collections.abc import Callable, Sequence
from typing import Final

from p2pkv.mesh.ring import Ring, Stake, view
from p2pkv.transport.wire import MemberRecord

GATHER_S: Final = 0.1
"""News of one event come together."""
REST_S: Final = 1.0
"""Shortest time between two rings: while hundreds join, some 30 ms of work per second at most."""


class RingView:
    """Remembers the last ring and whether the members are others by now."""

    def __init__(self, members: Callable[[], Sequence[MemberRecord]]) -> None:
        self._members = members
        self._ring: Ring | None = None
        self._view: tuple[Stake, ...] = ()
        self._due = 0.0
        self._built_at = -float("inf")

    @property
    def ring(self) -> Ring | None:
        """The last ring built, if any."""
        return self._ring

    def changed(self, now: float) -> None:
        """Take that a member changed somehow."""
        if self._due == float("inf"):
            self._due = max(now + GATHER_S, self._built_at + REST_S)

    def due(self) -> float:
        """Return when the ring should be built anew, `inf` if it is that of now."""
        return self._due

    def build(self, now: float) -> tuple[Ring, Sequence[int] | None] | None:
        """Build what is due. Returns None if that changes nothing, else the ring and the slots with other owners.

        Of the first ring all slots are others, for which None stands.
        """
        self._due = float("inf")
        found = view(self._members())
        if self._ring is not None and found == self._view:
            return None
        before, self._ring, self._view, self._built_at = self._ring, Ring.of_view(found), found, now
        return self._ring, None if before is None else self._ring.changed_slots(before)
