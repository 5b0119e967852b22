"""What this node says of itself, and its answer to what others say of it.

Source: SWIM section 4.2: only a member itself raises its incarnation. Noticing that somebody else uses the same id is
ours: a copied state directory does happen, and two processes refuting each other for ever look like a flapping network.
"""

from enum import Enum, auto
from typing import Final

import msgspec

from p2pkv.mesh.announcements import Described
from p2pkv.mesh.members import MemberState
from p2pkv.transport.wire import MemberRecord

INCARNATION_MAX: Final = 2**53
"""The bound of `Count` on the wire: beyond it others could not decode what we say."""


class Answer(Enum):
    """What to do about a record of our own id."""

    NOTHING = auto()
    REFUTE = auto()
    """Our record has changed; spread it."""
    DUPLICATE = auto()
    """Another process uses our id."""


class OwnRecord:
    """Owner of this node's record; the only place where its incarnation grows."""

    def __init__(self, record: MemberRecord) -> None:
        assert record.state == MemberState.ALIVE
        self.record = record
        self.left = False
        """Whether this node has said goodbye; asked with every message, so no comparison of states."""
        self.load = 0
        """Percent; said with every packet, and no part of the record."""

    def hear(self, said: MemberRecord) -> Answer:
        """Take what somebody says of us, and raise the incarnation above it if it is not what we are."""
        assert said.id == self.record.id
        own = self.record
        if said.boot < own.boot:
            return Answer.NOTHING  # an earlier life; our boot overrides it wherever it is still believed
        if said.boot > own.boot or said.address != own.address:
            return Answer.DUPLICATE
        if said.incarnation >= INCARNATION_MAX:
            return Answer.DUPLICATE  # nothing we could say would override it, and we did not say it
        if said.incarnation < own.incarnation or (said.incarnation == own.incarnation and said.state == own.state):
            return Answer.NOTHING
        self.record = msgspec.structs.replace(own, incarnation=said.incarnation + 1)
        return Answer.REFUTE

    def describe(self, described: Described) -> bool:
        """Say something else of this node; False if that is what it says already."""
        if described == Described.of(self.record):
            return False
        self.record = msgspec.structs.replace(described.on(self.record), incarnation=self._next_incarnation())
        return True

    def leave(self) -> None:
        """Say goodbye, in a new incarnation so that no refutation under way overrides it."""
        self.record = msgspec.structs.replace(
            self.record, incarnation=self._next_incarnation(), state=int(MemberState.LEFT)
        )
        self.left = True

    def _next_incarnation(self) -> int:
        return min(self.record.incarnation + 1, INCARNATION_MAX)
