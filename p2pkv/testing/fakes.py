"""Stand-ins that keep the promises of the real things, in memory: a tier, and a network of bulk transports.

They are fakes, not mocks: they run through the same contracts as what they stand for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from p2pkv.blocks import block_digest
from p2pkv.errors import PeerGone
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.transport.base import Offered, OnBlock, OpenLease, Wanted

_PIECE_BYTES: Final = 64 * 1024
"""Bytes moved between two checkpoints, so that a transfer can be cancelled, or its peer lost, in the middle."""


class MemoryTier:
    """Bytes at slots in ordinary memory. See `p2pkv.tiers.base.Tier` for the promise of each method."""

    name: Final = "memory"

    def __init__(self, capacity_bytes: int) -> None:
        self._bytes = bytearray(capacity_bytes)
        self._generations = [0] * (capacity_bytes // PAGE_BYTES)

    def begin(self, slot: Slot, length: int) -> memoryview:
        """See `Tier`."""
        for page in self._pages(slot):
            self._generations[page] |= 1
        return memoryview(self._bytes)[slot.offset : slot.offset + length]

    def seal(self, slot: Slot) -> None:
        """See `Tier`."""
        for page in self._pages(slot):
            assert self._generations[page] & 1, "sealed twice"
            self._generations[page] += 1

    def read(self, slot: Slot, length: int) -> memoryview:
        """See `Tier`."""
        return memoryview(self._bytes)[slot.offset : slot.offset + length].toreadonly()

    def generation(self, slot: Slot) -> int:
        """See `Tier`."""
        generations = [self._generations[page] for page in self._pages(slot)]
        return sum(one & ~1 for one in generations) + (1 if any(one & 1 for one in generations) else 0)

    def close(self) -> None:
        """See `Tier`."""
        self._generations = []

    def _pages(self, slot: Slot) -> range:
        return range(slot.offset // PAGE_BYTES, -(-(slot.offset + slot.size) // PAGE_BYTES))


@dataclass(slots=True)
class MemoryPeer:
    """A node that serves its leases to `MemoryTransport`s. `p2pkv.testing.contracts.ServingPeer` names the methods."""

    id: str
    address: str
    open_lease: OpenLease
    alive: bool = True

    def kill(self) -> None:
        """Answer nobody any more."""
        self.alive = False

    def drop_connections(self) -> None:
        """Do nothing: there are no connections here."""


@dataclass(slots=True)
class MemoryNetwork:
    """Who answers at which address."""

    peers: dict[str, MemoryPeer] = field(default_factory=dict)

    def serve(self, peer_id: str, open_lease: OpenLease) -> MemoryPeer:
        """Have a new node serve its leases; return it."""
        peer = MemoryPeer(peer_id, f"memory:{len(self.peers) + 1}", open_lease)
        self.peers[peer.address] = peer
        return peer


class MemoryTransport:
    """The receiving side. See `p2pkv.transport.base.BulkTransport`."""

    name: Final = "memory"

    def __init__(self, network: MemoryNetwork, *, node: str) -> None:
        self._network = network
        self._node = node

    def path(self, peer: str) -> str:  # noqa: ARG002 - the same for all
        """See `BulkTransport`."""
        return self.name

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        """See `BulkTransport`."""
        await trio.lowlevel.checkpoint()
        serving = self._network.peers.get(address)
        if serving is None or not serving.alive or serving.id != peer:
            raise PeerGone(f"nobody of that name answers at {address}", peer=peer)
        for one in wanted:
            offered = serving.open_lease(self._node, lease)
            block = offered[one.position] if offered is not None and one.position < len(offered) else None
            if block is None:
                on_block(one, "absent")
                continue
            if len(block.body) != one.length or block.digest != one.digest:
                raise PeerGone("block that is not the one granted", peer=peer)
            await self._copy(serving, block, one)
            on_block(one, "ok" if block_digest(one.into, one.segment_bytes) == one.digest else "corrupt")

    @staticmethod
    async def _copy(serving: MemoryPeer, block: Offered, one: Wanted) -> None:
        for start in range(0, one.length, _PIECE_BYTES):
            await trio.lowlevel.checkpoint()
            if not serving.alive:
                raise PeerGone(f"gone {one.length - start} bytes early", peer=serving.id)
            one.into[start : start + _PIECE_BYTES] = block.body[start : start + _PIECE_BYTES]
