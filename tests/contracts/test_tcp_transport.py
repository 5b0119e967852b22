"""TCP keeps the contract of bulk transports, keeps few connections, and gives up on whoever does not answer."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

import pytest
import trio
import trio.testing
import xxhash

from p2pkv.bench.lent import pace
from p2pkv.errors import MalformedMessage, P2pkvError, PeerGone, PeerTooSlow, VersionMismatch
from p2pkv.testing.contracts import Block, Misbehaviour, Result, ServingPeer, TransportContract
from p2pkv.transport.base import BulkTransport, Offered, OpenLease
from p2pkv.transport.bulk_header import BulkHeader
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import read_frame_exactly, welcome
from p2pkv.transport.sealed_stream import Channel, SealedStream
from p2pkv.transport.tcp import _IDLE_ADDRESSES_MAX, TcpTransport, connect, serve_bulk
from p2pkv.transport.wire import BLOCK_BYTES_MAX, Hello, LeaseRelease, Pull, encode

HELLO = Hello("c", TransportContract.NODE, "127.0.0.1:1", 1)


class TcpPeer:
    """A node that listens on loopback and serves its leases."""

    def __init__(self, peer_id: str, open_lease: OpenLease, *, cluster: str = "c", idle_s: float = 1e6) -> None:
        self.id = peer_id
        self.address = ""
        self.accepted = 0
        self.open: set[trio.SocketStream] = set()
        self._open_lease = open_lease
        self._cluster = cluster
        self._idle_s = idle_s
        self._scope = trio.CancelScope()
        self._closed = trio.Event()
        self.flow_bytes_s = 0
        """Of each connection, by the kernel's pacing; 0: as fast as it goes."""

    async def start(self, nursery: trio.Nursery) -> "TcpPeer":
        self.address = await nursery.start(self._run)
        return self

    def kill(self) -> None:
        self._scope.cancel()

    def drop_connections(self) -> None:
        for stream in self.open:
            stream.socket.close()

    async def wait_closed(self, left: int) -> None:
        while len(self.open) > left:
            await self._closed.wait()

    async def _run(self, *, task_status: trio.TaskStatus[str]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                (listener,) = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
                if self.flow_bytes_s:
                    pace(listener.socket, self.flow_bytes_s)
                task_status.started(f"127.0.0.1:{listener.socket.getsockname()[1]}")

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.accepted += 1
        self.open.add(stream)
        try:
            with suppress(P2pkvError, trio.BrokenResourceError, trio.ClosedResourceError):
                channel, caller = await self.welcome(stream)
                await self.answer(channel, caller)
        finally:
            self.open.discard(stream)
            self._closed.set()
            self._closed = trio.Event()

    async def welcome(self, stream: trio.SocketStream) -> tuple[Channel, str]:
        hello = await welcome(stream, cluster=self._cluster, node_id=self.id, peer="caller")
        return stream, hello.node

    async def answer(self, stream: Channel, caller: str) -> None:
        await serve_bulk(stream, peer=caller, open_lease=self._open_lease, idle_s=self._idle_s)


class MisbehavingPeer(TcpPeer):
    """Answers the first block of a pull as it should, and then otherwise."""

    def __init__(self, peer_id: str, how: Misbehaviour, lease: int, block: Offered) -> None:
        super().__init__(peer_id, lambda _, __: None)
        self._how = how
        self._lease = lease
        self._block = block

    async def answer(self, stream: trio.SocketStream, caller: str) -> None:
        await read_frame_exactly(stream, peer=caller)
        await stream.send_all(self._header(0, self._lease) + self._block.body)
        await stream.send_all(self._otherwise())
        if self._how is Misbehaviour.SILENT:
            await trio.sleep_forever()
        if isinstance(stream, SealedStream):
            stream.socket.shutdown(trio.socket.SHUT_WR)
        else:
            await stream.send_eof()
        while await stream.receive_some():
            pass

    def _header(self, position: int, lease: int, *, more: int = 0) -> bytes:
        block = self._block
        return BulkHeader(lease, position, len(block.body) + more, block.segment_bytes, block.digest).pack()

    def _otherwise(self) -> bytes:
        body = bytes(self._block.body)
        match self._how:
            case Misbehaviour.JUNK:
                return bytes(range(256)) * 100
            case Misbehaviour.TRUNCATED_HEADER:
                return self._header(1, self._lease)[:63]
            case Misbehaviour.TRUNCATED_BODY:
                return self._header(1, self._lease) + body[:-1]
            case Misbehaviour.WRONG_LEASE:
                return self._header(1, self._lease + 1) + body
            case Misbehaviour.WRONG_POSITION:
                return self._header(2, self._lease) + body
            case Misbehaviour.TOO_LONG:
                return self._header(1, self._lease, more=1) + body + b"x"
            case Misbehaviour.ABSURDLY_LONG:
                fields = struct.pack(
                    "<4sHHQIIII16sQ", b"P2KB", 0, 0, self._lease, 1, BLOCK_BYTES_MAX + 1, 1, 0, self._block.digest, 0
                )
                return fields + struct.pack("<Q", xxhash.xxh3_64_intdigest(fields)) + bytes(100_000)
            case Misbehaviour.CLOSED | Misbehaviour.SILENT:
                return b""


P = TypeVar("P", bound=TcpPeer)


def slow(peer: P) -> P:
    peer.flow_bytes_s = 100_000_000
    return peer


@asynccontextmanager
async def opened(timeout_s: float = 5.0) -> AsyncIterator[TcpTransport]:
    transport = TcpTransport(hello=lambda: HELLO, connect_timeout_s=timeout_s)
    try:
        yield transport
    finally:
        await transport.aclose()


class TestTcpTransport(TransportContract):
    def transport(self) -> AbstractAsyncContextManager[BulkTransport]:
        return opened()

    async def serve(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        return await TcpPeer(peer_id, open_lease).start(nursery)

    async def serve_slowly(self, nursery: trio.Nursery, peer_id: str, open_lease: OpenLease) -> ServingPeer:
        return await slow(TcpPeer(peer_id, open_lease)).start(nursery)

    async def serve_misbehaving(
        self, nursery: trio.Nursery, peer_id: str, how: Misbehaviour, lease: int, block: Offered
    ) -> ServingPeer:
        return await MisbehavingPeer(peer_id, how, lease, block).start(nursery)


BLOCKS = [Block.random(5000, i) for i in range(8)]
LENT = TransportContract.lending(*(block.offered() for block in BLOCKS))
pull = TransportContract.pull
run = TestTcpTransport().run


def test_one_connection_serves_one_pull_after_another() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await TcpPeer("owner", LENT).start(nursery)
        for i, block in enumerate(BLOCKS):
            assert await pull(transport, peer, [block.wanted(i)]) == Result([(i, "ok")], None)
        assert peer.accepted == 1

    run(main)


def test_few_connections_are_kept_after_many_pulls_at_once() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await TcpPeer("owner", LENT).start(nursery)
        async with trio.open_nursery() as pulls:
            for i, block in enumerate(BLOCKS):
                pulls.start_soon(pull, transport, peer, [block.wanted(i)])
        assert peer.accepted == len(BLOCKS)
        await peer.wait_closed(2)
        assert len(peer.open) == 2

    run(main)


def test_connections_are_kept_to_so_many_peers_and_no_more() -> None:
    """In a mesh that scales up and down all day, the sockets of those that left would else pile up."""

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        assert isinstance(transport, TcpTransport)
        first = await TcpPeer("first", LENT).start(nursery)
        last = await TcpPeer("last", LENT).start(nursery)
        await pull(transport, first, [BLOCKS[0].wanted(0)])
        for number in range(_IDLE_ADDRESSES_MAX):  # other addresses, without as many real listeners
            transport._idle[f"elsewhere:{number + 1}"] = []
        await pull(transport, last, [BLOCKS[0].wanted(0)])
        await first.wait_closed(0)
        assert len(last.open) == 1
        assert len(transport._idle) <= _IDLE_ADDRESSES_MAX + 1
        await pull(transport, last, [BLOCKS[1].wanted(1)])
        assert last.accepted == 1

    run(main)


def test_closing_the_transport_closes_what_it_kept() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await TcpPeer("owner", LENT).start(nursery)
        assert isinstance(transport, TcpTransport)
        await pull(transport, peer, [BLOCKS[0].wanted(0)])
        assert len(peer.open) == 1
        await transport.aclose()
        await peer.wait_closed(0)

    run(main)


@pytest.mark.parametrize("how", [Misbehaviour.WRONG_LEASE, Misbehaviour.TRUNCATED_BODY], ids=lambda how: how.name)
def test_a_connection_on_which_something_went_wrong_is_not_used_again(how: Misbehaviour) -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await MisbehavingPeer("owner", how, 7, BLOCKS[0].offered()).start(nursery)
        for attempt in (1, 2):
            result = await pull(transport, peer, [BLOCKS[0].wanted(0), BLOCKS[1].wanted(1)])
            assert result.error is not None
            assert peer.accepted == attempt
            await peer.wait_closed(0)

    run(main)


class HangsUp(TcpPeer):
    """Closes the stream where the first block is due, as often as it is told to."""

    times = 0

    async def answer(self, stream: trio.SocketStream, caller: str) -> None:
        if self.times:
            self.times -= 1
            await read_frame_exactly(stream, peer=caller)
        else:
            await super().answer(stream, caller)


def test_a_peer_that_hangs_up_before_the_first_block_is_gone_and_not_called_for_ever() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = HangsUp("owner", LENT)
        await peer.start(nursery)
        peer.times = 1
        assert isinstance((await pull(transport, peer, [BLOCKS[0].wanted(0)])).error, PeerGone)
        assert await pull(transport, peer, [BLOCKS[0].wanted(0)]) == Result([(0, "ok")], None)
        peer.drop_connections()
        peer.times = 1
        assert isinstance((await pull(transport, peer, [BLOCKS[0].wanted(0)])).error, PeerGone)
        assert peer.accepted == 3

    run(main)


def test_a_block_with_another_digest_than_granted_is_refused_before_its_bytes_are_taken() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        granted, other = Block.random(5000), Block.random(5000, 1)
        peer = await TcpPeer("owner", TransportContract.lending(other.offered())).start(nursery)
        result = await pull(transport, peer, [granted.wanted(0)])
        assert isinstance(result.error, MalformedMessage)
        assert set(granted.room) == {0xEE}

    run(main)


def test_whoever_refuses_a_call_is_gone_and_the_error_says_why() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await TcpPeer("owner", LENT).start(nursery)
        peer.kill()
        await trio.testing.wait_all_tasks_blocked()
        result = await pull(transport, peer, [BLOCKS[0].wanted(0)])
        assert isinstance(result.error, PeerGone)
        assert "Connection refused" in str(result.error)

    run(main)


def test_the_bytes_that_were_sent_are_counted() -> None:
    sent: list[int] = []

    async def main() -> None:
        pair = socket.socketpair()
        ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in pair)
        async with ours, theirs:
            await theirs.send_all(frame(encode(Pull(7, b"\x03"))) + frame(encode(Pull(8, b"\x01"))))
            await theirs.send_eof()
            await serve_bulk(ours, peer=TransportContract.NODE, open_lease=LENT, idle_s=10, on_sent=sent.append)

    trio.run(main)
    assert sent == [10_000, 0]


def test_a_cancelled_pull_hangs_up() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await MisbehavingPeer("owner", Misbehaviour.SILENT, 7, BLOCKS[0].offered()).start(nursery)
        with trio.CancelScope() as scope:
            await pull(transport, peer, [BLOCKS[0].wanted(0), BLOCKS[1].wanted(1)], also=lambda _, __: scope.cancel())
        (theirs,) = peer.open
        assert await theirs.receive_some() == b""

    run(main)


def test_a_kept_connection_that_the_peer_lets_go_when_idle_is_replaced_without_a_word() -> None:
    clock = trio.testing.MockClock()

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await TcpPeer("owner", LENT, idle_s=300).start(nursery)
        for i in range(3):
            assert await pull(transport, peer, [BLOCKS[i].wanted(i)]) == Result([(i, "ok")], None)
            await trio.testing.wait_all_tasks_blocked()
            assert len(peer.open) == 1
            while peer.open:  # one jump may come before a busy peer has begun to wait
                clock.jump(301)
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert peer.accepted == 3

    run(main, clock)


def test_kept_connections_to_a_peer_that_died_are_let_go() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        assert isinstance(transport, TcpTransport)
        dies, stays = [await TcpPeer(name, LENT).start(nursery) for name in ("dies", "stays")]
        for peer in (dies, stays):
            assert (await pull(transport, peer, [BLOCKS[0].wanted(0)])).error is None
        kept = [stream for streams in transport._idle.values() for _, stream in streams]
        dies.kill()
        await dies.wait_closed(0)
        await trio.testing.wait_all_tasks_blocked()
        transport.let_go_of_closed()
        assert [stream.socket.fileno() >= 0 for stream in kept] == [False, True]
        assert list(transport._idle) == [stays.address]
        assert (await pull(transport, stays, [BLOCKS[0].wanted(0)])).error is None
        assert stays.accepted == 1

    run(main)


def test_whoever_does_not_answer_a_call_is_too_slow() -> None:
    """The kernel takes calls for a listener that never looks at them."""
    clock = trio.testing.MockClock()

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        results: list[Result] = []

        async def call() -> None:
            peer = TcpPeer("owner", LENT)
            peer.address = address
            results.append(await pull(transport, peer, [BLOCKS[0].wanted(0)]))

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        assert results == []
        clock.jump(5.1)
        while not results:
            await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
        assert isinstance(results[0].error, PeerTooSlow)
        assert results[0].outcomes == []

    run(main, clock)


def test_a_node_of_another_cluster_is_not_pulled_from() -> None:
    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await TcpPeer("owner", LENT, cluster="another").start(nursery)
        result = await pull(transport, peer, [BLOCKS[0].wanted(0)])
        assert isinstance(result.error, VersionMismatch)
        await peer.wait_closed(0)

    run(main)


@pytest.mark.parametrize(
    "address", ["", "nonsense", "127.0.0.1:0", "\x00:1", "[::1%\x00]:1", "a..b:1", "x" * 300 + ":1"]
)
def test_an_address_that_makes_no_sense_is_a_peer_that_is_gone(address: str) -> None:
    async def main() -> None:
        with pytest.raises(PeerGone):
            await connect(address, HELLO, timeout_s=5)

    trio.run(main)


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        pytest.param(frame(encode(LeaseRelease(1))), True, id="another message"),
        pytest.param(frame(b"\xc1"), True, id="garbage"),
        pytest.param(b"\xff\xff\xff\xff", True, id="oversized frame"),
        pytest.param(frame(encode(Pull(7, b"\x01")))[:-1], False, id="half a pull"),
        pytest.param(b"", False, id="nothing"),
    ],
)
def test_a_caller_that_does_not_pull_is_refused_or_left(said: bytes, *, refused: bool) -> None:
    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        await theirs.send_all(said)
        await theirs.send_eof()
        await serve_bulk(ours, peer="caller", open_lease=LENT, idle_s=10)

    if refused:
        with pytest.raises(MalformedMessage):
            trio.run(main)
    else:
        trio.run(main)


def test_a_caller_that_hangs_up_in_the_middle_of_a_block_ends_only_its_own_stream() -> None:
    large = Block.random(24 * 2**20)

    async def main(nursery: trio.Nursery, transport: BulkTransport) -> None:
        peer = await TcpPeer("owner", TransportContract.lending(large.offered())).start(nursery)
        stream, node = await connect(peer.address, HELLO, timeout_s=5)
        assert node == "owner"
        await stream.send_all(frame(encode(Pull(7, b"\x01"))))
        await stream.receive_some(64)
        await trio.aclose_forcefully(stream)
        await peer.wait_closed(0)
        assert await pull(transport, peer, [large.wanted(0)]) == Result([(0, "ok")], None)

    run(main)
