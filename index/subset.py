"""For whose summaries there is room, if not for everybody's: the nearest members first, then in an order of one's own.

The order among equally near members comes from a hash of both ids, so that it differs from node to node, and no member
is left out by all.
"""

from bisect import bisect_left, insort
from typing import Final, TypeAlias

from xxhash import xxh3_64_intdigest

from p2pkv.transport.wire import MemberRecord

_Rank: TypeAlias = tuple[bool, bool, int, str]


class Subset:
    """The `size` foremost of the members it is told of. Each call costs O(log members), and a move of a list."""

    def __init__(self, me: str, size: int, *, zone: str = "", host_id: str = "") -> None:
        """Begin with no members; `zone` and `host_id` are this node's own, empty if unknown."""
        self._me = me
        self.size: Final = size
        self._zone = zone
        self._host_id = host_id
        self._ranks: dict[str, _Rank] = {}
        self._order: list[_Rank] = []

    def __contains__(self, peer: str) -> bool:
        rank = self._ranks.get(peer)
        return rank is not None and (len(self._order) <= self.size or rank < self._order[self.size])

    def add(self, record: MemberRecord) -> str | None:
        """Take a usable member; return who has to make room for it, if anybody. One that is known keeps its place."""
        if record.id in self._ranks:
            return None
        rank = (
            not self._host_id or record.host_id != self._host_id,
            not self._zone or record.zone != self._zone,
            xxh3_64_intdigest(f"{self._me}\0{record.id}".encode()),
            record.id,
        )
        self._ranks[record.id] = rank
        insort(self._order, rank)
        if record.id in self and len(self._order) > self.size:
            return self._order[self.size][-1]
        return None

    def remove(self, peer: str) -> str | None:
        """Take that a member is gone; return who has room now, if it made any."""
        rank = self._ranks.get(peer)
        if rank is None:
            return None
        was_in = peer in self
        del self._ranks[peer]
        del self._order[bisect_left(self._order, rank)]
        if was_in and len(self._order) >= self.size > 0:
            return self._order[self.size - 1][-1]
        return None
