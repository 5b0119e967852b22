"""The transfers under way, sans-IO: which block each brings, its lease at the peer, and when it is late.

No two of them bring one block. Where a second peer is to bring what a late transfer has not, its grant waits until that
one has been broken off and nobody writes into our memory any more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.effects import SendStream
from p2pkv.fetch import FetchEffect, StopTransfer
from p2pkv.generations import Place
from p2pkv.links import Links
from p2pkv.transport.wire import LeaseRelease, LeaseRenew

LATE_AFTER_S_MIN: Final = 0.05
"""No transfer is late before that."""
RENEWAL_S_MIN: Final = 0.5


@dataclass(frozen=True, slots=True)
class Granted:
    """What a peer granted in answer to a question, and we take of it."""

    question: int
    peer: str
    address: str
    lease: int
    lease_s: float
    blocks: tuple[tuple[int, BlockInfo], ...]
    places: tuple[Place, ...]
    deadline: float
    direct: bool = False
    """Its blocks are on their way already, and its lease ends with them."""

    def only(self, wanted: Sequence[int]) -> "Granted":
        """Return it with those blocks alone that stand at `wanted`."""
        places = tuple(self.places[i] for i in wanted) if self.places else ()
        return replace(self, blocks=tuple(self.blocks[i] for i in wanted), places=places)


@dataclass(slots=True)
class Transfer:
    """One under way."""

    granted: Granted
    open: dict[BlockKey, int]
    """Blocks not reported yet, and their lengths."""
    started_at: float
    expected_s: float
    late_at: float
    renew_at: float
    moved_bytes: int = 0
    blamed: bool = False
    stopped: bool = False
    late: bool = False
    waiting: list[Granted] = field(default_factory=list)
    """Grants for blocks that this one holds until it has ended."""


class Moving:
    """By number, and by the blocks they bring."""

    def __init__(self, *, links: Links, lease_s: float) -> None:
        """`lease_s` is the longest that leases are asked for."""
        self._links = links
        self._lease_s = lease_s
        self._open: dict[int, Transfer] = {}
        self._mover: dict[BlockKey, int] = {}
        self.renewed = 0

    def __len__(self) -> int:
        return len(self._open)

    def get(self, number: int) -> Transfer | None:
        """Return a transfer under way."""
        return self._open.get(number)

    def mover(self, key: BlockKey) -> int | None:
        """Return the number of the transfer that brings `key`, or has not yet let go of its place."""
        return self._mover.get(key)

    def is_stopped(self, number: int) -> bool:
        """Say whether a transfer is being broken off."""
        return self._open[number].stopped

    def may_be_stopped(self, number: int) -> bool:
        """Say whether a transfer is being broken off, or late enough for that."""
        return self._open[number].stopped or self._open[number].late

    def wait_for(self, number: int, granted: Granted) -> None:
        """Keep a grant until a transfer has ended."""
        self._open[number].waiting.append(granted)

    def begin(self, number: int, granted: Granted, *, queued_bytes: int, now: float) -> Transfer:
        """Note a transfer of blocks that no other brings; `queued_bytes` are under way from the peer before it."""
        blocks = {info.key: info.length for _, info in granted.blocks}
        link = self._links.estimate(granted.peer, now)
        expected_s = link.round_trip_s + (queued_bytes + sum(blocks.values())) / link.bandwidth_bytes_s
        stretch = self._links.late_stretch(granted.peer)
        late_at = inf if stretch is None else now + max(LATE_AFTER_S_MIN, stretch * expected_s)
        renew_at = now + _renewal_s(granted) if granted.deadline > now + granted.lease_s else inf
        transfer = Transfer(granted, blocks, now, expected_s, late_at if late_at < granted.deadline else inf, renew_at)
        self._open[number] = transfer
        self._mover.update(dict.fromkeys(blocks, number))
        self._links.on_started(granted.peer, now)
        return transfer

    def settle(self, number: int, key: BlockKey) -> int | None:
        """Take that one block's way is over; return its length, None if it was so before."""
        transfer = self._open.get(number)
        length = transfer.open.pop(key, None) if transfer is not None else None
        if length is not None:
            del self._mover[key]
        return length

    def end(self, number: int) -> Transfer | None:
        """Take that a transfer is over, with its blocks."""
        transfer = self._open.pop(number, None)
        if transfer is not None:
            for key in transfer.open:
                del self._mover[key]
        return transfer

    def stop(self, number: int) -> tuple[FetchEffect, ...]:
        """Have a transfer broken off, and its lease end at once, not only when the shell is through."""
        transfer = self._open[number]
        if transfer.stopped:
            return ()
        transfer.stopped, transfer.renew_at, transfer.late_at = True, inf, inf
        return StopTransfer(number), SendStream(transfer.granted.address, LeaseRelease(transfer.granted.lease))

    def renew(self, now: float) -> Iterator[SendStream]:
        """Yield what asks owners to hold leases for longer whose transfers will take longer."""
        for transfer in self._open.values():
            if now >= transfer.renew_at:
                left_s = min(transfer.granted.deadline - now, self._lease_s)
                renewal_s = _renewal_s(transfer.granted)
                transfer.renew_at = now + renewal_s if transfer.granted.deadline > now + left_s else inf
                self.renewed += 1
                message = LeaseRenew(transfer.granted.lease, max(0, int(left_s * 1000)))
                yield SendStream(transfer.granted.address, message, transfer.granted.deadline)

    def to_hedge(self, now: float) -> Sequence[Transfer]:
        """Return those that have just become late; each once."""
        found = [transfer for transfer in self._open.values() if now >= transfer.late_at]
        for transfer in found:
            transfer.late, transfer.late_at = True, inf
        return found

    def next_deadline(self) -> float:
        """Return when there will be something to renew, or late; infinity if never."""
        return min((min(one.renew_at, one.late_at) for one in self._open.values()), default=inf)


def _renewal_s(granted: Granted) -> float:
    """Return how long before a lease is renewed: half of it, but no peer makes us write all the time."""
    return max(RENEWAL_S_MIN, granted.lease_s / 2)
