"""What this node believes of every other member, and how two beliefs become one.

Records of one member are totally ordered by `rank`, and merging keeps the greater: a join-semilattice, so nodes that have
seen the same records in any order, any number of times, believe the same (ALGORITHM.md, "Merge").

Source: SWIM section 4.2 orders by (incarnation, state). `boot` stands in front of it so that a restarted process needs no
memory of the incarnations of its earlier life. As in memberlist, and unlike in SWIM, a higher incarnation also overrides
"dead": a member that was declared dead wrongly can come back by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

import msgspec

from p2pkv.transport.wire import MemberRecord

MEMBERS_MAX: Final = 8192
"""Members listed, and reaped members remembered. Eight times the mesh we simulate; at 512 bytes each, 4 MiB."""
RECORD_BYTES_MAX: Final = 512
"""Larger records are refused. With it a packet's own fields and one update always fit a datagram (`gossip`)."""

Rank: TypeAlias = tuple[
    int, int, int, str, str, str, str, int, str, tuple[str, ...], tuple[int, ...], int, int, tuple[str, ...]
]


class MemberState(IntEnum):
    """States in the order in which one overrides another of the same incarnation."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


_SUSPECT: Final = int(MemberState.SUSPECT)  # comparing with the member of an enum takes five times as long


def is_usable(record: MemberRecord) -> bool:
    """Whether to still count on the member; a suspect is innocent until its deadline."""
    return record.state <= _SUSPECT


def rank(record: MemberRecord) -> Rank:
    """Return the place of `record` in the total order of records of its member.

    (boot, incarnation, state) decide; the rest breaks ties that only two processes of one id can cause, so that even
    then everybody ends up with the same record. Who suspects is no part of it: that is said of a suspicion, not of the
    member, and is taken off before a record enters a table (`accusers.split`).
    """
    return (
        record.boot,
        record.incarnation,
        record.state,
        record.address,
        record.name,
        record.host_id,
        record.zone,
        record.offered_bytes,
        record.rack,
        record.also_at,
        record.tier_bytes,
        record.protocol_min,
        record.protocol_max,
        record.weights,
    )


def merge(one: MemberRecord, other: MemberRecord) -> MemberRecord:
    """Return the greater of two records of one member. Commutative, associative, idempotent."""
    assert one.id == other.id
    return max(one, other, key=rank)


_encoder = msgspec.msgpack.Encoder()


def record_bytes(record: MemberRecord) -> int:
    """Return the bytes `record` takes inside a message."""
    return len(_encoder.encode(record))


@dataclass(frozen=True, slots=True)
class Change:
    """A record that entered the table, and the one it replaced, if any."""

    after: MemberRecord
    before: MemberRecord | None


class MemberTable:
    """The greatest record seen of each member other than this node.

    Members dead or departed for `reap_s` are dropped from the list, but their records are remembered for as long again:
    others reap a little later, and would otherwise bring them back for ever.
    """

    def __init__(self, *, reap_s: float, members_max: int = MEMBERS_MAX) -> None:
        self._reap_s = reap_s
        self._members_max = members_max
        self._records: dict[str, MemberRecord] = {}
        self.get: Final[Callable[[str], MemberRecord | None]] = self._records.get
        """Returns what is believed of a member, or None if it is not listed. No method, for it is called most of all."""
        # Both are in the order of their times, because an entry is removed before it is added again.
        self._gone_at: dict[str, float] = {}
        self._reaped: dict[str, tuple[MemberRecord, float]] = {}
        self._usable_records: dict[str, MemberRecord] = {}
        self._usable: tuple[MemberRecord, ...] | None = ()
        self.refused = 0
        """Records turned away because the table was full of usable members."""
        self.changes = 0
        """Records that entered so far."""

    def remembered(self, member: str) -> MemberRecord | None:
        """Return what is believed of `member`, listed or reaped; a record that does not override it is not taken."""
        known = self._records.get(member)
        if known is None and member in self._reaped:
            return self._reaped[member][0]
        return known

    def records(self) -> tuple[MemberRecord, ...]:
        """Return all records, the gone included, oldest acquaintance first."""
        return tuple(self._records.values())

    def usable(self) -> tuple[MemberRecord, ...]:
        """Return the records of alive and suspect members. O(1) unless something changed since the last call."""
        if self._usable is None:
            self._usable = tuple(self._usable_records.values())
        return self._usable

    def is_alone(self) -> bool:
        """Whether there is no usable member. O(1) at all times."""
        return not self._usable_records

    def mesh_size(self) -> int:
        """Return the n of all formulas: the usable members and this node. O(1) at all times."""
        return len(self._usable_records) + 1

    def dead(self) -> tuple[MemberRecord, ...]:
        """Return the members that died, did not leave, and may be only cut off, longest gone first.

        Earlier lives of those that were restarted are left out: a usable member has their address.
        """
        gone = (self._records[member] for member in self._gone_at)
        taken = {record.address for record in self.usable()}
        return tuple(record for record in gone if record.state == MemberState.DEAD and record.address not in taken)

    def take(self, record: MemberRecord, now: float) -> Change | None:
        """Merge `record` in; None if nothing changed, because as much or more was known."""
        assert not record.suspected_by
        assert not record.also_suspected_by
        known = self._records.get(record.id)
        if known is None:
            reaped = self._reaped.get(record.id)
            if reaped is not None and rank(record) <= rank(reaped[0]):
                return None
            if len(self._records) >= self._members_max and not self._make_room(now):
                self.refused += 1
                return None
            self._reaped.pop(record.id, None)
        elif record == known or merge(known, record) is known:
            return None
        self._records[record.id] = record
        self.changes += 1
        self._usable = None
        self._gone_at.pop(record.id, None)
        if is_usable(record):
            self._usable_records[record.id] = record
        else:
            self._usable_records.pop(record.id, None)
            self._gone_at[record.id] = now
        return Change(after=record, before=known)

    def next_deadline(self) -> float:
        """When `reap` has something to do."""
        if not self._gone_at and not self._reaped:  # asked after every message, and mostly so
            return float("inf")
        gone_at = next(iter(self._gone_at.values()), float("inf"))
        reaped_at = next((at for _, at in self._reaped.values()), float("inf"))
        return min(gone_at, reaped_at) + self._reap_s

    def reap(self, now: float) -> None:
        """Drop members gone for `reap_s`, and forget those dropped for as long."""
        while self._gone_at and next(iter(self._gone_at.values())) + self._reap_s <= now:
            self._reap_longest_gone(now)
        while self._reaped and next(iter(self._reaped.values()))[1] + self._reap_s <= now:
            del self._reaped[next(iter(self._reaped))]

    def _make_room(self, now: float) -> bool:
        if not self._gone_at:
            return False
        self._reap_longest_gone(now)
        return True

    def _reap_longest_gone(self, now: float) -> None:
        member = next(iter(self._gone_at))
        del self._gone_at[member]
        if len(self._reaped) >= self._members_max:
            del self._reaped[next(iter(self._reaped))]
        self._reaped[member] = (self._records.pop(member), now)
