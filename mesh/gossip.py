"""The updates waiting to ride on outgoing packets.

Fewest-sent first, so that fresh news overtakes old; each is let go after `mult * ceil(log10(n + 1))` packets, which is
when everybody has it with high probability. Source: SWIM section 4.1; the formula is memberlist's `retransmitLimit`.
"""

import math
from collections.abc import Container, Iterator, Mapping
from typing import Final

from p2pkv.mesh.members import MEMBERS_MAX, RECORD_BYTES_MAX, rank, record_bytes
from p2pkv.transport.wire import MemberRecord

UPDATES_PER_PACKET_MAX: Final = 64
"""The bound of `Updates` in `p2pkv.transport.wire`."""


def retransmit_limit(mult: int, members: int) -> int:
    """Return `mult * ceil(log10(n + 1))`, the packets of this node that carry one update."""
    return mult * math.ceil(math.log10(members + 1))


class GossipQueue:
    """At most one update per member, the newest; at most `MEMBERS_MAX` in all."""

    def __init__(self, *, mult: int, updates_max: int = MEMBERS_MAX) -> None:
        self._mult = mult
        self._updates_max = updates_max
        # One dictionary per number of times sent, newest last: taking the next packet's worth then costs what it
        # takes, not a sort of everything, which matters when a joiner has just learnt of a thousand members.
        self._by_sent: list[dict[str, tuple[MemberRecord, int]]] = [{}]
        self._sent: dict[str, int] = {}
        self.sent: Final[Mapping[str, int]] = self._sent
        """How often each waiting update was sent, by member; empty in a mesh at rest."""
        self.dropped = 0
        """Updates let go early because the queue was full."""

    def put(self, record: MemberRecord) -> None:
        """Queue `record` in place of an older one of its member. One older than the queued one is ignored.

        Two suspicions by different members are equally old: the later one takes the place, and is told anew.
        """
        sent = self._sent.get(record.id)
        if sent is not None:
            queued = self._by_sent[sent][record.id][0]
            if queued == record or rank(queued) > rank(record):
                return
            self._forget(record.id)
        elif len(self._sent) >= self._updates_max:
            self._drop_one()
        size = record_bytes(record)
        assert size <= RECORD_BYTES_MAX, f"record of {size} bytes was let in"
        self._by_sent[0][record.id] = (record, size)
        self._sent[record.id] = 0

    def take(
        self, *, members: int, bytes_max: int, count_max: int, skip: Container[str] = ()
    ) -> tuple[MemberRecord, ...]:
        """Return the updates for one packet and count them as sent once.

        Args:
            members: of the mesh, this node included; sets how often an update is sent.
            bytes_max: room in the packet. Filling stops at the first update that does not fit: it is the most urgent of
                those left, and the next packet has room for it.
            count_max: the most updates to return.
            skip: ids of members whose records are in the packet already.
        """
        if not self._sent:  # a mesh at rest
            return ()
        taken: list[tuple[str, MemberRecord]] = []
        room = bytes_max
        for record, size in self._urgent_first(skip):
            if size > room or len(taken) >= count_max:
                break
            room -= size
            taken.append((record.id, record))
        limit = retransmit_limit(self._mult, members)
        for member, _ in taken:
            self._count_sent(member, limit)
        return tuple(record for _, record in taken)

    def carried(self, record: MemberRecord, *, members: int) -> None:
        """Count `record` as sent once if it waits here: it rode on a packet for another reason.

        Without this a record whose own member goes on introducing itself would wait, and have packets sent, until
        everybody was met one by one.
        """
        sent = self._sent.get(record.id)
        if sent is not None and self._by_sent[sent][record.id][0] == record:
            self._count_sent(record.id, retransmit_limit(self._mult, members))

    def _urgent_first(self, skip: Container[str]) -> Iterator[tuple[MemberRecord, int]]:
        for waiting in self._by_sent:
            for member in reversed(waiting):
                if member not in skip:
                    yield waiting[member]

    def _count_sent(self, member: str, limit: int) -> None:
        sent = self._sent[member]
        entry = self._by_sent[sent][member]
        self._forget(member)
        if sent + 1 >= limit:
            return
        if sent + 1 == len(self._by_sent):
            self._by_sent.append({})
        self._by_sent[sent + 1][member] = entry
        self._sent[member] = sent + 1

    def _forget(self, member: str) -> None:
        del self._by_sent[self._sent.pop(member)][member]

    def _drop_one(self) -> None:
        """Let go of the update most others have heard already."""
        most_sent = next(waiting for waiting in reversed(self._by_sent) if waiting)
        self._forget(next(iter(most_sent)))
        self.dropped += 1

    def __contains__(self, member: str) -> bool:
        return member in self._sent

    def __len__(self) -> int:
        return len(self._sent)

    def __repr__(self) -> str:
        return f"<GossipQueue waiting={len(self)} by times sent={[len(waiting) for waiting in self._by_sent]}>"
