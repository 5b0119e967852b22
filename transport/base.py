"""What a bulk transport promises. `p2pkv.testing.contracts.TransportContract` is the same promise as tests.

The receiver names blocks by lease and position, never by address; it gives the destination and the digest that the
bytes must have, and is told of each block on its own, so that what arrived before a failure is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from p2pkv.fetch import Outcome
from p2pkv.generations import Place

STREAM_QUEUE_MAX: Final = 1024
"""Control messages waiting per address. A peer that reads slower than that is as good as gone."""
STREAM_PATIENCE_S: Final = 10.0
"""How long what was written to a stream may go unacknowledged; then it is broken, and its writer is told. Without it Linux
tries for a quarter of an hour at ever longer intervals, and what is said after a partition waits behind what was said
during it. memberlist's `TCPTimeout`."""


class DatagramSocket(Protocol):
    """Where gossip leaves and arrives, best effort. `p2pkv.transport.udp.Datagrams` is the real one."""

    def send_bytes(self, address: str, data: bytes) -> None:
        """Send, or lose, one datagram. Does not wait."""
        ...

    async def wait(self) -> None:
        """Wait until something has arrived."""
        ...

    def drain(self) -> list[tuple[bytes, str]]:
        """Return what has arrived, (payload, sender's address) each, without waiting."""
        ...


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
        """Bring `wanted`, in order; where several connections share that, each of them in order.

        Raises:
            PeerGone: the peer vanished or refused. Blocks not reported before have not arrived.
            MalformedMessage: the peer does not keep to the protocol. The same.

        Cancellation: safe; a destination that was being written stays undefined, and is not written any more once
        this returns.
        """
        ...
