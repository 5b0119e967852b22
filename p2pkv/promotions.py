"""What is read from the disk into host memory, and for whom, sans-IO.

A promotion is a run of blocks that somebody waits for: an engine, a peer, a hint. It is over when each has been read or has failed,
or when its time is up; what is still being read goes on. A block that several wait for is read once.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.errors import TierFull
from p2pkv.ledger import Held, Ledger, Reservation

AT_ONCE: Final = 16
"""Reads under way: as many as keep a disk's queue full."""
WAITING_MAX: Final = 65_536
"""Blocks that wait to be read; a promotion that would need more ends where they do."""
BYTES_AT_ONCE: Final = 64 * 2**20
"""And bytes of them, or one block: what waits behind more could not have its turn in time."""
HOLDER: Final = "promotions"
"""Who pins blocks on disk while they are read."""


@dataclass(frozen=True, slots=True)
class ReadFromDisk:
    """Read a block of the disk into a slot of host memory; the shell reports `on_read`."""

    move: int
    held: Held
    into: Reservation


@dataclass(frozen=True, slots=True)
class Promoted:
    """All that a promotion brings has been brought, or its time is up."""

    promotion: int


@dataclass(slots=True)
class PromotionCounts:
    """Blocks, since start."""

    read: int = 0
    seconds: float = 0.0
    """That the read ones took in all, waiting for a thread included."""
    failed: int = 0
    """Not read, for any reason but the next."""
    given_up: int = 0
    """Not begun when nobody waited any more."""


@dataclass(slots=True)
class _Read:
    effect: ReadFromDisk
    lease: int
    books: Ledger
    deadline: float
    is_late: bool = False
    """Whether nobody waits any more; its place in host memory may still be written to."""


@dataclass(slots=True)
class _Promotion:
    wanted: set[BlockKey]
    until: float


class Promotions:
    """All promotions of one node."""

    def __init__(
        self, *, host: Ledger, reserve: Callable[[BlockInfo, float], Reservation | None], io_timeout_s: float
    ) -> None:
        """`reserve` finds a place in host memory."""
        self._host = host
        self._reserve = reserve
        self._io_timeout_s = io_timeout_s
        self._waiting: OrderedDict[BlockKey, None] = OrderedDict()
        self._reading: dict[int, _Read] = {}
        self._keys_read: set[BlockKey] = set()
        self._bytes = 0
        """Of blocks that are being read."""
        self._promotions: dict[int, _Promotion] = {}
        self._moves = 0
        self._numbers = 0
        self.counts: Final = PromotionCounts()

    @property
    def waiting(self) -> int:
        """Blocks that are queued or being read."""
        return len(self._waiting) + len(self._reading)

    def promote(self, keys: Sequence[BlockKey], books: Ledger, until: float) -> int | None:
        """Begin to bring those of a chain that are on the disk alone, up to the first that is in neither tier.

        Return the number of the promotion, or None if there is nothing to bring.
        """
        wanted: list[BlockKey] = []
        for key in keys:
            if self._host.get(key) is not None:
                continue
            if books.get(key) is None:
                break
            if key not in self._keys_read and key not in self._waiting:
                if len(self._waiting) >= WAITING_MAX:
                    break
                self._waiting[key] = None
            wanted.append(key)
        if not wanted:
            return None
        books.touch(wanted)
        self._numbers += 1
        self._promotions[self._numbers] = _Promotion(set(wanted), until)
        return self._numbers

    def start(self, books: Ledger | None, now: float) -> tuple[ReadFromDisk | Promoted, ...]:
        """Begin as many reads as may be under way. Without `books` the disk is out of service, and nothing is read."""
        out: list[ReadFromDisk | Promoted] = []
        while self._waiting and (books is None or (len(self._reading) < AT_ONCE and self._bytes < BYTES_AT_ONCE)):
            key, _ = self._waiting.popitem(last=False)
            held = books.get(key) if books is not None else None
            if books is None or held is None:
                out += self._ended(key, good=self._host.get(key) is not None)
                continue
            try:
                reservation = self._reserve(held.info, now)
            except TierFull:
                out += self._ended(key, good=False)
                continue
            if reservation is None:  # it came by another way, or is just coming
                out += self._ended(key, good=self._host.get(key) is not None)
                continue
            lease = books.lease((), holder=HOLDER, deadline=float("inf"))
            books.extend(lease.id, key)
            self._moves += 1
            effect = ReadFromDisk(self._moves, held, reservation)
            self._reading[self._moves] = _Read(effect, lease.id, books, now + self._io_timeout_s)
            self._keys_read.add(key)
            self._bytes += held.info.length
            out.append(effect)
        return tuple(out)

    def on_read(self, move: int) -> tuple[ReadFromDisk, bool]:
        """Take that a read is over, in whatever way; return it, and whether its place in host memory is still reserved.

        If it is not, the place was in quarantine, and is free now.
        """
        one = self._reading.pop(move)
        self._bytes -= one.effect.held.info.length
        one.books.release(one.lease, holder=HOLDER)
        if one.is_late:
            self._host.release_quarantined(one.effect.into)
            return one.effect, False
        self._keys_read.discard(one.effect.held.info.key)
        return one.effect, True

    def settle(self, key: BlockKey, *, good: bool) -> tuple[Promoted, ...]:
        """Take what came of a block that was read: `good` if it is in host memory now."""
        return self._ended(key, good=good)

    def on_time(self, now: float) -> tuple[tuple[Promoted, ...], bool]:
        """Let time pass; return the promotions that are over, and whether a read takes longer than any may."""
        over = [number for number, one in self._promotions.items() if one.until <= now]
        given_up = set[BlockKey]()
        for number in over:
            given_up |= self._promotions.pop(number).wanted
        if given_up:  # to read on for nobody would let those wait who still can have theirs in time
            given_up.difference_update(*(one.wanted for one in self._promotions.values()))
            for key in given_up:
                if key in self._waiting:
                    del self._waiting[key]
                    self.counts.given_up += 1
        ended = [Promoted(number) for number in over]
        late = [one for one in self._reading.values() if one.deadline <= now and not one.is_late]
        for one in late:
            one.is_late = True
            self._host.quarantine(one.effect.into)
            self._keys_read.discard(one.effect.held.info.key)
            ended += self._ended(one.effect.held.info.key, good=False)
        return tuple(ended), bool(late)

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        reads = min((one.deadline for one in self._reading.values() if not one.is_late), default=float("inf"))
        return min(reads, min((one.until for one in self._promotions.values()), default=float("inf")))

    def _ended(self, key: BlockKey, *, good: bool) -> tuple[Promoted, ...]:
        self.counts.read += good
        self.counts.failed += not good
        over = []
        for number, one in self._promotions.items():
            one.wanted.discard(key)
            if not one.wanted:
                over.append(number)
        for number in over:
            del self._promotions[number]
        return tuple(Promoted(number) for number in over)
