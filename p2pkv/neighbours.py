"""Peers on this machine, sans-IO: whose arena to map, and whose is mapped.

That a member has this machine's id is only a reason to try. Two containers of one machine cannot see each other's
sockets, two users' daemons refuse each other; so what counts is that the shell did greet the peer and map its arena.
What was tried in vain is tried again, ever more rarely, because a peer may be restarted with other rights.
"""

from dataclasses import dataclass
from math import inf
from typing import Final

RETRY_S: Final = 5.0
_DOUBLINGS_MAX: Final = 6
NEIGHBOURS_MAX: Final = 64
"""Arenas mapped at a time. Each costs address space and a socket; more engines than that share no machine."""


@dataclass(frozen=True, slots=True)
class MapArena:
    """Greet `peer` on this machine and map its arena; report with `on_mapped` or `on_unmapped`."""

    peer: str


@dataclass(slots=True)
class _Neighbour:
    boot: int
    mapped: bool = False
    failures: int = 0
    try_at: float = inf


class Neighbours:
    """The members on the machine `host_id`; none if that is empty, for then nothing is known."""

    def __init__(self, *, own_id: str, host_id: str) -> None:
        self._own_id = own_id
        self._host_id = host_id
        self._neighbours: dict[str, _Neighbour] = {}
        self.refused = 0
        """Neighbours beyond `NEIGHBOURS_MAX`, whose blocks come over the network instead."""

    def on_member(self, peer: str, *, host_id: str, boot: int, usable: bool) -> tuple[MapArena, ...]:
        """Take what membership believes of a member now."""
        if peer == self._own_id or not self._host_id or host_id != self._host_id or not usable:
            self._neighbours.pop(peer, None)
            return ()
        known = self._neighbours.get(peer)
        if known is not None and known.boot == boot:
            return ()
        if known is None and len(self._neighbours) >= NEIGHBOURS_MAX:
            self.refused += 1
            return ()
        self._neighbours[peer] = _Neighbour(boot)
        return (MapArena(peer),)

    def on_mapped(self, peer: str) -> None:
        """Take that the arena of `peer` can be read."""
        neighbour = self._neighbours.get(peer)
        if neighbour is not None:
            neighbour.mapped, neighbour.failures, neighbour.try_at = True, 0, inf

    def on_unmapped(self, peer: str, now: float) -> None:
        """Take that it cannot, or no longer."""
        neighbour = self._neighbours.get(peer)
        if neighbour is not None:
            neighbour.mapped = False
            neighbour.try_at = now + RETRY_S * 2 ** min(neighbour.failures, _DOUBLINGS_MAX)
            neighbour.failures += 1

    def is_mapped(self, peer: str) -> bool:
        """Say whether the arena of `peer` can be read from here."""
        neighbour = self._neighbours.get(peer)
        return neighbour is not None and neighbour.mapped

    def on_time(self, now: float) -> tuple[MapArena, ...]:
        """Let time pass: what is due to be tried again."""
        due = [peer for peer, neighbour in self._neighbours.items() if now >= neighbour.try_at]
        for peer in due:
            self._neighbours[peer].try_at = inf
        return tuple(MapArena(peer) for peer in due)

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        if not self._neighbours:  # asked after every message, and mostly so
            return inf
        return min((neighbour.try_at for neighbour in self._neighbours.values()), default=inf)
