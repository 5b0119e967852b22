"""Other processes that use this node's id, as after its state folder was copied to a second machine.

The greater record of the two is the member; every other node sends to its address, and whatever was meant for the lesser
one is lost to it. Of the two, only the lesser hears of the other by gossip, because the greater record is what spreads.
So whoever hears of the other tells it directly, over the stream, and then both can say so. Source: ours; Serf only logs a
name conflict where it is noticed, and takes a vote.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import Final

TELL_PERIOD_S: Final = 60.0
"""How often one other process is told of us. It keeps "last heard" of both fresh, at two small messages a minute."""
TELL_GAP_S: Final = 5.0
"""Time between any two that are told: whoever makes up addresses must not have us call them all."""
DUPLICATES_MAX: Final = 8
"""Addresses remembered; beyond it the one not heard of for longest goes."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Another process with our id."""

    address: str
    boot: int
    """Greatest that was heard; 0 if it was not said."""
    state: int
    """What is said of it; 0 where it speaks itself."""
    first_at: float
    heard_at: float
    told_at: float


class Duplicates:
    """Remembers them by address, and when each was told."""

    def __init__(self) -> None:
        self._found: dict[str, Duplicate] = {}  # the one heard of last is last
        self._told_at = -inf

    def heard(self, *, boot: int, address: str, state: int, now: float) -> bool:
        """Note one that spoke, or was spoken of; return whether to tell it of us now."""
        known = self._found.pop(address, None)
        if known is None and len(self._found) >= DUPLICATES_MAX:
            del self._found[next(iter(self._found))]
        told_at, first_at, known_boot = (
            (known.told_at, known.first_at, known.boot) if known is not None else (-inf, now, 0)
        )
        due = now >= told_at + TELL_PERIOD_S and now >= self._told_at + TELL_GAP_S
        if due:
            told_at = self._told_at = now
        self._found[address] = Duplicate(address, max(boot, known_boot), state, first_at, now, told_at)
        return due

    def on_link_lost(self, address: str) -> None:
        """Note that one could not be told: it is to be when it is heard of next."""
        known = self._found.get(address)
        if known is not None:
            self._found[address] = replace(known, told_at=-inf)

    def found(self) -> tuple[Duplicate, ...]:
        """Return all that are remembered, the one heard of last first."""
        return tuple(reversed(self._found.values()))
