"""The half of the directory that tells: what this node holds, to the owners of its anchors.

Changes are gathered for a period and sent to each owner in one message. What an owner was told is remembered, so that
nothing is said twice, and a lease is renewed by a message that carries no record at all.

When the ring changes, the owner of before hands over what it has to the one of now. This node takes that for done, and
renews a little later: if the new owner's fingerprint differs, it asks for all again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from p2pkv.index.anchors import Anchors
from p2pkv.index.deadlines import Deadlines
from p2pkv.index.records import OwnerTable, Record, mark, record
from p2pkv.transport.wire import ANCHORS_PER_PUT_MAX, DirectoryPut

RENEWALS_PER_LEASE: Final = 3
"""Two may be lost."""
GRACE_PERIODS: Final = 3
"""How long a new owner has to be given what another had, before this node compares."""
BACKOFF_LOG2_MAX: Final = 6
_HOST_TIER: Final = 0


@dataclass(slots=True)
class _Owner:
    """What one owner was told, or is taken to have been given."""

    told: dict[bytes, Record] = field(default_factory=dict)
    fingerprint: int = 0
    pending: dict[bytes, None] = field(default_factory=dict)
    fresh: bool = False
    greeted: bool = False
    """Whether it was sent anything. A first message may come before it knows this node, and is renewed soon."""
    resent_at: float = -inf
    resent: int = 0
    """How often in a row everything was told again."""

    def tell(self, anchor: bytes, packed: Record) -> bool:
        """Note what the owner is told now, 0 for a withdrawal; say whether that is news to it."""
        before = self.told.get(anchor, 0)
        if before == packed:
            return False
        if before:
            self.fingerprint ^= mark(anchor, before)
        if packed:
            self.told[anchor] = packed
            self.fingerprint ^= mark(anchor, packed)
        else:
            del self.told[anchor]
        return True


class Registrar:
    """Tells owners what `anchors` says; memory is an entry per anchor and owner."""

    def __init__(self, anchors: Anchors, *, me: str, boot: int, owners: int, lease_s: float, period_s: float) -> None:
        self._anchors = anchors
        self._me = me
        self._boot = boot
        self._r = owners
        self._lease_s = lease_s
        self._period_s = period_s
        self._table: OwnerTable | None = None
        self._owners: dict[str, _Owner] = {}
        self._slots: dict[int, set[bytes]] = {}
        self._renewals = Deadlines()
        self._again = Deadlines()
        self.records_sent = 0
        self.renewals_sent = 0
        self.resends = 0

    def __len__(self) -> int:
        """Return how many records owners were told."""
        return sum(len(owner.told) for owner in self._owners.values())

    def has_news(self) -> bool:
        """Say whether `flush` would send anything now."""
        return self._table is not None and (
            bool(self._anchors.changed) or any(one.pending or one.fresh for one in self._owners.values())
        )

    def next_renewal(self) -> float:
        """Return when a lease is to be renewed, `inf` for never."""
        return self._renewals.earliest()

    def on_table(self, table: OwnerTable, changed: Sequence[int] | None, now: float) -> None:
        """Take a new ring. `changed` names the slots whose owners are others, None if any may be."""
        before, self._table = self._table, table
        if before is None:
            return
        members = set(table.members)
        for peer in [peer for peer in self._owners if peer not in members]:
            self.forget(peer)
        slots = list(self._slots) if changed is None or len(changed) > len(self._slots) else changed
        for slot in slots:
            if slot in self._slots:
                was, now_owned = before.owners_of(slot, self._r), table.owners_of(slot, self._r)
                self._move(slot, was, now_owned, next((owner for owner in was if owner in members), None), now)

    def forget(self, peer: str) -> None:
        """Drop what an owner was told that is no member any more; harmless for one that was told nothing."""
        self._owners.pop(peer, None)
        self._renewals.drop(peer)
        self._again.drop(peer)

    def tell_again(self, peer: str, now: float) -> None:
        """Have everything told again to an owner that lost it, or may have: after a pause that doubles each time.

        A link that breaks whenever something is sent over it would otherwise be sent everything once a period.
        """
        owner = self._owners.get(peer)
        if owner is None or owner.fresh or peer in self._again:
            return
        if now >= owner.resent_at + self._lease_s / RENEWALS_PER_LEASE:
            owner.resent = 0
        pause_s = self._period_s * 2.0 ** min(owner.resent, BACKOFF_LOG2_MAX)
        self._again.set(peer, max(now, owner.resent_at + pause_s))

    def next_again(self) -> float:
        """Return when an owner's pause is over, `inf` for never."""
        return self._again.earliest()

    def begin_again(self, now: float) -> None:
        """Have the owners whose pause is over told everything with the next `flush`."""
        for peer in self._again.take(now):
            owner = self._owners[peer]
            owner.fresh = True
            owner.resent_at = now
            owner.resent += 1
            self.resends += 1

    def flush(self, now: float) -> Iterator[tuple[str, DirectoryPut]]:
        """Yield what owners are to be told, message by message; who stops listening is told the rest next time."""
        if self._table is None:
            return
        self._sort_changes()
        for peer, owner in list(self._owners.items()):
            if owner.fresh:
                owner.pending.update(dict.fromkeys(owner.told))
                owner.told, owner.fingerprint = {}, 0
            while owner.pending or owner.fresh:
                yield from self._batch(peer, owner, now)

    def renew(self, now: float) -> Iterator[tuple[str, DirectoryPut]]:
        """Yield the renewals that are due."""
        due = self._renewals.take(now)
        for peer in due:  # who asks for these may stop before the last
            self._renewals.set(peer, now + self._period_s)
        for peer in due:
            owner = self._owners[peer]
            if owner.pending or owner.fresh:
                self._plan_renewal(peer, now)
            elif owner.told:
                self.renewals_sent += 1
                yield peer, self._message(peer, owner, b"", b"", now)
            else:
                self.forget(peer)

    # -- inside -------------------------------------------------------------------------------------------------

    def _sort_changes(self) -> None:
        """Note for each owner which of its anchors changed."""
        assert self._table is not None
        for anchor in self._anchors.changed:
            slot = self._table.slot(anchor)
            known = self._slots.get(slot)
            if self._anchors.blocks(anchor):
                self._slots.setdefault(slot, set()).add(anchor)
            elif known is not None:
                known.discard(anchor)
                if not known:
                    del self._slots[slot]
            for peer in self._table.owners_of(slot, self._r):
                self._owner(peer).pending[anchor] = None
        self._anchors.changed.clear()

    def _move(self, slot: int, was: Sequence[str], owners: Sequence[str], giver: str | None, now: float) -> None:
        """Have the records of a slot with its new owners, who are given them by `giver`, and with no others."""
        giving = self._owners.get(giver) if giver is not None else None
        for peer in owners:
            if peer in was:
                continue
            owner = self._owner(peer)
            for anchor in self._slots[slot]:
                given = giving.told.get(anchor, 0) if giving is not None else 0
                owner.tell(anchor, given)
                if given != self._record(anchor):
                    owner.pending[anchor] = None
            self._renewals.set(peer, min(self._renewals.at(peer), now + GRACE_PERIODS * self._period_s))
        for peer in was:
            lost = self._owners.get(peer)
            if peer not in owners and lost is not None:
                for anchor in self._slots[slot]:
                    lost.tell(anchor, 0)
                    lost.pending.pop(anchor, None)

    def _owner(self, peer: str) -> _Owner:
        return self._owners.setdefault(peer, _Owner())

    def _record(self, anchor: bytes) -> Record:
        blocks = self._anchors.blocks(anchor)
        return record(blocks, _HOST_TIER) if blocks else 0

    def _batch(self, peer: str, owner: _Owner, now: float) -> Iterator[tuple[str, DirectoryPut]]:
        """Yield the next message to an owner, if what is pending is news to it."""
        anchors, blocks = bytearray(), bytearray()
        while owner.pending and len(blocks) < ANCHORS_PER_PUT_MAX:
            anchor = next(iter(owner.pending))
            del owner.pending[anchor]
            packed = self._record(anchor)
            if owner.tell(anchor, packed):
                anchors += anchor
                blocks.append(packed)
        if blocks or owner.fresh:
            self.records_sent += len(blocks)
            yield peer, self._message(peer, owner, bytes(anchors), bytes(blocks), now)

    def _message(self, peer: str, owner: _Owner, anchors: bytes, blocks: bytes, now: float) -> DirectoryPut:
        self._plan_renewal(peer, now)
        if not owner.greeted:
            owner.greeted = True
            self._renewals.set(peer, now + GRACE_PERIODS * self._period_s)
        fresh, owner.fresh = owner.fresh, False
        return DirectoryPut(
            holder=self._me,
            boot=self._boot,
            lease_ms=int(self._lease_s * 1000),
            tier=_HOST_TIER,
            anchors=anchors,
            blocks=blocks,
            fresh=fresh,
            settled=not owner.pending,
            fingerprint=owner.fingerprint,
        )

    def _plan_renewal(self, peer: str, now: float) -> None:
        self._renewals.set(peer, now + self._lease_s / RENEWALS_PER_LEASE)
