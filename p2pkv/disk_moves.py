"""A node's disk tier, sans-IO: its books, what moves between it and host memory, and whether it is in service at all.

    out of service --on_ready(what is there)--> serving --an error, or no answer in time--> out of service
                                                  | ^
                                 no room on the disk | | `retry_s` later
                                                  v |
                                             reading only

The disk is never waited for by anything but what it was asked for itself. When it fails, what it holds is not announced any more, and
host memory and the mesh go on; the shell tries it again, and what it then finds there is in its books again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.config import DiskConfig
from p2pkv.demotions import DemotionCounts, Demotions, WriteToDisk
from p2pkv.effects import Note
from p2pkv.ledger import Held, Ledger, LedgerStatistics, Place, Reservation
from p2pkv.promotions import Promoted, PromotionCounts, Promotions, ReadFromDisk
from p2pkv.slots import PAGE_BYTES, Slot

HEADER_BYTES: Final = PAGE_BYTES
"""In front of each block on disk."""
_REVIEWED_AT_ONCE: Final = 64
"""Blocks whose announcement is looked at in one go: a millisecond of the loop that also answers probes."""
_READ_BYTES_S_ASSUMED: Final = 1e9
_SMOOTHING: Final = 0.05
"""Weight of one read in the rate that counts."""
_LEASES_MAX: Final = 4096
_NOWHERE: Final[Place] = (None, None)

State: TypeAlias = Literal["off", "starting", "serving", "reading only", "out of service"]


@dataclass(frozen=True, slots=True)
class CloseDisk:
    """Let the disk be, and try it again after `retry_s`; the shell reports `on_ready` when it works."""

    reason: str


@dataclass(frozen=True, slots=True)
class DiskStatistics:
    """Figures of the tier."""

    state: State
    reason: str
    """Why it is not serving, or empty."""
    ledger: LedgerStatistics | None
    demotions: DemotionCounts
    promotions: PromotionCounts
    waiting_writes: int
    waiting_reads: int


DiskEffect: TypeAlias = WriteToDisk | ReadFromDisk | Promoted | CloseDisk | Note


def books_of(blocks: Iterable[tuple[BlockInfo, Slot]], *, capacity_bytes: int, slab_bytes: int) -> Ledger:
    """Return the books of a disk on which `blocks` are, the most recently written last."""
    books = Ledger(
        capacity_bytes=capacity_bytes,
        chunk_bytes=slab_bytes,
        header_bytes=HEADER_BYTES,
        leases_max=_LEASES_MAX,
        tier="disk",
    )
    books.restore(blocks)
    return books


class DiskMoves:
    """The disk tier of one node."""

    def __init__(
        self,
        config: DiskConfig,
        *,
        host: Ledger,
        reserve: Callable[[BlockInfo, float], Reservation | None],
        arrived: Callable[[Reservation, Place, float], None],
        worth: Callable[[Held], bool],
    ) -> None:
        """`reserve` finds a place in host memory, `arrived` hears of what is in it, `worth` says what to write at all."""
        self._config = config
        self._worth = worth
        self._arrived = arrived
        self._host = host
        self.books: Ledger | None = None
        """Which block is where on the disk; None while it is out of service."""
        self._state: State = "starting" if config.path else "off"
        self._reason = ""
        self._places: dict[BlockKey, Place] = {}
        self._review: deque[BlockKey] = deque()
        self._full_until = -float("inf")
        self._read_bytes_s = _READ_BYTES_S_ASSUMED
        self._demotions = Demotions(host=host, policy=config.write, io_timeout_s=config.io_timeout_s)
        self._promotions = Promotions(host=host, reserve=reserve, io_timeout_s=config.io_timeout_s)

    # -- what is where ------------------------------------------------------------------------------------------

    def holds(self, key: BlockKey) -> bool:
        """Say whether a block is on the disk, and the disk in service."""
        return self.get(key) is not None

    def get(self, key: BlockKey) -> Held | None:
        """Return what is on the disk under a key, None while the disk is not in service."""
        return self.books.get(key) if self.books is not None else None

    def place(self, key: BlockKey) -> Place:
        """Return where in its chain a block on disk is, as far as that is known."""
        return self._places.get(key, _NOWHERE)

    def prefix(self, keys: Sequence[BlockKey]) -> int:
        """Return how many of `keys`, from the first on without a gap, are in host memory or on the disk."""
        for count, key in enumerate(keys):
            if self._host.get(key) is None and not self.holds(key):
                return count
        return len(keys)

    def take_review(self) -> tuple[BlockKey, ...]:
        """Return some of the keys of which the disk's having them has changed, for their announcement; each once."""
        return tuple(self._review.popleft() for _ in range(min(_REVIEWED_AT_ONCE, len(self._review))))

    # -- moves ----------------------------------------------------------------------------------------------------

    def on_stored(self, key: BlockKey, place: Place) -> None:
        """Take that a block is in host memory for good."""
        if self._state != "off" and not self.holds(key):
            self._demotions.on_stored(key, place)

    def on_reserved(self, size: int) -> None:
        """Take that a slot of host memory was given out."""
        if self.books is not None:
            self._demotions.on_reserved(size)

    def on_evicted(self, key: BlockKey) -> None:
        """Take that a block has gone from host memory."""
        self._demotions.on_evicted(key)

    def promote(self, keys: Sequence[BlockKey], until: float, now: float) -> tuple[int | None, tuple[DiskEffect, ...]]:
        """Begin to bring what a chain's prefix has on the disk alone; `Promoted` with the returned number ends it.

        None: there is nothing to bring.
        """
        if self.books is None:
            return None, ()
        number = self._promotions.promote(keys, self.books, min(until, now + self._config.io_timeout_s))
        return number, self._promotions.start(self.books, now) if number is not None else ()

    def on_written(
        self, move: int, problem: str, now: float, *, full: bool = False, took_s: float = 0.0
    ) -> tuple[DiskEffect, ...]:
        """Take the end of a write: `problem` is empty if it went well, and `full` if there was no room for it."""
        written = self._demotions.on_written(move, good=not problem, took_s=took_s)
        if written is not None:
            self._places[written.held.info.key] = written.place
        effects: tuple[DiskEffect, ...] = ()
        if problem and full and self.books is not None:
            self._full_until = now + self._config.retry_s
            effects = self._say("reading only", problem)
        elif problem:
            effects = self._leave(problem, now)
        return effects + self._start(now)

    def on_read(
        self, move: int, verdict: str, now: float, *, problem: str = "", took_s: float = 0.0
    ) -> tuple[DiskEffect, ...]:
        """Take the end of a read: `verdict` is "ok" if the block is in its place, and `problem` what the disk said instead."""
        effect, reserved = self._promotions.on_read(move)
        key = effect.held.info.key
        if verdict == "ok" and took_s > 0:
            self._promotions.counts.seconds += took_s
            rate = effect.held.info.length / took_s
            self._read_bytes_s += _SMOOTHING * (rate - self._read_bytes_s)
        effects: list[DiskEffect] = []
        if verdict != "ok":
            self._drop(key, effect.held)
        if reserved and verdict == "ok":
            self._arrived(effect.into, self.place(key), now)
        elif reserved:
            self._host.abort(effect.into)
        if reserved:
            effects += self._promotions.settle(key, good=verdict == "ok")
        if problem:
            effects += self._leave(problem, now)
        return (*effects, *self._start(now))

    # -- service ----------------------------------------------------------------------------------------------------

    def on_ready(self, books: Ledger, places: dict[BlockKey, Place], now: float) -> tuple[DiskEffect, ...]:
        """Take that the disk works, and what is there; see `books_of`. Both are this core's from now on."""
        self.books = books
        self._places = places
        self._review.extend(books.keys())
        self._full_until = -float("inf")
        return (*self._say("serving", ""), *self._start(now))

    def on_failed(self, problem: str, now: float) -> tuple[DiskEffect, ...]:
        """Take that the disk does not work: it could not be opened, or it failed beside any move."""
        if self.books is None:
            return self._say("out of service", problem)
        return (*self._leave(problem, now), *self._start(now))

    def on_time(self, now: float) -> tuple[DiskEffect, ...]:
        """Let time pass."""
        if self._state == "off":
            return ()
        effects: list[DiskEffect] = []
        promoted, late = self._promotions.on_time(now)
        effects += promoted
        if self.books is not None and (late or self._demotions.overdue(now)):
            effects += self._leave(f"no answer for {self._config.io_timeout_s:g} s", now)
        if self._state == "reading only" and now >= self._full_until:
            effects += self._say("serving", "")
        return (*effects, *self._start(now))

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        if self._state == "off":
            return float("inf")
        if self._review or (self._may_write() and self._demotions.has_waiting()):
            return -float("inf")
        writes = self._demotions.next_deadline() if self.books is not None else float("inf")
        full = self._full_until if self._state == "reading only" else float("inf")
        return min(self._promotions.next_deadline(), writes, full)

    def read_s(self, length: int) -> float:
        """Return how long it takes to read a block of `length` bytes, as it was lately."""
        return length / self._read_bytes_s

    def statistics(self) -> DiskStatistics:
        """Return the figures of now."""
        return DiskStatistics(
            state=self._state,
            reason=self._reason,
            ledger=self.books.statistics() if self.books is not None else None,
            demotions=self._demotions.counts,
            promotions=self._promotions.counts,
            waiting_writes=self._demotions.waiting,
            waiting_reads=self._promotions.waiting,
        )

    # -- inside -------------------------------------------------------------------------------------------------

    def _may_write(self) -> bool:
        return self.books is not None and self._state == "serving"

    def _start(self, now: float) -> tuple[DiskEffect, ...]:
        effects: tuple[DiskEffect, ...] = self._promotions.start(self.books, now)
        if self.books is not None and self._may_write():
            writes, gone = self._demotions.start(self.books, now, self._worth)
            for key in gone:
                self._forget(key)
            effects += writes
        return effects

    def _drop(self, key: BlockKey, held: Held) -> None:
        if self.books is not None and self.books.get(key) == held and self.books.drop(key):
            self._forget(key)

    def _forget(self, key: BlockKey) -> None:
        self._places.pop(key, None)
        self._review.append(key)

    def _leave(self, reason: str, now: float) -> tuple[DiskEffect, ...]:
        if self.books is None:
            return ()
        self._review.extend(self.books.keys())
        self.books = None
        self._places = {}
        return (*self._say("out of service", reason), CloseDisk(reason), *self._promotions.start(None, now))

    def _say(self, state: State, reason: str) -> tuple[Note, ...]:
        if (state, reason) == (self._state, self._reason):
            return ()
        self._state, self._reason = state, reason
        blocks = len(self.books) if self.books is not None else 0
        facts = (("state", state), ("reason", reason), ("blocks", blocks))
        return (Note("disk tier", tuple(fact for fact in facts if fact[1] != ""), warning=bool(reason)),)
