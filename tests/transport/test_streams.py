"""Control messages over real loopback sockets: in order, never waited for, and reported when they are lost."""

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from math import inf

import pytest
import trio
import trio.testing

from p2pkv.errors import (
    MalformedMessage,
    P2pkvError,
    PeerError,
    PeerGone,
    PeerRefused,
    PeerTooSlow,
    VersionMismatch,
)
from p2pkv.transport import streams as streams_module
from p2pkv.transport.base import STREAM_QUEUE_MAX
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import welcome
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.sealed_handshake import Rings, welcome_sealed
from p2pkv.transport.sealed_stream import Channel
from p2pkv.transport.streams import ControlStreams, serve_control
from p2pkv.transport.wire import (
    KEYS_PER_LEASE_MAX,
    PAGE_BYTES_MAX,
    AnyMessage,
    Hello,
    LeaseRelease,
    LeaseRequest,
    SummaryPage,
    encode,
)

IDLE_S = 61.0
PAGE = SummaryPage(epoch=1, seq=1, bits_log2=36, hashes=1, offset=0, data=bytes(PAGE_BYTES_MAX))
Handler = Callable[[trio.SocketStream], Awaitable[None]]


class Changes:
    """A list that can be waited on."""

    def __init__(self) -> None:
        self.items: list[object] = []
        self._changed = trio.Event()

    def append(self, item: object) -> None:
        self.items.append(item)
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self, count: int) -> list[object]:
        while len(self.items) < count:
            await self._changed.wait()
        return self.items


class Peer:
    """Somebody who listens. Streams are greeted, then handed to `handler`, which delivers by default."""

    def __init__(self, *, cluster: str = "c", handler: Handler | None = None) -> None:
        self.received = Changes()
        self.connections = Changes()
        self.ended = Changes()
        self._cluster = cluster
        self._handler = handler or self.deliver

    async def start(self, nursery: trio.Nursery) -> str:
        listeners = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
        return f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"

    async def deliver(self, stream: trio.SocketStream) -> None:
        await serve_control(stream, peer="a", deliver=lambda _, message: self.received.append(message))

    async def _serve(self, stream: trio.SocketStream) -> None:
        with suppress(P2pkvError, trio.BrokenResourceError):
            await welcome(stream, cluster=self._cluster, node_id="b", peer="a")
            self.connections.append(stream)
            await self._handler(stream)
        self.ended.append(stream)


class Sender:
    """Control streams, and what they reported as lost."""

    def __init__(self, *, connect_timeout_s: float = 5.0, ring: Rings | None = None) -> None:
        self.lost = Changes()
        self.overdue = 0
        self.streams = ControlStreams(
            hello=lambda: Hello("c", "a", "127.0.0.1:1", 0),
            connect_timeout_s=connect_timeout_s,
            on_lost=lambda address, error: self.lost.append((address, error)),
            on_overdue=self._count,
            ring=ring,
        )

    def _count(self) -> None:
        self.overdue += 1

    async def start(self, nursery: trio.Nursery) -> ControlStreams:
        await nursery.start(self.streams.run)
        return self.streams

    def error(self) -> PeerError:
        (_, error), *_ = self.lost.items
        return error


def run(main: Callable[[trio.Nursery], Awaitable[None]], clock: trio.testing.MockClock | None = None) -> None:
    async def bounded() -> None:
        async with trio.open_nursery() as nursery:
            await main(nursery)
            nursery.cancel_scope.cancel()

    trio.run(bounded, clock=clock)


async def unused_address() -> str:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    return f"127.0.0.1:{port}"


def test_messages_arrive_in_order_over_one_connection() -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer, sender = Peer(), Sender()
        address = await peer.start(nursery)
        streams = await sender.start(nursery)
        sent: list[AnyMessage] = [LeaseRelease(i) if i % 7 else PAGE for i in range(300)]
        for message in sent:
            streams.send_nowait(address, message)
        assert await peer.received.wait(300) == sent
        assert len(peer.connections.items) == 1
        assert sender.lost.items == []
        assert streams.waiting() == 0

    run(main)


def test_a_peer_that_is_not_there_is_reported_once_and_tried_again_for_later_messages() -> None:
    async def main(nursery: trio.Nursery) -> None:
        sender = Sender()
        address = await unused_address()
        streams = await sender.start(nursery)
        for round_number in (1, 2):
            for i in range(5):
                streams.send_nowait(address, LeaseRelease(i))
            await sender.lost.wait(round_number)
            await trio.testing.wait_all_tasks_blocked()
            assert len(sender.lost.items) == round_number
        assert sender.lost.items[0][0] == address
        assert isinstance(sender.error(), PeerGone)

    run(main)


def test_nobody_who_listens_is_told_from_nobody_who_answers() -> None:
    async def main() -> None:
        sender = Sender(connect_timeout_s=0.2)
        silent, ended = socket.socket(), socket.socket()
        for listener in (silent, ended):
            listener.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and greets nobody, as a process that is stopped
        addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in (silent, ended)]
        async with trio.open_nursery() as nursery:
            await nursery.start(sender.streams.run)
            for address in addresses:
                sender.streams.send_nowait(address, LeaseRelease(1))
            await sender.lost.wait(2)
            nursery.cancel_scope.cancel()
        silent.close()
        ended.close()
        kinds = dict(sender.lost.items)
        assert isinstance(kinds[addresses[0]], PeerTooSlow)
        assert isinstance(kinds[addresses[1]], PeerRefused)

    trio.run(main)


def test_a_refusal_is_reported_with_its_reason() -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer, sender = Peer(cluster="another"), Sender()
        address = await peer.start(nursery)
        (await sender.start(nursery)).send_nowait(address, LeaseRelease(1))
        await sender.lost.wait(1)
        assert isinstance(sender.error(), VersionMismatch)
        assert "this is cluster 'another'" in str(sender.error())

    run(main)


@pytest.mark.parametrize("address", ["nonsense", "\x00:1", "[::1%\x00]:1", "a..b:1", "x" * 300 + ":1"])
def test_an_address_that_makes_no_sense_is_a_lost_link_and_nothing_worse(address: str) -> None:
    async def main(nursery: trio.Nursery) -> None:
        sender = Sender()
        (await sender.start(nursery)).send_nowait(address, LeaseRelease(1))
        await sender.lost.wait(1)
        assert isinstance(sender.error(), PeerGone)

    run(main)


def test_one_peer_that_is_not_there_does_not_hold_up_another() -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer, sender = Peer(), Sender()
        address = await peer.start(nursery)
        streams = await sender.start(nursery)
        streams.send_nowait(await unused_address(), LeaseRelease(1))
        streams.send_nowait(address, LeaseRelease(2))
        assert await peer.received.wait(1) == [LeaseRelease(2)]

    run(main)


def test_a_connection_that_the_peer_closed_loses_no_message_silently() -> None:
    """A first write into a closed connection succeeds as far as the kernel is concerned, and the message is gone."""

    async def main(nursery: trio.Nursery) -> None:
        async def close_after_one(stream: trio.SocketStream) -> None:
            if len(peer.connections.items) == 1:
                await stream.receive_some(1000)
            else:
                await peer.deliver(stream)

        peer, sender = Peer(handler=close_after_one), Sender()
        address = await peer.start(nursery)
        streams = await sender.start(nursery)
        streams.send_nowait(address, LeaseRelease(1))
        await peer.ended.wait(1)
        await trio.testing.wait_all_tasks_blocked()
        streams.send_nowait(address, LeaseRelease(2))
        with trio.move_on_after(2):
            async with trio.open_nursery() as either:
                either.start_soon(first_of, either, peer.received.wait, 1)
                either.start_soon(first_of, either, sender.lost.wait, 1)
        assert peer.received.items == [LeaseRelease(2)] or sender.lost.items

    run(main)


async def first_of(nursery: trio.Nursery, wait: Callable[[int], Awaitable[object]], count: int) -> None:
    await wait(count)
    nursery.cancel_scope.cancel()


def test_an_address_not_written_to_is_let_go_and_connected_to_again_later() -> None:
    clock = trio.testing.MockClock()

    async def main(nursery: trio.Nursery) -> None:
        peer, sender = Peer(), Sender()
        address = await peer.start(nursery)
        streams = await sender.start(nursery)
        for i in (1, 2):
            streams.send_nowait(address, LeaseRelease(i))
            await peer.received.wait(i)
            await trio.testing.wait_all_tasks_blocked()
            assert len(peer.ended.items) == i - 1
            clock.jump(IDLE_S)
            await peer.ended.wait(i)
        assert len(peer.connections.items) == 2
        assert sender.lost.items == []

    run(main, clock)


def test_a_message_given_at_the_moment_an_idle_address_is_let_go_is_not_lost() -> None:
    clock = trio.testing.MockClock()

    async def main(nursery: trio.Nursery) -> None:
        peer, sender = Peer(), Sender()
        address = await peer.start(nursery)
        streams = await sender.start(nursery)
        for i in range(1, 20):  # trio runs what is ready in random order; some rounds hit the moment
            streams.send_nowait(address, LeaseRelease(2 * i))
            await peer.received.wait(2 * i - 1)
            await trio.testing.wait_all_tasks_blocked()
            clock.jump(IDLE_S)
            await trio.lowlevel.checkpoint()
            streams.send_nowait(address, LeaseRelease(2 * i + 1))
            for _ in range(200):
                if len(peer.received.items) == 2 * i:
                    break
                await trio.testing.wait_all_tasks_blocked()
            assert len(peer.received.items) == 2 * i, "neither delivered nor reported"

    run(main, clock)


async def never_read(_: trio.SocketStream) -> None:
    await trio.sleep_forever()


def test_a_peer_that_does_not_read_is_reported_when_its_queue_is_full() -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer, sender = Peer(handler=never_read), Sender()
        address = await peer.start(nursery)
        streams = await sender.start(nursery)
        streams.send_nowait(address, PAGE)
        await peer.connections.wait(1)
        for _ in range(8):  # until a write stands still
            for _ in range(STREAM_QUEUE_MAX // 2):
                if not sender.lost.items:
                    streams.send_nowait(address, PAGE)
                assert streams.waiting() <= STREAM_QUEUE_MAX
            await trio.testing.wait_all_tasks_blocked()
        assert len(sender.lost.items) == 1
        assert f"{STREAM_QUEUE_MAX} messages are waiting already" in str(sender.error())

    run(main)


@pytest.mark.parametrize("ring", [None, KeyRing((bytes(range(32)),))], ids=["plain", "sealed"])
def test_what_the_socket_takes_only_a_part_of_when_written_at_once_arrives_whole_and_in_order(
    ring: KeyRing | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions are written past the queue; what is left of one must neither be overtaken nor sent twice."""
    rests: list[tuple[int, int]] = []

    def written(stream: Channel, data: bytes) -> streams_module._Rest | None:
        rest = _write_at_once(stream, data)
        if rest is not None:
            rests.append((len(rest.bytes), len(data)))
        return rest

    _write_at_once = streams_module._write_at_once
    monkeypatch.setattr(streams_module, "_write_at_once", written)
    read = trio.Event()
    sent = [LeaseRequest(number, bytes(32 * KEYS_PER_LEASE_MAX), 1000) for number in range(1, 301)]
    received = Changes()

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(P2pkvError, trio.BrokenResourceError):
            channel: trio.abc.Stream = stream
            if ring is None:
                await welcome(stream, cluster="c", node_id="b", peer="a")
            else:
                _, channel = await welcome_sealed(stream, cluster="c", node_id="b", peer="a", ring=lambda: ring)
            await read.wait()
            await serve_control(channel, peer="a", deliver=lambda _, message: received.append(message))

    async def main(nursery: trio.Nursery) -> None:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sender = Sender(ring=(lambda: ring) if ring is not None else None)
        streams = await sender.start(nursery)
        address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        for number, message in enumerate(sent):
            streams.send_nowait(address, message)
            if number == 0:
                await trio.testing.wait_all_tasks_blocked(0.05)  # greeted, and the writer waits
            if any(0 < rest < whole for rest, whole in rests):
                read.set()
                await trio.lowlevel.checkpoint()
        assert any(0 < rest < whole for rest, whole in rests), "no write was a part"
        with trio.fail_after(10):
            assert await received.wait(len(sent)) == sent
        assert sender.lost.items == []

    run(main)


def test_what_nobody_waits_for_any_more_when_its_turn_comes_is_not_sent() -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer, sender = Peer(), Sender()
        address = await peer.start(nursery)
        streams = await sender.start(nursery)
        now = trio.current_time()
        for number, until in enumerate((inf, now, now + 60, now - 1)):
            streams.send_nowait(address, LeaseRelease(number), until)
        await peer.received.wait(2)
        streams.send_nowait(address, LeaseRelease(4), now)  # alone, with nothing else to write
        streams.send_nowait(address, LeaseRelease(5))
        await peer.received.wait(3)
        assert peer.received.items == [LeaseRelease(0), LeaseRelease(2), LeaseRelease(5)]
        assert sender.overdue == 3
        assert not sender.lost.items

    run(main)


def test_a_peer_that_does_not_read_costs_one_connection_however_often_its_queue_fills() -> None:
    async def main(nursery: trio.Nursery) -> None:
        peer, sender = Peer(handler=never_read), Sender()
        address = await peer.start(nursery)
        async with trio.open_nursery() as inner:
            streams = await sender.start(inner)
            while len(sender.lost.items) < 4:
                for _ in range(STREAM_QUEUE_MAX // 2):
                    streams.send_nowait(address, PAGE)
                await trio.testing.wait_all_tasks_blocked()
            assert streams._nursery is not None
            assert len(streams._nursery.child_tasks) <= 1
            inner.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        pytest.param(b"", None, id="nothing more"),
        pytest.param(b"\x05\x00", PeerGone, id="half a length"),
        pytest.param(frame(encode(LeaseRelease(2)))[:-1], PeerGone, id="half a message"),
        pytest.param(b"\xff\xff\xff\xff", MalformedMessage, id="oversized frame"),
        pytest.param(frame(b"\xc1"), MalformedMessage, id="garbage"),
    ],
)
def test_what_was_whole_is_delivered_and_the_rest_is_the_peers_error(
    said: bytes, error: type[P2pkvError] | None
) -> None:
    delivered: list[tuple[str, AnyMessage]] = []

    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        await theirs.send_all(frame(encode(LeaseRelease(1))) + said)
        await theirs.aclose()
        await serve_control(ours, peer="b", deliver=lambda peer, message: delivered.append((peer, message)))

    if error is None:
        trio.run(main)
    else:
        with pytest.raises(error):
            trio.run(main)
    assert delivered == [("b", LeaseRelease(1))]
