"""The fakes keep the promises of what they stand for."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from p2pkv.testing.contracts import CAPACITY_BYTES, ServingPeer, TierContract, TransportContract
from p2pkv.testing.fakes import MemoryNetwork, MemoryTier, MemoryTransport
from p2pkv.tiers.base import Tier
from p2pkv.transport.base import BulkTransport, OpenLease


class TestMemoryTier(TierContract):
    @pytest.fixture
    def tier(self) -> Iterator[Tier]:
        tier = MemoryTier(CAPACITY_BYTES)
        yield tier
        tier.close()


class TestMemoryTransport(TransportContract):
    network = MemoryNetwork()

    def transport(self) -> AbstractAsyncContextManager[BulkTransport]:
        @asynccontextmanager
        async def made() -> AsyncIterator[BulkTransport]:
            yield MemoryTransport(self.network, node=self.NODE)

        return made()

    async def serve(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        return self.network.serve(peer_id, open_lease)
