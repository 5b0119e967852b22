"""Sealed TCP keeps the same contract, and bytes that were altered on their way are not taken for a block."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from p2pkv.errors import PeerGone, SealRefused
from p2pkv.testing.contracts import Block, Misbehaviour, ServingPeer, TransportContract
from p2pkv.transport.base import BulkTransport, Offered, OpenLease
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.records import RECORD_BYTES_MAX
from p2pkv.transport.sealed_handshake import welcome_sealed
from p2pkv.transport.sealed_stream import Channel
from p2pkv.transport.tcp import TcpTransport
from p2pkv.transport.wire import Hello
from tests.contracts import test_tcp_transport as plain

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


class Held:
    """A ring that changes."""

    def __init__(self, *keys: bytes) -> None:
        self.ring = KeyRing(keys)

    def __call__(self) -> KeyRing:
        return self.ring


class Sealed:
    ring = Held(KEY)

    async def welcome(self, stream: trio.SocketStream) -> tuple[Channel, str]:
        hello, sealed = await welcome_sealed(stream, cluster="c", node_id=self.id, peer="caller", ring=self.ring)
        return sealed, hello.node


class SealedPeer(Sealed, plain.TcpPeer):
    """A node with a keyring."""


class MisbehavingSealedPeer(Sealed, plain.MisbehavingPeer):
    """One that has the key and lies all the same."""


@asynccontextmanager
async def opened(ring: Held | None = None) -> AsyncIterator[TcpTransport]:
    hello = Hello("c", TransportContract.NODE, "127.0.0.1:1", 1)
    transport = TcpTransport(hello=lambda: hello, connect_timeout_s=5.0, ring=ring or Held(KEY))
    try:
        yield transport
    finally:
        await transport.aclose()


class TestSealedTcpTransport(TransportContract):
    def transport(self) -> AbstractAsyncContextManager[BulkTransport]:
        return opened()

    async def serve(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        return await SealedPeer(peer_id, open_lease).start(nursery)

    async def serve_slowly(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        return await plain.slow(SealedPeer(peer_id, open_lease)).start(nursery)

    async def serve_misbehaving(
        self, nursery: trio.Nursery, peer_id: str, how: Misbehaviour, lease: int, block: Offered
    ) -> ServingPeer:
        return await MisbehavingSealedPeer(peer_id, how, lease, block).start(nursery)


run = TestSealedTcpTransport().run
pull = TransportContract.pull
SIZES = [1, RECORD_BYTES_MAX - 1, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, 3 * RECORD_BYTES_MAX + 5]


@pytest.mark.parametrize("size", SIZES)
def test_blocks_of_any_size_arrive_whole(size: int) -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        block = Block.random(size, 1)
        peer = await SealedPeer("owner", TransportContract.lending(block.offered())).start(nursery)
        wanted = block.wanted(0)
        result = await pull(transport, peer, [wanted])
        assert (result.outcomes, result.error) == ([(0, "ok")], None)
        assert block.has_arrived
        assert block.margins_are_whole

    run(main)


class Relay:
    """Passes bytes on, and alters the ones at `spoil_at` of what the owner sends."""

    def __init__(self, to: str, *, spoil_at: int | None = None) -> None:
        self.address = ""
        self.seen = bytearray()
        self._port = int(to.rpartition(":")[2])
        self._spoil_at = spoil_at

    async def start(self, nursery: trio.Nursery) -> "Relay":
        listeners = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
        self.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        return self

    async def _serve(self, caller: trio.SocketStream) -> None:
        owner = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with owner, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass, caller, owner, None)
            nursery.start_soon(self._pass, owner, caller, self._spoil_at)

    async def _pass(self, source: trio.SocketStream, to: trio.SocketStream, spoil_at: int | None) -> None:
        done = 0
        try:
            while data := await source.receive_some(4096):
                changed = bytearray(data)
                if spoil_at is not None and done <= spoil_at < done + len(data):
                    changed[spoil_at - done] ^= 1
                done += len(data)
                self.seen += data
                await to.send_all(changed)
            await to.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(to)


BLOCK = Block.random(50_000, 3)
# What the owner sends: an answer of 4 + 1 + 32 + ack + 16 bytes, a header's record, the body's record.
SPOILED = [2, 4, 20, 40, 70, 100, 140, 160, 30_000, 50_150]


@pytest.mark.parametrize("spoil_at", SPOILED)
def test_a_bit_flipped_on_the_way_ends_the_pull_and_gives_no_block(spoil_at: int) -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await SealedPeer("owner", TransportContract.lending(BLOCK.offered())).start(nursery)
        relay = await Relay(peer.address, spoil_at=spoil_at).start(nursery)
        peer.address = relay.address
        result = await pull(transport, peer, [BLOCK.wanted(0)])
        assert result.outcomes == []
        assert result.error is not None

    run(main)


def test_nobody_on_the_way_sees_a_block_or_a_name() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await SealedPeer("owner", TransportContract.lending(BLOCK.offered())).start(nursery)
        relay = await Relay(peer.address).start(nursery)
        peer.address = relay.address
        assert (await pull(transport, peer, [BLOCK.wanted(0)])).error is None
        assert len(relay.seen) > 50_000
        for piece in (
            b"owner",
            TransportContract.NODE.encode(),
            BLOCK.offered().digest,
            bytes(BLOCK.offered().body[:64]),
        ):
            assert piece not in relay.seen

    run(main)


def test_a_peer_with_another_key_is_refused_and_both_know_why() -> None:
    async def main(nursery: trio.Nursery, _: BulkTransport) -> None:
        peer = await SealedPeer("owner", TransportContract.lending(BLOCK.offered())).start(nursery)
        async with opened(Held(OTHER)) as transport:
            result = await pull(transport, peer, [BLOCK.wanted(0)])
        assert result.outcomes == []
        assert "your primary key is not in the keyring here" in str(result.error)

    run(main)


def test_a_peer_without_a_key_is_refused() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        sealed = await SealedPeer("owner", TransportContract.lending(BLOCK.offered())).start(nursery)
        in_clear = await plain.TcpPeer("owner", TransportContract.lending(BLOCK.offered())).start(nursery)
        async with plain.opened() as without:
            result = await pull(without, sealed, [BLOCK.wanted(0)])
        assert "this mesh is encrypted" in str(result.error)
        result = await pull(transport, in_clear, [BLOCK.wanted(0)])
        assert "this node has no keyring" in str(result.error)

    run(main)


def test_a_kept_connection_is_not_used_under_a_key_that_is_no_longer_the_primary_one() -> None:
    async def main(nursery: trio.Nursery, _: BulkTransport) -> None:
        peer = SealedPeer("owner", TransportContract.lending(BLOCK.offered()))
        peer.ring = Held(KEY, OTHER)
        await peer.start(nursery)
        ring = Held(KEY, OTHER)
        async with opened(ring) as transport:
            for keys, accepted in (((KEY, OTHER), 1), ((KEY, OTHER), 1), ((OTHER, KEY), 2), ((OTHER,), 2)):
                ring.ring = KeyRing(keys)
                assert (await pull(transport, peer, [BLOCK.wanted(0)])).error is None
                assert peer.accepted == accepted

    run(main)


def test_a_key_that_was_removed_opens_nothing_on_connections_that_it_made() -> None:
    async def main(nursery: trio.Nursery, _: BulkTransport) -> None:
        peer = SealedPeer("owner", TransportContract.lending(BLOCK.offered()))
        peer.ring = Held(KEY)
        await peer.start(nursery)
        async with opened(Held(KEY)) as transport:
            assert (await pull(transport, peer, [BLOCK.wanted(0)])).error is None
            peer.ring.ring = KeyRing((OTHER,))
            result = await pull(transport, peer, [BLOCK.wanted(0)])
            assert result.outcomes == []
            assert isinstance(result.error, PeerGone | SealRefused) or "not in the keyring" in str(result.error)

    run(main)
