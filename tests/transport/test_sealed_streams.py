"""Sealed control streams: both sides prove that they have a key, and who has none can neither speak nor replay."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.errors import MalformedMessage, P2pkvError, PeerError, PeerGone, SealRefused, VersionMismatch
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import greet, read_frame_exactly, welcome
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.records import RecordOpener, RecordSealer
from p2pkv.transport.sealed_handshake import greet_sealed, welcome_sealed
from p2pkv.transport.sealed_stream import Channel, SealedStream
from p2pkv.transport.streams import ControlStreams, serve_control
from p2pkv.transport.wire import AnyMessage, Hello, HelloAck, LeaseRelease, SummaryPage, encode

A, B = bytes([1]) * 32, bytes([2]) * 32
HELLO = Hello("c", "a", "127.0.0.1:1", 0)


class Held:
    """A ring that changes."""

    def __init__(self, *keys: bytes) -> None:
        self.ring = KeyRing(keys)

    def __call__(self) -> KeyRing:
        return self.ring


class Peer:
    """A node that listens, with a keyring or without, and keeps what it is told and why it hung up."""

    def __init__(self, ring: Held | None, *, cluster: str = "c") -> None:
        self.ring = ring
        self.received: list[AnyMessage] = []
        self.refused: list[PeerError] = []
        self.accepted = 0
        self.address = ""
        self._cluster = cluster

    async def start(self, nursery: trio.Nursery) -> "Peer":
        listeners = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
        self.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        return self

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            channel: Channel = stream
            if self.ring is None:
                await welcome(stream, cluster=self._cluster, node_id="b", peer="caller")
            else:
                _, channel = await welcome_sealed(
                    stream, cluster=self._cluster, node_id="b", peer="caller", ring=self.ring
                )
            self.accepted += 1
            await serve_control(channel, peer="a", deliver=lambda _, message: self.received.append(message))
        except PeerError as exc:
            self.refused.append(exc)
        except trio.BrokenResourceError:
            pass


dialled: list[trio.SocketStream] = []


def run(main: Callable[[trio.Nursery], Awaitable[None]]) -> None:
    async def bounded() -> None:
        try:
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    await main(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            while dialled:
                dialled.pop().socket.close()

    trio.run(bounded)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.005)


async def dial(peer: Peer) -> trio.SocketStream:
    return await dial_port(int(peer.address.rpartition(":")[2]))


async def dial_port(port: int) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    dialled.append(stream)
    return stream


async def streams(nursery: trio.Nursery, ring: Held | None, lost: list[PeerError]) -> ControlStreams:
    made = ControlStreams(
        hello=lambda: HELLO, connect_timeout_s=5.0, on_lost=lambda _, error: lost.append(error), ring=ring
    )
    await nursery.start(made.run)
    return made


def test_messages_arrive_and_cannot_be_read_on_the_way() -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer = await Peer(Held(A)).start(nursery)
        stream = await dial(peer)
        node, sealed = await greet_sealed(stream, HELLO, peer="b", ring=Held(A))
        assert node == "b"
        page = SummaryPage(1, 1, 36, 1, 0, bytes(30_000))
        for message in (LeaseRelease(1), page, LeaseRelease(2)):
            await sealed.send_all(frame(encode(message)))
        await until(lambda: len(peer.received) == 3)
        assert peer.received == [LeaseRelease(1), page, LeaseRelease(2)]
        await sealed.aclose()

    run(main)


@pytest.mark.parametrize(
    ("caller", "called", "caller_hears", "called_logs"),
    [
        pytest.param((B,), (A,), "your primary key is not in the keyring here", "unknown_key", id="another key"),
        pytest.param(None, (A,), "this mesh is encrypted: set security.keyring", "plaintext", id="caller in the clear"),
        pytest.param((A,), None, "this node has no keyring", "sealed", id="called in the clear"),
    ],
)
def test_who_has_not_the_same_key_is_refused_and_both_know_why(
    caller: tuple[bytes] | None, called: tuple[bytes] | None, caller_hears: str, called_logs: str
) -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer = await Peer(Held(*called) if called else None).start(nursery)
        lost: list[PeerError] = []
        out = await streams(nursery, Held(*caller) if caller else None, lost)
        out.send_nowait(peer.address, LeaseRelease(1))
        await until(lambda: bool(lost and peer.refused))
        assert caller_hears in str(lost[0])
        (error,) = peer.refused
        assert isinstance(error, SealRefused)
        assert (error.reason, peer.received) == (called_logs, [])

    run(main)


def test_another_cluster_with_the_same_key_is_refused_under_the_seal() -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer = await Peer(Held(A), cluster="production").start(nursery)
        with pytest.raises(VersionMismatch, match="this is cluster 'production'"):
            await greet_sealed(await dial(peer), HELLO, peer="b", ring=Held(A))
        await until(lambda: bool(peer.refused))
        assert isinstance(peer.refused[0], VersionMismatch)

    run(main)


class Recorder:
    """Stands between the two, and keeps what the caller sent."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.sent = bytearray()
        self._stream = stream
        self.socket = stream.socket

    async def send_all(self, data: bytes) -> None:
        self.sent += data
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))


def test_a_recorded_stream_played_again_is_answered_and_not_believed() -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer = await Peer(Held(A)).start(nursery)
        recorder = Recorder(await dial(peer))
        _, sealed = await greet_sealed(recorder, HELLO, peer="b", ring=Held(A))  # type: ignore[arg-type]
        await sealed.send_all(frame(encode(LeaseRelease(7))))
        await until(lambda: peer.received == [LeaseRelease(7)])
        again = await dial(peer)
        await again.send_all(recorder.sent)
        await until(lambda: bool(peer.refused))
        assert isinstance(peer.refused[0], SealRefused)
        assert (peer.accepted, peer.received) == (1, [LeaseRelease(7)])

    run(main)


@pytest.mark.parametrize("proof", [b"", b"\x01\x00\x00\x00" + bytes(17), b"\xff" * 21, bytes(21)], ids=len)
def test_who_shows_a_recorded_greeting_and_no_proof_is_not_let_in(proof: bytes) -> None:
    """Or else it could keep connections, and memory for what it announces, without having the key."""

    async def main(nursery: trio.Nursery) -> None:
        peer = await Peer(Held(A)).start(nursery)
        recorder = Recorder(await dial(peer))
        await greet_sealed(recorder, HELLO, peer="b", ring=Held(A))  # type: ignore[arg-type]
        await until(lambda: peer.accepted == 1)
        again = await dial(peer)
        await again.send_all(bytes(recorder.sent[:-21]) + proof)
        await again.send_eof()
        await until(lambda: bool(peer.refused))
        assert isinstance(peer.refused[0], PeerGone if not proof else SealRefused)
        assert peer.accepted == 1

    run(main)


def test_an_answer_recorded_from_another_connection_is_not_believed() -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer = await Peer(Held(A)).start(nursery)
        recorded: list[bytes] = []

        async def relay(stream: trio.SocketStream) -> None:
            """The first time the real peer, then its answer from a recording."""
            with suppress(P2pkvError, trio.BrokenResourceError):
                opening = await read_frame_exactly(stream, peer="x")
                if not recorded:
                    real = await dial(peer)
                    await real.send_all(frame(opening))
                    recorded.append(await read_frame_exactly(real, peer="x"))
                await stream.send_all(frame(recorded[0]))
                await stream.receive_some(1)

        listeners = await nursery.start(partial(trio.serve_tcp, relay, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        await greet_sealed(await dial_port(port), HELLO, peer="b", ring=Held(A))
        with pytest.raises(SealRefused, match="altered on its way"):
            await greet_sealed(await dial_port(port), HELLO, peer="b", ring=Held(A))

    run(main)


@pytest.mark.parametrize("bit", [0, 8, 47, 300, 500])
def test_a_flipped_bit_in_the_greeting_is_refused(bit: int) -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer = await Peer(Held(A)).start(nursery)

        class Spoiling(Recorder):
            async def send_all(self, data: bytes) -> None:
                spoiled = bytearray(data)
                spoiled[4 + bit // 8] ^= 1 << bit % 8
                await super().send_all(spoiled)

        with pytest.raises((VersionMismatch, MalformedMessage)):
            await greet_sealed(Spoiling(await dial(peer)), HELLO, peer="b", ring=Held(A))  # type: ignore[arg-type]
        await until(lambda: bool(peer.refused))
        assert isinstance(peer.refused[0], SealRefused)

    run(main)


@pytest.mark.parametrize("said", [b"", b"\x01", b"\x01" * 30, bytes(100), b"\x01" + bytes(200)])
def test_an_answer_that_is_none_is_an_error_of_the_peers(said: bytes) -> None:
    async def main(nursery: trio.Nursery) -> None:
        async def serve(stream: trio.SocketStream) -> None:
            with suppress(P2pkvError, trio.BrokenResourceError):
                await read_frame_exactly(stream, peer="x")
                await stream.send_all(frame(said))
                await stream.receive_some(1)

        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        stream = await dial_port(listeners[0].socket.getsockname()[1])
        with pytest.raises((SealRefused, MalformedMessage)):
            await greet_sealed(stream, HELLO, peer="b", ring=Held(A))

    run(main)


def test_a_node_that_says_yes_in_the_clear_is_not_spoken_to() -> None:
    """A machine in between must not talk a node with a key into going on without it."""

    async def main(nursery: trio.Nursery) -> None:
        peer = Peer(None)

        async def serve(stream: trio.SocketStream) -> None:
            with suppress(P2pkvError, trio.BrokenResourceError):
                await read_frame_exactly(stream, peer="x")
                await stream.send_all(frame(encode(HELLO)))
                await stream.receive_some(1)

        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        peer.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        with pytest.raises(SealRefused, match="not encrypted"):
            await greet_sealed(await dial(peer), HELLO, peer="b", ring=Held(A))
        listener = await nursery.start(partial(trio.serve_tcp, agreeable, 0, host="127.0.0.1"))
        peer.address = f"127.0.0.1:{listener[0].socket.getsockname()[1]}"
        assert await greet(await dial(peer), HELLO, peer="b") == "b"
        with pytest.raises(SealRefused, match="not encrypted"):
            await greet_sealed(await dial(peer), HELLO, peer="b", ring=Held(A))

    async def agreeable(stream: trio.SocketStream) -> None:
        with suppress(P2pkvError, trio.BrokenResourceError):
            await read_frame_exactly(stream, peer="x")
            await stream.send_all(frame(encode(HelloAck("b", 1))))
            await stream.receive_some(1)

    run(main)


def test_a_change_of_the_primary_key_loses_no_message_and_makes_a_new_connection() -> None:
    async def main(nursery: trio.Nursery) -> None:
        theirs, mine, lost = Held(A, B), Held(A, B), list[PeerError]()
        peer = await Peer(theirs).start(nursery)
        out = await streams(nursery, mine, lost)
        number = 0
        for keys in ((A, B), (B, A), (B,)):
            mine.ring = theirs.ring = KeyRing(keys)
            for _ in range(5):
                number += 1
                out.send_nowait(peer.address, LeaseRelease(number))
                await until(lambda number=number: len(peer.received) == number)  # type: ignore[misc]
        assert peer.received == [LeaseRelease(i) for i in range(1, number + 1)]
        assert (peer.accepted, lost) == (2, [])

    run(main)


def test_under_a_key_that_was_removed_nothing_more_is_taken() -> None:
    async def main(nursery: trio.Nursery) -> None:
        theirs = Held(A, B)
        peer = await Peer(theirs).start(nursery)
        _, sealed = await greet_sealed(await dial(peer), HELLO, peer="b", ring=Held(A))
        assert isinstance(sealed, SealedStream)
        await sealed.send_all(frame(encode(LeaseRelease(1))))
        await until(lambda: len(peer.received) == 1)
        theirs.ring = KeyRing((B,))
        await sealed.send_all(frame(encode(LeaseRelease(2))))
        await until(lambda: bool(peer.refused))
        assert peer.received == [LeaseRelease(1)]
        assert "removed" in str(peer.refused[0])

    run(main)


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    st.lists(st.tuples(st.booleans(), st.integers(1, 4000)), min_size=1, max_size=8),
)
def test_bytes_arrive_in_order_however_they_are_cut_and_read(pieces: list[int], reads: list[tuple[bool, int]]) -> None:
    """Over streams in memory, which are no sockets: what is sealed does not mind what carries it."""
    sent = [bytes([number % 251]) * size for number, size in enumerate(pieces)]
    whole = b"".join(sent)

    async def main(nursery: trio.Nursery) -> None:
        mine, theirs = trio.testing.memory_stream_pair()
        ends: list[SealedStream] = []

        async def called() -> None:
            _, stream = await welcome_sealed(theirs, cluster="c", node_id="b", peer="a", ring=Held(A))
            ends.append(stream)

        async with trio.open_nursery() as both:
            both.start_soon(called)
            _, caller = await greet_sealed(mine, HELLO, peer="b", ring=Held(A))
        nursery.start_soon(send, caller)
        got, turn = b"", 0
        while len(got) < len(whole):
            into, size = reads[turn % len(reads)]
            turn += 1
            if into:
                view = memoryview(bytearray(min(size, len(whole) - len(got))))
                await ends[0].receive_into(view)
                got += bytes(view)
            else:
                got += await ends[0].receive_some(size)
        assert got == whole
        await caller.aclose()
        assert await ends[0].receive_some(10) == b""
        await ends[0].aclose()

    async def send(stream: SealedStream) -> None:
        for piece in sent:
            await stream.send_all(piece)

    run(main)


def test_a_stream_that_ends_within_a_record_is_not_taken_for_one_that_ended() -> None:
    async def main(_: trio.Nursery) -> None:
        mine, theirs = trio.testing.memory_stream_pair()
        sealer = RecordSealer(bytes(32))
        stream = SealedStream(
            theirs, sealer=sealer, opener=RecordOpener(bytes(32), peer="a"), key=A, ring=Held(A), peer="a"
        )
        await mine.send_all(sealer.seal(b"piece")[:-1])
        await mine.aclose()
        with pytest.raises(PeerGone, match="stream ended early: a"):
            await stream.receive_some(10)

    run(main)
