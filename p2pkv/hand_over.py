"""A node's memory on its way to the daemon that follows it, sans-IO: what goes, in which order, and until when nothing is written.

    serving --begin--> kept as it is --blocks, again and again--> kept as it is --follow--> leaving
       ^                     | `PATIENCE_S` without a question, or the successor has hung up
       └─────────────────────┘

From `begin` on no place is given out, so that a block which has been named lies where it was named for as long as this process lives,
and beyond it for whoever maps the memory. Reading goes on as ever. A successor that fails costs nothing but what was not stored meanwhile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.errors import LocalUseError
from p2pkv.ledger import Held, Ledger, Place

FORMAT: Final = 1
"""Of what is said of a block. A successor of another one takes nothing."""
BLOCKS_AT_ONCE: Final = 1024
"""Named in one answer: some 200 KB, and a millisecond of the loop that also answers probes."""
BYTES_AT_ONCE: Final = 512 * 2**20
"""And what is copied before the next question: some seconds' work even on a machine that has no time."""
PATIENCE_S: Final = 30.0
"""Between two questions of a successor, which copies some blocks meanwhile."""
DRAIN_S: Final = 2.0
"""How long a daemon that is followed waits for its leases to be released."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A block as the daemon before knew it."""

    held: Held
    place: Place


class HandOver:
    """The side of the daemon that is followed."""

    def __init__(self, ledger: Ledger, place_of: Callable[[BlockKey], Place]) -> None:
        """`place_of` says where in its chain a block is."""
        self._ledger = ledger
        self._place_of = place_of
        self._to = ""
        self._until = float("inf")
        self._keys: tuple[BlockKey, ...] = ()
        self.is_leaving = False
        """Whether it is over and this daemon is about to end: nobody is granted anything any more."""

    @property
    def is_under_way(self) -> bool:
        """Whether memory has to stay as it is."""
        return bool(self._to)

    def begin(self, to: str, now: float) -> int:
        """Keep memory as it is for the successor `to`; return how many blocks it may have.

        Raises:
            LocalUseError: another successor is at it.
        """
        if self._to:
            raise LocalUseError("another daemon is taking this one's place", hint="`p2pkv status` shows who serves")
        self._to, self._until = to, now + PATIENCE_S
        self._keys = self._ledger.newest_first()
        return len(self._keys)

    def blocks(self, to: str, first: int, now: float) -> tuple[tuple[Handed, ...], int]:
        """Return some of the blocks from number `first` on, those that were used last first, and the number to go on with.

        Raises:
            LocalUseError: nothing is under way for `to`, or not any more.
        """
        self._renew(to, now)
        found: list[Handed] = []
        following, size = first, 0
        for key in self._keys[first : first + BLOCKS_AT_ONCE]:
            if size >= BYTES_AT_ONCE:
                break
            following += 1
            held = self._ledger.get(key)
            if held is not None:  # or else it was dropped meanwhile, for its time to live perhaps
                found.append(Handed(held, self._place_of(key)))
                size += held.info.length
        return tuple(found), following

    def follow(self, to: str, now: float) -> None:
        """Take that the successor has all it wants, and waits for this daemon to end.

        Raises:
            LocalUseError: nothing is under way for `to`, or not any more.
        """
        self._renew(to, now)
        self._until = float("inf")
        self.is_leaving = True

    def forget(self, to: str) -> None:
        """Take that a successor has hung up; if it was not done, all is as it was."""
        if self._to == to and not self.is_leaving:
            self._to, self._until, self._keys = "", float("inf"), ()

    def on_time(self, now: float) -> None:
        """Let time pass."""
        if now >= self._until:
            self.forget(self._to)

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        return self._until

    def _renew(self, to: str, now: float) -> None:
        if self._to != to:
            raise LocalUseError(
                "nothing is being handed over to this process",
                hint=f"a successor that says nothing for {PATIENCE_S:g} s is given up",
            )
        self._until = now + PATIENCE_S
