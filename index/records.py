"""What this node keeps as an owner: who holds how much of which stretch, each holder's records under one lease.

A lease belongs to a holder and not to a record, so that renewing a thousand records takes one message. Both sides carry a
fingerprint, the exclusive or of a hash of each record: what was lost on the way is noticed with the next renewal.

Everything here is hearsay. A record that is wrong costs whoever believes it a question.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from xxhash import xxh3_64_intdigest

from p2pkv.index.anchors import STRETCH_BLOCKS
from p2pkv.index.deadlines import Deadlines
from p2pkv.transport.wire import ANCHOR_BYTES, HOLDERS_PER_ANCHOR_MAX, HOLDERS_PER_ANSWER_MAX, DirectoryPut

FORMER_S: Final = 30.0
"""How long records are still told of after another node became their owner: as long as views of the members may differ."""
_BLOCK_BITS: Final = 6
_BLOCKS: Final = (1 << _BLOCK_BITS) - 1
_FINGERPRINT: Final = 2**53 - 1

Record: TypeAlias = int
"""Blocks in the low six bits, the tier above them."""
Said: TypeAlias = dict[str, Record]
"""By holder, what it holds of one stretch."""
Handover: TypeAlias = tuple[str, str, bytes, Record]
"""(new owner, holder, anchor, record)."""


class OwnerTable(Protocol):
    """What the directory needs of a ring."""

    def slot(self, key: bytes) -> int:
        """Return the slot of `key`."""
        ...

    def owners_of(self, slot: int, r: int) -> tuple[str, ...]:
        """Return the first `r` owners of a slot."""
        ...

    @property
    def members(self) -> tuple[str, ...]:
        """All members, sorted."""
        ...


def record(blocks: int, tier: int) -> Record:
    """Return what is kept of a stretch."""
    return blocks | tier << _BLOCK_BITS


def blocks_of(packed: Record) -> int:
    """Return how many blocks from the stretch's start a record speaks of."""
    return packed & _BLOCKS


def tier_of(packed: Record) -> int:
    """Return the tier a record names."""
    return packed >> _BLOCK_BITS


def mark(anchor: bytes, packed: Record) -> int:
    """Return what one record adds to a fingerprint."""
    return xxh3_64_intdigest(anchor, packed) & _FINGERPRINT


@dataclass(slots=True)
class _Holder:
    boot: int
    anchors: set[bytes] = field(default_factory=set)
    fingerprint: int = 0


@dataclass(slots=True)
class RecordCounts:
    """What happened so far."""

    refused: int = 0
    """Records turned away at a bound."""
    expired: int = 0
    """Records that nobody renewed."""
    malformed: int = 0
    handed_over: int = 0


class Records:
    """The records of one owner, within `records_max`, of which one peer brings `per_peer_max`."""

    def __init__(self, *, lease_s: float, records_max: int, per_peer_max: int) -> None:
        self._lease_s = lease_s
        self._records_max = records_max
        self._per_peer_max = per_peer_max
        self._slots: dict[int, dict[bytes, Said]] = {}
        self._holders: dict[str, _Holder] = {}
        self._leases = Deadlines()
        self._former: dict[bytes, Said] = {}
        self._former_until = float("inf")
        self._given: dict[str, int] = {}
        """Records of others that a peer brought within the lease period that ends at `_given_until`."""
        self._given_until = 0.0
        self._table: OwnerTable | None = None
        self._count = 0
        self.counts = RecordCounts()

    def __len__(self) -> int:
        return self._count

    def fingerprint(self, holder: str) -> int:
        """Return the fingerprint of what is kept of `holder`."""
        known = self._holders.get(holder)
        return known.fingerprint if known is not None else 0

    def put(self, sender: str, put: DirectoryPut, now: float) -> None:
        """Take records from their holder or from one of their owners; nonsense is counted and dropped.

        A holder's own word counts for more: what others hand over never replaces it.
        """
        if len(put.anchors) != ANCHOR_BYTES * len(put.blocks) or max(put.blocks, default=0) > STRETCH_BLOCKS:
            self.counts.malformed += 1
            return
        own = sender == put.holder
        known = self._holders.get(put.holder)
        if known is not None and (put.boot > known.boot or (own and put.fresh and put.boot == known.boot)):
            self.forget(put.holder)
            known = None
        if known is None:
            if not own and not put.blocks:
                return
            known = self._holders[put.holder] = _Holder(put.boot)
        elif put.boot < known.boot:
            return
        lease_s = min(put.lease_ms / 1000, self._lease_s)
        if own or put.holder not in self._leases:
            self._leases.set(put.holder, now + lease_s)
        for i, blocks in enumerate(put.blocks):
            anchor = put.anchors[i * ANCHOR_BYTES : (i + 1) * ANCHOR_BYTES]
            if own or anchor not in known.anchors:
                self._set(known, put.holder, anchor, record(blocks, put.tier) if blocks else 0, sender, now)

    def forget(self, holder: str) -> None:
        """Drop all records of a holder; harmless if there are none."""
        known = self._holders.pop(holder, None)
        self._leases.drop(holder)
        if known is not None:
            for anchor in known.anchors:
                self._take_out(anchor, holder)
        self._given.pop(holder, None)

    def said(self, anchor: bytes) -> Said:
        """Return what is known of a stretch, by holder; what this node owned lately, too."""
        now_kept = self._slots.get(self._slot(anchor), {}).get(anchor)
        former = self._former.get(anchor)
        if former is None:
            return now_kept or {}
        return {**former, **(now_kept or {})}

    def answer(self, anchors: Sequence[bytes], asker: str) -> tuple[tuple[str, ...], bytes]:
        """Return holders, and claims as `DirectoryAnswer` has them.

        Where more hold a stretch than an answer names, the longest go first, and among equals an order that is each
        asker's own: the same for all stretches of a chain, so that one holder is named for all of it, and another for
        every asker, so that not all go to the same.
        """
        holders: dict[str, int] = {}
        claims = bytearray()
        taste: dict[str, int] = {}
        for place, anchor in enumerate(anchors):
            said = self.said(anchor)
            if len(said) > HOLDERS_PER_ANCHOR_MAX:
                for one in said:
                    if one not in taste:
                        taste[one] = xxh3_64_intdigest(f"{asker}\0{one}".encode())
                ranked = sorted(said, key=lambda one: (-blocks_of(said[one]), taste[one]))[:HOLDERS_PER_ANCHOR_MAX]
            else:
                ranked = sorted(said)
            for one in ranked:
                if one != asker and (one in holders or len(holders) < HOLDERS_PER_ANSWER_MAX):
                    number = holders.setdefault(one, len(holders))
                    claims += place.to_bytes(2, "little") + bytes([number, said[one]])
        return tuple(holders), bytes(claims)

    def on_table(self, me: str, table: OwnerTable, changed: Sequence[int] | None, r: int) -> Iterator[Handover]:
        """Take a new ring; yield what this node has to hand to new owners.

        `changed` names the slots whose owners are others now, None if any may be. Of the owners a slot had, the first
        that is still a member hands its records over.
        """
        before, self._table = self._table, table
        if before is None:
            self._sort_in()
            return
        members = set(table.members)
        for slot in list(self._slots) if changed is None or len(changed) > len(self._slots) else changed:
            kept = self._slots.get(slot)
            if kept is None:
                continue
            was, now_owned = before.owners_of(slot, r), table.owners_of(slot, r)
            giver = next((owner for owner in was if owner in members), None)
            gained = [owner for owner in now_owned if owner not in was] if giver == me else []
            for anchor, said in kept.items():
                for holder, packed in said.items():
                    for owner in gained:
                        if holder != owner:
                            self.counts.handed_over += 1
                            yield owner, holder, anchor, packed
            if me in was and me not in now_owned:
                self._give_up(slot)

    def next_deadline(self) -> float:
        """Return when `expire` has something to do, `inf` for never."""
        return min(self._leases.earliest(), self._former_until)

    def expire(self, now: float) -> None:
        """Drop the records that nobody renewed, and those that others own for long enough."""
        for holder in self._leases.take(now):
            known = self._holders.get(holder)
            if known is not None:
                self.counts.expired += len(known.anchors)
                self.forget(holder)
        if now >= self._former_until:
            self._former.clear()
            self._former_until = float("inf")

    def keep_former(self, now: float) -> None:
        """Set the time at which what was given up is forgotten, unless that is set for earlier records already."""
        if self._former and self._former_until == float("inf"):
            self._former_until = now + FORMER_S

    def lease_left_ms(self, holder: str, now: float) -> int:
        """Return how long the records of `holder` are good for."""
        return max(0, int((self._leases.at(holder) - now) * 1000))

    def boot(self, holder: str) -> int:
        """Return the boot that the records of `holder` are of."""
        return self._holders[holder].boot if holder in self._holders else 0

    # -- inside -------------------------------------------------------------------------------------------------

    def _slot(self, anchor: bytes) -> int:
        return self._table.slot(anchor) if self._table is not None else 0

    def _set(self, known: _Holder, holder: str, anchor: bytes, packed: Record, sender: str, now: float) -> None:
        if anchor in known.anchors:
            before = self._slots[self._slot(anchor)][anchor][holder]
            known.fingerprint ^= mark(anchor, before)
            if not packed:
                known.anchors.discard(anchor)
                self._take_out(anchor, holder)
                return
        elif not packed:
            return
        elif not self._has_room(known, holder, sender, now):
            self.counts.refused += 1
            return
        else:
            known.anchors.add(anchor)
            self._count += 1
        known.fingerprint ^= mark(anchor, packed)
        self._slots.setdefault(self._slot(anchor), {}).setdefault(anchor, {})[holder] = packed

    def _has_room(self, known: _Holder, holder: str, sender: str, now: float) -> bool:
        if self._count >= self._records_max or len(known.anchors) >= self._per_peer_max:
            return False
        if sender != holder:
            if now >= self._given_until:
                self._given.clear()
                self._given_until = now + self._lease_s
            if self._given.get(sender, 0) >= self._per_peer_max:
                return False
            self._given[sender] = self._given.get(sender, 0) + 1
        return True

    def _take_out(self, anchor: bytes, holder: str) -> None:
        slot = self._slot(anchor)
        kept = self._slots[slot]
        del kept[anchor][holder]
        self._count -= 1
        if not kept[anchor]:
            del kept[anchor]
        if not kept:
            del self._slots[slot]

    def _give_up(self, slot: int) -> None:
        """Move the records of a slot that others own to those that are told of for a while yet."""
        for anchor, said in self._slots.pop(slot).items():
            self._former[anchor] = said
            self._count -= len(said)
            for holder, packed in said.items():
                known = self._holders[holder]
                known.anchors.discard(anchor)
                known.fingerprint ^= mark(anchor, packed)

    def _sort_in(self) -> None:
        """Put what came before the first ring into its slots."""
        kept = self._slots.pop(0, {})
        for anchor, said in kept.items():
            self._slots.setdefault(self._slot(anchor), {})[anchor] = said
