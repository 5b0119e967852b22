"""Millions of random steps through the books of host memory, beside a map of its pages: no overlap, no leak, and what is lost.

Blocks of several sizes come, are pinned, leased, evicted and dropped; which sizes are asked for most changes from time to time, as
when a node goes over to other models. Every place that is given out is compared with the map, and at the end all is given
back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.errors import CapacityError
from p2pkv.ledger import Ledger, Reservation
from p2pkv.slots import PAGE_BYTES, Slot

LENGTHS: Final = (36_864, 65_536, 131_072, 147_456, 262_144, 458_752, 1_048_576)
"""Of blocks of 16 tokens: from a model of 135 million parameters to one of 70 billion."""
KEYS_PER_ROOM: Final = 4
"""Different blocks, in units of those that there is room for."""
OPEN_MAX: Final = 16
LEASES_MAX: Final = 64
HOLDERS: Final = 8
_FAVOURITES: Final = 0.6
"""Share of steps that are about blocks of the length that is asked for most."""
_LOST: Final = 0.05
"""Share of blocks on their way that do not arrive."""
_LEASED_MAX: Final = 8
_PHASE_STEPS: Final = 50_000
_LOOK_STEPS: Final = 1000


@dataclass(frozen=True, slots=True)
class ArenaRun:
    """What came of a run. Shares are of the arena, means over looks at it every thousand steps once it is full."""

    seed: int
    steps: int
    capacity_bytes: int
    stored: int
    evicted: int
    dropped: int
    leases: int
    refused: int
    """Blocks for which there was no room, since everything was pinned or on its way."""
    rounding_share: float
    """Behind the ends of blocks, in slots that are whole pages."""
    remainder_share: float
    """At the ends of chunks, where no slot of their class fits."""
    idle_share: float
    """Free slots: another class cannot have them as long as a block stands in their chunk."""
    idle_share_max: float
    overlaps: int
    """Places that were given out while somebody had them."""
    leaked_bytes: int
    """Not free after everything was given back, or not usable by every class."""


@dataclass(slots=True)
class PageMap:
    """Who has which page: one byte each."""

    pages: bytearray
    overlaps: int = 0

    def take(self, offset: int, size: int) -> None:
        """Note that somebody has these pages, and whether anybody had them."""
        first, end = offset // PAGE_BYTES, (offset + size) // PAGE_BYTES
        self.overlaps += any(self.pages[first:end])
        self.pages[first:end] = b"\1" * (end - first)

    def free(self, offset: int, size: int) -> None:
        """Note that nobody has these pages any more, and whether anybody had not."""
        first, end = offset // PAGE_BYTES, (offset + size) // PAGE_BYTES
        self.overlaps += self.pages[first:end].count(1) != end - first
        self.pages[first:end] = bytes(end - first)


@dataclass(slots=True)
class _Looks:
    count: int = 0
    rounding: float = 0.0
    remainder: float = 0.0
    idle: float = 0.0
    idle_max: float = 0.0

    def mean(self, total: float) -> float:
        return round(total / self.count, 4) if self.count else 0.0


class _Arena:
    """The ledger, and books of our own beside it."""

    def __init__(self, *, capacity_bytes: int, seed: int) -> None:
        self.ledger = Ledger(capacity_bytes=capacity_bytes)
        self.slots = self.ledger.slots
        self.random = Random(f"{seed}/arena")
        self.map = PageMap(bytearray(self.slots.capacity_bytes // PAGE_BYTES))
        self.keys = KEYS_PER_ROOM * len(LENGTHS) * self.slots.capacity_bytes // sum(LENGTHS)
        self.favourite = 0
        self.stored = self.evicted = self.dropped = self.leased = self.refused = 0
        self.looks = _Looks()
        self._now = 0.0
        self._places: dict[BlockKey, tuple[Slot, int]] = {}
        """With the length of the block."""
        self._open: list[Reservation] = []
        self._leases: list[tuple[int, str]] = []
        self._bytes = 0
        """Of the blocks in slots, open ones included."""
        self._class_of: dict[int, int] = {}

    def _any_key(self) -> tuple[BlockKey, int]:
        """Return a key and the length of its block, mostly one of the favourite length."""
        number = int(self.random.random() * self.keys)
        if self.random.random() < _FAVOURITES:
            number += (self.favourite - number) % len(LENGTHS)
        return BlockKey(number.to_bytes(32, "big")), LENGTHS[number % len(LENGTHS)]

    def reserve(self) -> None:
        key, length = self._any_key()
        try:
            reservation = self.ledger.reserve(BlockInfo(key, bytes(32), length, PAGE_BYTES, bytes(16)))
        except CapacityError:
            self.refused += 1
            return
        if reservation is None:
            return
        for gone in reservation.evicted:
            self._free(*self._places.pop(gone))
        self.evicted += len(reservation.evicted)
        slot = reservation.slot
        self.map.take(slot.offset, slot.size)
        self._class_of[self.slots.chunk_of(slot)] = slot.size
        self._bytes += length
        self._open.append(reservation)
        if len(self._open) > OPEN_MAX:
            self.finish()

    def finish(self) -> None:
        if not self._open:
            return
        reservation = self._open.pop(int(self.random.random() * len(self._open)))
        if self.random.random() < _LOST:
            self.ledger.abort(reservation)
            self._free(reservation.slot, reservation.info.length)
        else:
            self.ledger.commit(reservation)
            self._places[reservation.info.key] = (reservation.slot, reservation.info.length)
            self.stored += 1

    def lease(self) -> None:
        keys = [self._any_key()[0] for _ in range(1 + int(self.random.random() * _LEASED_MAX))]
        holder = self._any_holder()
        if len(self._leases) < LEASES_MAX:
            found = self.ledger.lease(keys, holder=holder, deadline=self._now + 100 * self.random.random())
            self._leases.append((found.id, holder))
            self.leased += 1

    def release(self) -> None:
        if self._leases:
            lease, holder = self._leases.pop(int(self.random.random() * len(self._leases)))
            self.ledger.release(lease, holder=holder)

    def drop(self) -> None:
        key, _ = self._any_key()
        if self.ledger.drop(key):
            self._free(*self._places.pop(key))
            self.dropped += 1

    def pass_time(self) -> None:
        self._now += 1.0
        self.ledger.expire(self._now)
        self._leases = [(lease, holder) for lease, holder in self._leases if self.ledger.is_leased(lease)]

    def lose_holder(self) -> None:
        holder = self._any_holder()
        self.ledger.release_holder(holder)
        self._leases = [one for one in self._leases if one[1] != holder]

    def look(self) -> None:
        """Note what of the arena is of no use now."""
        looks, capacity_bytes = self.looks, self.slots.capacity_bytes
        pages_per_chunk = self.slots.chunk_bytes // PAGE_BYTES
        used = idle = remainder = 0
        for chunk in range(capacity_bytes // self.slots.chunk_bytes):
            taken = self.map.pages.count(1, chunk * pages_per_chunk, (chunk + 1) * pages_per_chunk) * PAGE_BYTES
            if taken:
                whole = self.slots.chunk_bytes // self._class_of[chunk] * self._class_of[chunk]
                used, idle, remainder = used + taken, idle + whole - taken, remainder + self.slots.chunk_bytes - whole
        assert used == self.slots.used_bytes(), "the ledger and the map count the same"
        looks.count += 1
        looks.rounding += (used - self._bytes) / capacity_bytes
        looks.remainder += remainder / capacity_bytes
        looks.idle += idle / capacity_bytes
        looks.idle_max = max(looks.idle_max, idle / capacity_bytes)

    def give_all_back(self) -> int:
        """End everything; return how many bytes are not free then, or cannot be had by every class."""
        while self._open:
            self.finish()
        for holder in range(HOLDERS):
            self.ledger.release_holder(f"holder-{holder}")
        for key in self.ledger.keys():  # noqa: SIM118 - not a mapping
            assert self.ledger.drop(key), "nothing is pinned any more"
            self._free(*self._places.pop(key))
        leaked = self.slots.used_bytes() + PAGE_BYTES * self.map.pages.count(1)
        for length in LENGTHS:
            size = self.slots.size_class(length)
            taken = []
            while (slot := self.slots.take(size)) is not None:
                taken.append(slot)
            wanted = self.slots.capacity_bytes // self.slots.chunk_bytes * (self.slots.chunk_bytes // size)
            leaked += (wanted - len(taken)) * size
            for slot in taken:
                self.slots.give_back(slot)
        return leaked

    def _free(self, slot: Slot, length: int) -> None:
        self.map.free(slot.offset, slot.size)
        self._bytes -= length

    def _any_holder(self) -> str:
        return f"holder-{int(self.random.random() * HOLDERS)}"


def run_arena(*, steps: int, seed: int, capacity_bytes: int = 2**32) -> ArenaRun:
    """Run; equal arguments give equal results. Some 12 µs a step; no memory is taken for the arena itself."""
    arena = _Arena(capacity_bytes=capacity_bytes, seed=seed)
    verbs: list[Callable[[], None]] = [
        verb
        for verb, weight in (
            (arena.reserve, 40),
            (arena.finish, 36),
            (arena.lease, 8),
            (arena.release, 8),
            (arena.drop, 5),
            (arena.pass_time, 2),
            (arena.lose_holder, 1),
        )
        for _ in range(weight)
    ]
    draw = arena.random.random
    for step in range(steps):
        if step % _PHASE_STEPS == 0:
            arena.favourite = int(draw() * len(LENGTHS))
        verbs[int(draw() * len(verbs))]()
        if step % _LOOK_STEPS == 0 and arena.evicted:
            arena.look()
    looks, slots = arena.looks, arena.slots
    return ArenaRun(
        seed=seed,
        steps=steps,
        capacity_bytes=slots.capacity_bytes,
        stored=arena.stored,
        evicted=arena.evicted,
        dropped=arena.dropped,
        leases=arena.leased,
        refused=arena.refused,
        rounding_share=looks.mean(looks.rounding),
        remainder_share=looks.mean(looks.remainder),
        idle_share=looks.mean(looks.idle),
        idle_share_max=round(looks.idle_max, 4),
        leaked_bytes=arena.give_all_back(),
        overlaps=arena.map.overlaps,
    )
