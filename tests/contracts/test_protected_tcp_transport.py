"""Blocks that are authenticated but not encrypted, or neither, by agreement of both ends."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from p2pkv.testing.contracts import Block, Misbehaviour, Result, ServingPeer, TransportContract
from p2pkv.transport.base import BulkTransport, Offered, OpenLease
from p2pkv.transport.bulk_header import HEADER_BYTES
from p2pkv.transport.bulk_protection import BulkProtection, accepted
from p2pkv.transport.mac import MAC_PIECE_BYTES
from p2pkv.transport.sealed_handshake import welcome_sealed
from p2pkv.transport.sealed_stream import Channel, SealedStream
from p2pkv.transport.tcp import TcpTransport
from p2pkv.transport.wire import Hello
from tests.contracts import test_tcp_transport as plain
from tests.contracts.test_sealed_tcp_transport import KEY, Held, Relay


class Accepting:
    """A node with a keyring that accepts `weakest`."""

    weakest: BulkProtection = "mac"

    async def welcome(self, stream: trio.SocketStream) -> tuple[Channel, str]:
        hello, sealed = await welcome_sealed(
            stream, cluster="c", node_id=self.id, peer="caller", ring=Held(KEY), bulk=accepted(self.weakest)
        )
        return sealed, hello.node


class AcceptingPeer(Accepting, plain.TcpPeer):
    """One that serves."""


class TaggedByHand:
    """Tags what is sent as a header and a body, as the one side would that keeps to the format but not to the rest."""

    def __init__(self, stream: SealedStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes) -> None:
        pieces = [data[:HEADER_BYTES]] if data else []
        pieces += [data[at : at + MAC_PIECE_BYTES] for at in range(HEADER_BYTES, len(data), MAC_PIECE_BYTES)]
        tagger = self._stream.tagger
        assert tagger is not None
        for piece in pieces:
            await self._stream.below.send_all(piece + tagger.tag(piece))

    async def receive_some(self, count: int | None = None) -> bytes:
        return await self._stream.receive_some(count)

    async def send_eof(self) -> None:
        below = self._stream.below
        assert isinstance(below, trio.SocketStream)
        await below.send_eof()


class MisbehavingMacPeer(Accepting, plain.MisbehavingPeer):
    async def answer(self, stream: trio.SocketStream, caller: str) -> None:
        assert isinstance(stream, SealedStream)
        await super().answer(TaggedByHand(stream), caller)  # type: ignore[arg-type]


@asynccontextmanager
async def opened(weakest: BulkProtection) -> AsyncIterator[TcpTransport]:
    hello = Hello("c", TransportContract.NODE, "127.0.0.1:1", 1, bulk=accepted(weakest))
    transport = TcpTransport(hello=lambda: hello, connect_timeout_s=5.0, ring=Held(KEY))
    try:
        yield transport
    finally:
        await transport.aclose()


class TestMacTcpTransport(TransportContract):
    def transport(self) -> AbstractAsyncContextManager[BulkTransport]:
        return opened("mac")

    async def serve(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        return await AcceptingPeer(peer_id, open_lease).start(nursery)

    async def serve_slowly(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        return await plain.slow(AcceptingPeer(peer_id, open_lease)).start(nursery)

    async def serve_misbehaving(
        self, nursery: trio.Nursery, peer_id: str, how: Misbehaviour, lease: int, block: Offered
    ) -> ServingPeer:
        return await MisbehavingMacPeer(peer_id, how, lease, block).start(nursery)


run = TestMacTcpTransport().run
pull = TransportContract.pull
BLOCK = Block.random(50_000, 3)
LENT = TransportContract.lending(BLOCK.offered())


async def relayed(
    nursery: trio.Nursery, ours: BulkProtection, theirs: BulkProtection, *, spoil_at: int | None = None
) -> tuple[Result, bytes]:
    """Pull BLOCK through a relay; return what became of it and what the relay saw."""
    peer = AcceptingPeer("owner", LENT)
    peer.weakest = theirs
    await peer.start(nursery)
    relay = await Relay(peer.address, spoil_at=spoil_at).start(nursery)
    peer.address = relay.address
    async with opened(ours) as transport:
        return await pull(transport, peer, [BLOCK.wanted(0)]), bytes(relay.seen)


@pytest.mark.parametrize(
    ("ours", "theirs", "readable"),
    [
        ("off", "off", True),
        ("off", "mac", True),
        ("mac", "off", True),
        ("mac", "mac", True),
        ("mac", "aead", False),
        ("aead", "off", False),
    ],
)
def test_the_stricter_end_decides_what_can_be_read_on_the_way(
    ours: BulkProtection, theirs: BulkProtection, readable: bool
) -> None:
    async def main(nursery: trio.Nursery, _: BulkTransport) -> None:
        result, seen = await relayed(nursery, ours, theirs)
        assert result == Result([(0, "ok")], None)
        assert (bytes(BLOCK.offered().body[100:400]) in seen) == readable
        assert b"owner" not in seen

    run(main)


@pytest.mark.parametrize("spoil_at", [2, 4, 40, 100, 140, 200, 30_000, 50_140])
def test_a_bit_flipped_in_what_is_only_authenticated_gives_no_block(spoil_at: int) -> None:
    async def main(nursery: trio.Nursery, _: BulkTransport) -> None:
        result, _ = await relayed(nursery, "mac", "mac", spoil_at=spoil_at)
        assert result.outcomes == []
        assert result.error is not None

    run(main)


def test_a_bit_flipped_in_what_is_not_protected_is_caught_by_the_digest() -> None:
    async def main(nursery: trio.Nursery, _: BulkTransport) -> None:
        result, _ = await relayed(nursery, "off", "off", spoil_at=30_000)
        assert result == Result([(0, "corrupt")], None)

    run(main)


@pytest.mark.parametrize("spoil_at", range(0, 90, 7))
def test_nobody_on_the_way_can_talk_two_ends_into_less(spoil_at: int) -> None:
    """Whatever is changed in the answer that names the protection, the connection ends."""

    async def main(nursery: trio.Nursery, _: BulkTransport) -> None:
        result, _ = await relayed(nursery, "off", "aead", spoil_at=spoil_at)
        assert result.outcomes == []
        assert result.error is not None

    run(main)
