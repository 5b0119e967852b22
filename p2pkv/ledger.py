"""Which block is where, who pins it and until when, sans-IO. The bytes themselves are a tier's.

A block's life: `reserve` (a slot, perhaps after evictions) -> the shell writes and verifies -> `commit` or `abort`.
Only committed blocks are found. One that is *passing* goes when its last pin goes. A pinned block is never evicted. A lease is pins with a deadline and a holder: a peer,
or an engine's connection; when the holder goes away or the deadline passes, the pins go too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeAlias

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.errors import PinLimit, TierFull
from p2pkv.eviction import Policy, make_policy
from p2pkv.slots import Slot, Slots, blocks_max

_PASSING_SHARE: Final = 4
"""No more than one part in so many is kept free for passing blocks."""

Place: TypeAlias = tuple[int | None, BlockKey | None]
"""Depth of a block in its chain, and the block before it; None where not known."""


@dataclass(frozen=True, slots=True)
class Held:
    """A committed block and its place."""

    info: BlockInfo
    slot: Slot


@dataclass(frozen=True, slots=True)
class Reservation:
    """A place for a block that is on its way. `evicted` names what had to go for it."""

    info: BlockInfo
    slot: Slot
    evicted: tuple[BlockKey, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """Pins on `blocks` for `holder` until `deadline` (on the scale of `now`, seconds)."""

    id: int
    holder: str
    blocks: tuple[Held, ...]
    deadline: float


@dataclass(frozen=True, slots=True)
class LedgerStatistics:
    """Figures of one tier."""

    capacity_bytes: int
    used_bytes: int
    """Bytes of slots in use, reservations included."""
    blocks: int
    pinned_blocks: int
    leases: int
    evictions: int
    leases_expired: int
    quarantined: int = 0
    """Places that may still be written to by a peer whose transfer was broken off."""
    passing: int = 0
    """Blocks that go with their last pin."""


class Ledger:
    """The books of one tier."""

    def __init__(
        self,
        *,
        capacity_bytes: int,
        chunk_bytes: int = 0,
        header_bytes: int = 0,
        leases_max: int = 256,
        policy: Policy | None = None,
        tier: str = "host",
    ) -> None:
        """Begin with an empty tier; `header_bytes` of each slot, whole pages, are the tier's own."""
        self.slots: Final = Slots(
            capacity_bytes=capacity_bytes, chunk_bytes=chunk_bytes, header_bytes=header_bytes, tier=tier
        )
        self._tier = tier
        self._leases_max = leases_max
        if policy is None:
            policy = make_policy("lru", capacity=partial(blocks_max, capacity_bytes, chunk_bytes))
        self._policy = policy
        self._held: dict[BlockKey, Held] = {}
        self._key_at: dict[int, BlockKey] = {}
        self._reserved: dict[BlockKey, Reservation] = {}
        self._quarantined: dict[int, Reservation] = {}
        """By place, what was given up and may still be written to."""
        self._pins: dict[BlockKey, int] = {}
        self._passing: dict[BlockKey, Place] = {}
        self._passing_bytes = 0
        self._passing_bytes_peak = 0
        self._chunk_use: dict[int, int] = {}
        """When anything in a chunk was last used; of a block that went since, too, which only makes it seem warmer."""
        self._chunk_busy: dict[int, int] = {}
        """How many pins and reservations stand in a chunk."""
        self._leases: dict[int, Lease] = {}
        self._extensions: dict[int, list[Held]] = {}
        """What was pinned under a lease after it was made; a tuple grown block by block would be copied as often."""
        self._leases_of: dict[str, set[int]] = {}
        self._lease_ids = 0
        self._evictions = 0
        self._leases_expired = 0

    # -- finding ------------------------------------------------------------------------------------------------

    def get(self, key: BlockKey) -> Held | None:
        """Return the committed block under `key`, or None."""
        return self._held.get(key)

    def prefix(self, keys: Sequence[BlockKey]) -> int:
        """Return how many of `keys`, from the first on without a gap, are committed."""
        for count, key in enumerate(keys):
            if key not in self._held:
                return count
        return len(keys)

    def keys(self) -> tuple[BlockKey, ...]:
        """Return the keys of all committed blocks."""
        return tuple(self._held)

    def newest_first(self) -> tuple[BlockKey, ...]:
        """Return the keys of the blocks that are here to stay, those used last first."""
        staying = (key for key in self._held if key not in self._passing)
        return tuple(sorted(staying, key=self._policy.last_use, reverse=True))

    def __len__(self) -> int:
        return len(self._held)

    # -- storing ------------------------------------------------------------------------------------------------

    def reserve(self, info: BlockInfo) -> Reservation | None:
        """Return a place for `info`, or None if its key is committed or already on its way.

        Raises:
            TierFull: everything that could go is pinned, or the block can never fit. Nothing was evicted.
        """
        if info.key in self._held or info.key in self._reserved:
            return None
        size = self.slots.size_class(info.length)
        evicted: tuple[BlockKey, ...] = ()
        slot = self.slots.take(size)
        if slot is None:
            evicted = self._victims(size)
            for key in evicted:
                self._drop(key, evicted=True)
                self._evictions += 1
            slot = self.slots.take(size)
            assert slot is not None, "victims were chosen to free a slot of this class"
        reservation = Reservation(info, slot, evicted)
        self._reserved[info.key] = reservation
        self._occupy(slot, 1)
        self._chunk_use.setdefault(self.slots.chunk_of(slot), 0)
        return reservation

    def settle(self, reservation: Reservation, digest: bytes) -> Reservation:
        """Return the reservation of a block whose digest is known only now that it is complete."""
        assert self._reserved[reservation.info.key] is reservation
        settled = replace(reservation, info=replace(reservation.info, digest=digest))
        self._reserved[settled.info.key] = settled
        return settled

    def commit(self, reservation: Reservation, *, passing: Place | None = None, parent: BlockKey | None = None) -> None:
        """Make a reserved block findable. Its bytes are in place and verified. `parent` is the block before it, if known.

        With `passing`, which says where in its chain it is, it stays only until its last pin goes; see `admit`.
        """
        info, slot = reservation.info, reservation.slot
        assert self._reserved.pop(info.key) is reservation
        self._held[info.key] = Held(info, slot)
        self._key_at[slot.offset] = info.key
        self._occupy(slot, -1)
        if passing is None:
            self._keep(self._held[info.key], parent)
        else:
            self._passing[info.key] = passing
            self._passing_bytes += slot.size
            self._passing_bytes_peak = max(self._passing_bytes_peak, self._passing_bytes)

    def restore(
        self, blocks: Iterable[tuple[BlockInfo, Slot]], parents: Mapping[BlockKey, BlockKey | None] | None = None
    ) -> None:
        """Take the committed blocks of a tier that outlived its process, the most recently used last.

        Nothing has been stored yet; no key and no slot is there twice, and a chunk has slots of one size. `parents` names the
        block before each, as far as that is known.
        """
        found = [Held(info, slot) for info, slot in blocks]
        self.slots.take_at(held.slot for held in found)
        for held in found:
            assert held.info.key not in self._held
            self._held[held.info.key] = held
            self._key_at[held.slot.offset] = held.info.key
            self._keep(held, parents.get(held.info.key) if parents is not None else None)

    @property
    def has_passing(self) -> bool:
        """Whether any block is only passing."""
        return bool(self._passing)

    def passing(self, key: BlockKey) -> Place | None:
        """Return where in its chain a block is that is only passing; None of one that stays, or is not here."""
        return self._passing.get(key)

    def admit(self, key: BlockKey) -> None:
        """Have a passing block stay."""
        place = self._passing.pop(key, None)
        if place is not None:
            held = self._held[key]
            self._passing_bytes -= held.slot.size
            self._keep(held, place[1])

    def let_pass(self, key: BlockKey) -> None:
        """Drop a passing block that nobody has pinned."""
        if key in self._passing and not self._pins.get(key):
            self._drop(key)

    def next_to_go(self, size: int) -> BlockKey | None:
        """Return the block of a size class that would go next, None if all must stay."""
        return self._policy.victim(size, self._is_pinned)

    def has_room(self) -> bool:
        """Say whether a block could stay without taking the place of others, or of those that are passing now and then."""
        spare = min(self._passing_bytes_peak, self.slots.capacity_bytes // _PASSING_SHARE)
        return self.slots.capacity_bytes - self.slots.used_bytes() >= spare

    def ask(self, chain: Sequence[BlockKey]) -> None:
        """Take that a chain is wanted, here or by a peer; a policy may learn from it."""
        self._policy.ask(chain)

    def renew(self, keys: Sequence[BlockKey]) -> None:
        """Put a chain that was just stored in order, as if its tail had come first; it is no use of it."""
        for key in reversed(keys):
            if key in self._policy:
                self._policy.renew(key)

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """Note a use of a chain's blocks, tail first.

        Its head is then the newest and goes last: a tail without its head is of no use to anybody.
        """
        for key in reversed(keys):
            held = self._held.get(key)
            if held is not None:
                self._use(held)

    def abort(self, reservation: Reservation) -> None:
        """Give a reserved place back; what was evicted for it stays evicted."""
        assert self._reserved.pop(reservation.info.key) is reservation
        self._occupy(reservation.slot, -1)
        self.slots.give_back(reservation.slot)

    def quarantine(self, reservation: Reservation) -> None:
        """Give a reservation up whose place may still be written to: its key is free at once, its place is not."""
        assert self._reserved.pop(reservation.info.key) is reservation
        self._quarantined[reservation.slot.offset] = reservation

    def release_quarantined(self, reservation: Reservation) -> None:
        """Give a place back that nobody writes to any more."""
        assert self._quarantined.pop(reservation.slot.offset) is reservation
        self._occupy(reservation.slot, -1)
        self.slots.give_back(reservation.slot)

    def drop(self, key: BlockKey) -> bool:
        """Drop a committed block unless it is pinned or absent; say whether it was dropped."""
        if key not in self._held or self._pins.get(key):
            return False
        self._drop(key)
        return True

    def _drop(self, key: BlockKey, *, evicted: bool = False) -> None:
        held = self._held.pop(key)
        del self._key_at[held.slot.offset]
        if self._passing.pop(key, None) is not None:
            self._passing_bytes -= held.slot.size
        elif evicted:
            self._policy.evict(key)
        else:
            self._policy.remove(key)
        self.slots.give_back(held.slot)

    def _keep(self, held: Held, parent: BlockKey | None) -> None:
        """Let the policy know of a block that stays. One that only passes goes with its pins, and never for want of room."""
        self._policy.insert(held.info.key, held.slot.size, parent)
        self._chunk_use[self.slots.chunk_of(held.slot)] = self._policy.last_use(held.info.key)

    def _is_pinned(self, key: BlockKey) -> bool:
        return key in self._pins

    def _victims(self, size: int) -> tuple[BlockKey, ...]:
        """Choose one block of the class, or all blocks of a colder chunk of another class.

        Without the second choice a class that was large once would keep its chunks for ever (slab calcification). It
        looks at chunks, never at their blocks: making room happens on the loop that also answers probes.
        """
        own = self._policy.victim(size, self._is_pinned)
        free = [chunk for chunk in self.slots.chunks_of_other_classes(size) if not self._chunk_busy.get(chunk)]
        coldest = min(free, key=self._chunk_use.__getitem__, default=None)
        if coldest is not None and (own is None or self._chunk_use[coldest] < self._policy.last_use(own)):
            return tuple(self._key_at[offset] for offset in self.slots.used_in(coldest))
        if own is not None:
            return (own,)
        raise TierFull(
            f"no room for a block of {size} bytes, everything is pinned or on its way",
            tier=self._tier,
            hint=f"raise {self._tier}.capacity_bytes, or release leases sooner",
        )

    # -- pins ---------------------------------------------------------------------------------------------------

    def lease(self, keys: Iterable[BlockKey], *, holder: str, deadline: float, uses: bool = True) -> Lease:
        """Pin those of `keys` that are committed, and note their use, unless it is noted elsewhere.

        Raises:
            PinLimit: `holder` has as many leases as it may have. Nothing was pinned.
        """
        count = len(self._leases_of.get(holder, ()))
        if count >= self._leases_max:
            raise PinLimit(f"{holder} holds {count} leases, limit {self._leases_max}", tier=self._tier)
        blocks = tuple(held for key in keys if (held := self._held.get(key)) is not None)
        for held in reversed(blocks):
            if uses:
                self._use(held)
            self._pin(held)
        self._lease_ids += 1
        lease = Lease(self._lease_ids, holder, blocks, deadline)
        self._leases[lease.id] = lease
        self._leases_of.setdefault(holder, set()).add(lease.id)
        return lease

    def extend(self, lease_id: int, key: BlockKey) -> None:
        """Pin one more committed block as long as a lease, which does not name it; nothing happens if either is gone."""
        lease, held = self._leases.get(lease_id), self._held.get(key)
        if lease is not None and held is not None:
            self._pin(held)
            self._extensions.setdefault(lease_id, []).append(held)

    def postpone(self, lease_id: int, deadline: float) -> None:
        """Have a lease end later; nothing happens if it has ended."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            self._leases[lease_id] = replace(lease, deadline=deadline)

    def shorten(self, lease_id: int, blocks: int) -> None:
        """Have a lease pin only its first `blocks`; nothing happens if it has ended."""
        lease = self._leases.get(lease_id)
        if lease is not None:
            self._leases[lease_id] = replace(lease, blocks=lease.blocks[:blocks])
            for held in lease.blocks[blocks:]:
                self._unpin(held)

    def leases_of(self, holder: str) -> tuple[int, ...]:
        """Return the numbers of the leases that `holder` has."""
        return tuple(self._leases_of.get(holder, ()))

    def is_leased(self, lease_id: int) -> bool:
        """Say whether a lease is still held by anybody."""
        return lease_id in self._leases

    def find_lease(self, lease_id: int, *, holder: str) -> Lease | None:
        """Return the lease if it is still held, and by `holder`: one holder cannot use another's."""
        lease = self._leases.get(lease_id)
        return lease if lease is not None and lease.holder == holder else None

    def release(self, lease_id: int, *, holder: str) -> bool:
        """End a lease; say whether there was one."""
        if self.find_lease(lease_id, holder=holder) is None:
            return False
        self._end(lease_id)
        return True

    def release_holder(self, holder: str) -> int:
        """End all leases of a holder that went away; return how many there were."""
        mine = tuple(self._leases_of.get(holder, ()))
        for lease_id in mine:
            self._end(lease_id)
        return len(mine)

    def on_time(self, now: float) -> None:
        """Take what time it is: uses are dated so where blocks have a time to live."""
        self._policy.on_time(now)

    def drop_idle(self, now: float) -> tuple[BlockKey, ...]:
        """Drop what was not used for its time to live, and return it."""
        self._policy.on_time(now)
        if self._policy.next_deadline() > now:
            return ()
        idle = self._policy.idle(self._is_pinned)
        for key in idle:
            self._drop(key)
        return idle

    def expire(self, now: float) -> int:
        """End the leases whose deadline has passed; return how many."""
        if not self._leases:
            return 0
        late = [lease.id for lease in self._leases.values() if lease.deadline <= now]
        for lease_id in late:
            self._end(lease_id)
        self._leases_expired += len(late)
        return len(late)

    def next_deadline(self) -> float:
        """Return when `expire` or `drop_idle` will have something to do; infinity if never."""
        idle_at = self._policy.next_deadline()
        if not self._leases:  # asked after every message, and mostly so
            return idle_at
        return min(idle_at, *(lease.deadline for lease in self._leases.values()))

    def _end(self, lease_id: int) -> None:
        lease = self._leases.pop(lease_id)
        mine = self._leases_of[lease.holder]
        mine.discard(lease_id)
        if not mine:
            del self._leases_of[lease.holder]
        for held in (*lease.blocks, *self._extensions.pop(lease_id, ())):
            self._unpin(held)

    def _unpin(self, held: Held) -> None:
        self._occupy(held.slot, -1)
        count = self._pins[held.info.key] - 1
        if count:
            self._pins[held.info.key] = count
        else:
            del self._pins[held.info.key]
            self.let_pass(held.info.key)

    def _use(self, held: Held) -> None:
        if held.info.key in self._passing:
            return
        self._policy.touch(held.info.key)
        self._chunk_use[self.slots.chunk_of(held.slot)] = self._policy.last_use(held.info.key)

    def _pin(self, held: Held) -> None:
        self._pins[held.info.key] = self._pins.get(held.info.key, 0) + 1
        self._occupy(held.slot, 1)

    def _occupy(self, slot: Slot, change: int) -> None:
        """Count a pin or reservation that came to the chunk of `slot`, or went."""
        chunk = self.slots.chunk_of(slot)
        self._chunk_busy[chunk] = self._chunk_busy.get(chunk, 0) + change
        assert self._chunk_busy[chunk] >= 0

    def statistics(self) -> LedgerStatistics:
        """Return the figures of now."""
        return LedgerStatistics(
            capacity_bytes=self.slots.capacity_bytes,
            used_bytes=self.slots.used_bytes(),
            blocks=len(self._held),
            pinned_blocks=len(self._pins),
            leases=len(self._leases),
            evictions=self._evictions,
            leases_expired=self._leases_expired,
            quarantined=len(self._quarantined),
            passing=len(self._passing),
        )
