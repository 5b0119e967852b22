"""What engines hint at, sans-IO: chains that are brought into memory before anybody waits for them, and kept for a while.

    hint -> cut to what hints may still pin -> acquire -> its lease, cut again and kept until the engine's time is up

What a hint brings is pinned, or else it could be gone when the engine comes. So all hints together have a share of memory that
leaves room for those who wait; what is under way counts as if it were here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from p2pkv.acquires import Acquired
from p2pkv.blocks import BlockKey
from p2pkv.errors import PinLimit
from p2pkv.ledger import Ledger

SHARE: Final = 8
"""Hints may pin one part in so many of memory."""
AT_ONCE: Final = 8
"""Of all engines."""


@dataclass(frozen=True, slots=True)
class _Hint:
    holder: str
    size: int
    """Bytes, as far as that is known."""
    deadline: float


class Hints:
    """All hints of one node's engines."""

    def __init__(self, ledger: Ledger, size_of: Callable[[BlockKey, int], int]) -> None:
        """`size_of` says how many bytes of memory a block takes, or guesses, from what the engine says unless that is 0."""
        self._ledger = ledger
        self._size_of = size_of
        self._limit = ledger.slots.capacity_bytes // SHARE
        self._waiting: dict[int, _Hint] = {}
        """By the number of their acquire."""
        self._pinned: dict[int, int] = {}
        """Lease -> bytes."""

    def room_for(self, chain: Sequence[BlockKey], block_bytes: int = 0) -> tuple[BlockKey, ...]:
        """Return as much of a chain, from its root, as may be hinted at now; its blocks are of `block_bytes` if that is known.

        Raises:
            PinLimit: not even its first block.
        """
        room = self._limit - self._pinned_bytes() - sum(one.size for one in self._waiting.values())
        if len(self._waiting) >= AT_ONCE:
            raise PinLimit(
                f"{len(self._waiting)} hints are under way, limit {AT_ONCE}",
                tier="host",
                hint="hint again a little later",
            )
        for count, key in enumerate(chain):
            room -= self._size_of(key, block_bytes)
            if room < 0:
                if not count:
                    raise PinLimit(
                        f"hints pin {self._pinned_bytes()} bytes, limit {self._limit}, "
                        f"and {len(self._waiting)} are under way",
                        tier="host",
                        hint="acquire what was hinted at before, or give hints less time",
                    )
                return tuple(chain[:count])
        return tuple(chain)

    def begin(
        self, acquire: int, keys: Sequence[BlockKey], *, holder: str, deadline: float, block_bytes: int = 0
    ) -> None:
        """Take that what `room_for` returned is being acquired for `holder`, an engine that comes before `deadline`."""
        self._waiting[acquire] = _Hint(holder, sum(self._size_of(key, block_bytes) for key in keys), deadline)

    def waits_for(self, acquire: int) -> bool:
        """Say whether an acquire was begun for a hint, whose engine is still there."""
        return acquire in self._waiting

    def on_acquired(self, acquired: Acquired) -> int:
        """Keep what has come until the engine's time is up; return how many blocks that are."""
        deadline, lease = self._waiting.pop(acquired.acquire).deadline, acquired.lease
        room, kept = self._limit - self._pinned_bytes(), 0
        for held in lease.blocks:
            if held.slot.size > room:  # blocks are larger than was guessed
                self._ledger.shorten(lease.id, kept)
                break
            room -= held.slot.size
            kept += 1
        self._ledger.postpone(lease.id, deadline)
        self._pinned[lease.id] = sum(held.slot.size for held in lease.blocks[:kept])
        return kept

    def forget(self, holder: str) -> tuple[int, ...]:
        """Take that an engine has gone away; return the acquires that are under way for it."""
        mine = tuple(number for number, one in self._waiting.items() if one.holder == holder)
        for number in mine:
            del self._waiting[number]
        return mine

    def _pinned_bytes(self) -> int:
        self._pinned = {lease: size for lease, size in self._pinned.items() if self._ledger.is_leased(lease)}
        return sum(self._pinned.values())
