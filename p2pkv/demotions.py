"""What is written to the disk and when, sans-IO.

Written *through*, a block is queued when it is stored; written *back*, when it is one of those stored longest ago, or the next to go, and few
others could. Either way eviction waits for nothing: what goes before its turn came is lost to the disk, and counted. A disk that is
slower than what engines store must not slow them down.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pkv.blocks import BlockKey
from p2pkv.errors import TierFull
from p2pkv.ledger import Held, Ledger, Place, Reservation

WAITING_MAX: Final = 65_536
"""Blocks that wait to be written, 16 GiB of 256 KiB each; past them those that wait longest are given up."""
AT_ONCE: Final = 8
"""Writes under way, and leases of host memory for them. More do not make a disk faster, and let reads wait longer."""
AHEAD: Final = 256
"""So many places are to be had without waiting for the disk: free, or of blocks that are there already."""
BYTES_AT_ONCE: Final = 64 * 2**20
"""And bytes of them, or one block: what waits behind more could not have its turn in time."""
HOLDER: Final = "disk"
"""Who pins the blocks that are being written."""

WritePolicy: TypeAlias = Literal["through", "back"]
Worth: TypeAlias = Callable[[Held], bool]
"""Whether a block is worth its place on the disk."""


@dataclass(frozen=True, slots=True)
class WriteToDisk:
    """Write a block of host memory to a slot on disk; the shell reports `on_written`."""

    move: int
    held: Held
    into: Reservation
    place: Place


@dataclass(slots=True)
class DemotionCounts:
    """Blocks, since start."""

    written: int = 0
    failed: int = 0
    lost: int = 0
    """Evicted, or given up, before their turn came."""
    seconds: float = 0.0
    """That the written ones took in all, waiting for a thread included."""
    cheap: int = 0
    """Not written because computing them takes less time than reading them."""


@dataclass(slots=True)
class _Write:
    effect: WriteToDisk
    lease: int
    books: Ledger
    deadline: float


class Demotions:
    """The queue of one disk tier."""

    def __init__(self, *, host: Ledger, policy: WritePolicy, io_timeout_s: float) -> None:
        self._host = host
        self._policy = policy
        self._io_timeout_s = io_timeout_s
        self._waiting: OrderedDict[BlockKey, Place] = OrderedDict()
        self._places: dict[BlockKey, Place] = {}
        """Of blocks of host memory that may still have to be written back."""
        self._writing: dict[int, _Write] = {}
        self._bytes = 0
        """Of blocks that are being written."""
        self._moves = 0
        self.counts: Final = DemotionCounts()

    @property
    def waiting(self) -> int:
        """Blocks that are queued or being written."""
        return len(self._waiting) + len(self._writing)

    def on_stored(self, key: BlockKey, place: Place) -> None:
        """Take that a block is in host memory for good."""
        if self._policy == "through":
            self._queue(key, place)
        else:
            self._places[key] = place

    def on_evicted(self, key: BlockKey) -> None:
        """Take that it is there no longer."""
        self._places.pop(key, None)

    def on_reserved(self, size: int) -> None:
        """Take that a slot of a size was given out: if few are free or on the disk, one that goes soon is written back."""
        if not self._places:
            return
        slots = self._host.slots
        free = (slots.capacity_bytes - slots.used_bytes()) // size
        if free + len(self._host) - len(self._places) < AHEAD:
            for key in (self._host.next_to_go(size), next(iter(self._places))):
                if key in self._places:  # or else it is on the disk, or on its way there
                    self._queue(key, self._places.pop(key))

    def start(self, books: Ledger, now: float, worth: Worth) -> tuple[tuple[WriteToDisk, ...], tuple[BlockKey, ...]]:
        """Begin as many writes as may be under way; return them, and the keys of what had to go from the disk for it."""
        begun: list[WriteToDisk] = []
        gone: list[BlockKey] = []
        while self.has_waiting():
            key, place = self._waiting.popitem(last=False)
            held = self._host.get(key)
            if held is None:
                self.counts.lost += 1
                continue
            if books.get(key) is not None:
                continue
            if not worth(held):
                self.counts.cheap += 1
                continue
            try:
                reservation = books.reserve(held.info)
            except TierFull:  # a block larger than a slab, or all that could go is just being read
                self.counts.failed += 1
                continue
            if reservation is None:
                continue
            lease = self._host.lease((), holder=HOLDER, deadline=float("inf"))
            self._host.extend(lease.id, key)  # and not leased: to be written is no use of a block
            gone += reservation.evicted
            self._moves += 1
            effect = WriteToDisk(self._moves, held, reservation, place)
            self._bytes += held.info.length
            self._writing[self._moves] = _Write(effect, lease.id, books, now + self._io_timeout_s)
            begun.append(effect)
        return tuple(begun), tuple(gone)

    def on_written(self, move: int, *, good: bool, took_s: float = 0.0) -> WriteToDisk | None:
        """Take the end of a write; return it if the block is on the disk now."""
        one = self._writing.pop(move)
        self._bytes -= one.effect.held.info.length
        self._host.release(one.lease, holder=HOLDER)
        if not good:
            one.books.abort(one.effect.into)
            self.counts.failed += 1
            return None
        one.books.commit(one.effect.into)
        self.counts.written += 1
        self.counts.seconds += took_s
        return one.effect

    def overdue(self, now: float) -> bool:
        """Say whether a write takes longer than any may."""
        return any(one.deadline <= now for one in self._writing.values())

    def next_deadline(self) -> float:
        """Return when a write will be overdue; infinity if none is under way."""
        return min((one.deadline for one in self._writing.values()), default=float("inf"))

    def has_waiting(self) -> bool:
        """Say whether `start` has something to do."""
        room = len(self._writing) < AT_ONCE and self._bytes < BYTES_AT_ONCE
        return bool(self._waiting) and room

    def _queue(self, key: BlockKey, place: Place) -> None:
        self._waiting[key] = place
        if len(self._waiting) > WAITING_MAX:
            self._waiting.popitem(last=False)
            self.counts.lost += 1
