"""What a bulk transport promises. `p2pkv.testing.contracts.TransportContract` is the same promise as tests.

The receiver names blocks by lease and position, never by address; it gives the destination and the digest that the
bytes must have, and is told of each block on its own, so that what arrived before a failure is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from p2pkv.fetch import Outcome
from p2pkv.generations import Place


@dataclass(frozen=True, slots=True)
class Wanted:
    """One block to bring."""

    position: int
    """In the grant of the lease."""
    length: int
    segment_bytes: int
    digest: bytes
    into: memoryview
    """Writable, `length` bytes. Undefined until the block is reported as arrived."""
    place: Place | None = None
    """Where it lies in the owner's memory, if that came with the lease; only a one-sided transport cares."""


@dataclass(frozen=True, slots=True)
class Offered:
    """One block of a lease, on the side that has it."""

    body: memoryview
    segment_bytes: int
    digest: bytes


OnBlock: TypeAlias = Callable[[Wanted, Outcome], None]
"""Called once per block as it ends: "ok" when its bytes are in place and have the right digest, "corrupt", "absent"."""


class Bodies(Protocol):
    """The blocks of one lease in grant order."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Offered: ...


OpenLease: TypeAlias = Callable[[str, int], Bodies | None]
"""(peer, lease) -> the lease's blocks in grant order, pinned; None if there is no such lease of that peer."""


class BulkTransport(Protocol):
    """Moves blocks from a peer into local memory."""

    @property
    def name(self) -> str:
        """`tcp`, `shm` or `nixl`."""
        ...

    def path(self, peer: str) -> str:
        """Return the name of the transport that blocks of `peer` take now: `name`, unless this chooses among several."""
        ...

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        """Bring `wanted`, in order.

        Raises:
            PeerGone: the peer vanished or refused. Blocks not reported before have not arrived.
            MalformedMessage: the peer does not keep to the protocol. The same.

        Cancellation: safe; a destination that was being written stays undefined, and is not written any more once
        this returns.
        """
        ...
