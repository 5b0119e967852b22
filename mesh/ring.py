"""Who owns a key: an immutable table of slots made from a view of the membership.

A key's hash names one of 2^18 slots, and each slot has up to three owners: the first by weighted rendezvous among all
members (placement.py), with no member first owner of more than 1.25 times its due; the others further along the same
order, in other zones than those before them where there are enough, else on other hosts. Equal views give equal tables,
byte for byte, in every process: nothing depends on the order of a dict or a set.

Source: Karger et al., "Consistent hashing and random trees", STOC 1997 (the problem); placement.py names the rest.
Decision 20 has the alternatives with their figures.
"""

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from p2pkv.mesh.members import is_usable
from p2pkv.mesh.placement import SLOTS, SLOTS_LOG2, Groups, Members, Placement
from p2pkv.transport.wire import MemberRecord

OWNERS_MAX: Final = 3
"""Owners of a slot; a lookup may ask for fewer."""
BOUND: Final = 1.25
"""No member is first owner of more than this times its due, the part that its weight is of all. In Mirrokni et al. a
bound of 1 + e costs keys that move about 1 / e^2 times as much; at 100 equals none is near it."""
_SHIFT: Final = 64 - SLOTS_LOG2

Place: TypeAlias = tuple[str, str]
"""Zone and host of a member."""
Stake: TypeAlias = tuple[str, int, Place]
"""A member's id, offered bytes and place: all that the ring knows of it."""


class Ring:
    """One version of who owns what. A lookup reads a table; building it takes some 30 ms, for ten members as for a thousand."""

    def __init__(
        self,
        weights: Mapping[str, int],
        *,
        places: Mapping[str, Place] | None = None,
        bound: float | None = BOUND,
    ) -> None:
        """Place the members.

        Args:
            weights: offered bytes by member id. A member that offers nothing owns nothing, unless nobody offers
                anything: then all weigh the same, because a directory needs an owner even while tiers are empty.
            places: zone and host of members; an empty host is a host of its own. None, or a member not in it: unknown.
            bound: greatest share of a first owner in units of its due, above 1; None sets no bound.
        """
        assert bound is None or bound > 1
        if not any(weight > 0 for weight in weights.values()):
            weights = dict.fromkeys(weights, 1)
        self._members = tuple(sorted(member for member, weight in weights.items() if weight > 0))
        total = sum(weights[member] for member in self._members)
        self._due = {member: weights[member] / total for member in self._members}
        self.owners_max: Final = min(OWNERS_MAX, len(self._members))
        self._places = {member: (places or {}).get(member, ("", "")) for member in self._members}
        columns = self._owners([weights[member] for member in self._members], bound) if self._members else []
        self._table = array("H", np.stack(columns, axis=1).tobytes() if columns else b"")

    @classmethod
    def of(cls, records: Iterable[MemberRecord]) -> "Ring":
        """Return the ring of the usable members among `records`; this node's own record should be there too.

        One that offers nothing counts as offering a byte, so that it is known, and owns next to nothing.
        """
        return cls.of_view(view(records))

    @staticmethod
    def of_view(stakes: tuple[Stake, ...]) -> "Ring":
        """Return the ring of a view. The last few are kept, as many nodes of one simulation have equal views."""
        return _of(stakes)

    @property
    def members(self) -> tuple[str, ...]:
        """Members that may own something, sorted."""
        return self._members

    def owners(self, key: bytes, r: int = OWNERS_MAX) -> tuple[str, ...]:
        """Return the members that own `key`, at most `r` of them, the first one foremost."""
        at = (xxh3_64_intdigest(key) >> _SHIFT) * self.owners_max
        if r == OWNERS_MAX == self.owners_max:  # spelt out, because a loop takes longer than all the rest
            members, table = self._members, self._table
            return members[table[at]], members[table[at + 1]], members[table[at + 2]]
        return self._row(at, r)

    def slot(self, key: bytes) -> int:
        """Return the slot that `key` belongs to."""
        return xxh3_64_intdigest(key) >> _SHIFT

    def owners_of(self, slot: int, r: int = OWNERS_MAX) -> tuple[str, ...]:
        """Return the members that own the keys of `slot`, at most `r` of them."""
        return self._row(slot * self.owners_max, r)

    def place(self, member: str) -> Place:
        """Return zone and host of a member as this ring knows them."""
        return self._places[member]

    def due(self, member: str) -> float:
        """Return the part of all keys that a member should be first owner of, by its weight."""
        return self._due[member]

    def shares(self, r: int = 1) -> dict[str, float]:
        """Return the part of all keys that each member is among the first `r` owners of. For 1 they add up to 1."""
        if not self._members:
            return {}
        counts = np.bincount(self.rows()[:, :r].reshape(-1), minlength=len(self._members))
        return {member: float(count) / SLOTS for member, count in zip(self._members, counts, strict=True)}

    def changed_slots(self, before: "Ring", r: int = OWNERS_MAX) -> list[int]:
        """Return the slots whose first `r` owners, or their order, are others than in `before`.

        The list is not to be changed: nodes of one simulation that go over from one ring to another share it.
        """
        return _changed(before, self, r)

    def _changed_slots(self, before: "Ring", r: int) -> list[int]:
        if min(r, self.owners_max) != min(r, before.owners_max):
            return list(range(SLOTS))
        if not self._members:
            return []
        numbers = {member: number for number, member in enumerate(self._members)}
        nobody = len(numbers)
        renamed = np.array([numbers.get(member, nobody) for member in before.members], np.int32)
        differ = np.zeros(SLOTS, np.bool_)
        for mine, theirs in zip(self.rows().T[:r], before.rows().T[:r], strict=True):
            differ |= renamed[theirs] != mine
        slots: list[int] = np.flatnonzero(differ).tolist()
        return slots

    def fingerprint(self) -> bytes:
        """Return 16 bytes that are equal on two nodes exactly if they agree on every owner."""
        digest = hashlib.blake2b(digest_size=16, person=b"p2pkv.ring.2")
        for member in self._members:
            digest.update(len(member.encode()).to_bytes(2, "little") + member.encode())
        digest.update(self.rows().astype("<u2").tobytes())
        return digest.digest()

    def _row(self, at: int, r: int) -> tuple[str, ...]:
        members = self._members
        return tuple([members[number] for number in self._table[at : at + min(r, self.owners_max)]])

    def rows(self) -> npt.NDArray[np.uint16]:
        """Return the table: for each slot its owners as places in `members`."""
        return np.frombuffer(self._table, np.uint16).reshape(-1, max(1, self.owners_max))

    def _owners(self, weights: list[int], bound: float | None) -> list[Members]:
        placement = Placement(self._members, weights)
        columns = [placement.firsts(bound)]
        zones = _numbered([zone for zone, _ in self._places.values()])
        hosts = _numbered([host or f"\0{member}" for member, (_, host) in self._places.items()])
        each = np.arange(len(self._members), dtype=np.int32)
        while len(columns) < self.owners_max:
            apart = next(groups for groups in (zones, hosts, each) if groups.max() >= len(columns))
            columns.append(placement.further(columns, apart))
        return columns

    def __repr__(self) -> str:
        return f"<Ring members={len(self._members)} owners={self.owners_max}>"


def view(records: Iterable[MemberRecord]) -> tuple[Stake, ...]:
    """Return all that the ring takes from `records`: two lists with equal views have equal rings."""
    stakes = ((one.id, max(1, one.offered_bytes), (one.zone, one.host_id)) for one in records if is_usable(one))
    return tuple(sorted(stakes))


@lru_cache(maxsize=2)
def _changed(before: Ring, after: Ring, r: int) -> list[int]:
    return after._changed_slots(before, r)  # noqa: SLF001 - its own, kept here for those who ask the same


@lru_cache(maxsize=8)
def _of(stakes: tuple[Stake, ...]) -> Ring:
    return Ring({member: weight for member, weight, _ in stakes}, places={member: at for member, _, at in stakes})


def _numbered(names: list[str]) -> Groups:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int32)
