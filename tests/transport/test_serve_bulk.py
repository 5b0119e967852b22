"""The serving side of bulk streams, where the contract does not look: what a caller costs that does not behave."""

import socket

import pytest
import trio
import trio.testing

from p2pkv.blocks import block_digest
from p2pkv.transport import tcp
from p2pkv.transport.base import Offered, Wanted
from p2pkv.transport.bulk_header import HEADER_BYTES, unpack_untrusted
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import read_frame_exactly, welcome
from p2pkv.transport.tcp import TcpTransport, serve_bulk
from p2pkv.transport.wire import Hello, Pull, bitmap, decode_untrusted, encode

BODY = bytes(8 * 2**20)  # more than two socket buffers hold


def test_a_caller_that_asks_and_does_not_read_is_let_go() -> None:
    offered = [Offered(memoryview(BODY), len(BODY), block_digest(BODY, len(BODY)))]
    sent: list[int] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            host, port = listener.socket.getsockname()[:2]
            caller = await trio.open_tcp_stream(host, port)
            stream = await listener.accept()
            nursery.start_soon(caller.send_all, frame(encode(Pull(1, bitmap([0])))))
            with trio.fail_after(20):
                await serve_bulk(
                    stream, peer="b", open_lease=lambda *_: offered, idle_s=60, block_s=0.2, on_sent=sent.append
                )
            await caller.aclose()
            await stream.aclose()
            await listener.aclose()

    trio.run(main)
    assert sent == []


def test_what_is_not_sent_in_the_time_that_its_asker_has_is_not_sent() -> None:
    """Whoever froze while it asked holds neither the thread nor the lease for longer than it said it would wait."""
    offered = [Offered(memoryview(BODY), len(BODY), block_digest(BODY, len(BODY)))]
    overdue: list[None] = []

    async def main() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        caller = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        stream = await listener.accept()
        await caller.send_all(frame(encode(Pull(1, bitmap([0]), 200))))
        with trio.fail_after(20):
            await serve_bulk(
                stream,
                peer="b",
                open_lease=lambda *_: offered,
                idle_s=60,
                block_s=60,
                on_overdue=lambda: overdue.append(None),
            )
        for one in (caller, stream, listener):
            await one.aclose()

    trio.run(main)
    assert len(overdue) == 1


def test_a_pull_says_how_long_its_task_may_wait() -> None:
    async def asked_within(seconds: float) -> Pull:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        host, port = listener.socket.getsockname()[:2]
        hello = Hello("c", "a", "127.0.0.1:1", 1)
        transport = TcpTransport(hello=lambda: hello, connect_timeout_s=5)
        wanted = Wanted(0, 1, 1, bytes(16), memoryview(bytearray(1)))
        asked: list[Pull] = []

        async def pull(scope: trio.CancelScope) -> None:
            with scope:
                await transport.pull(
                    peer="b", address=f"{host}:{port}", lease=1, wanted=[wanted], on_block=lambda *_: None
                )

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope(deadline=trio.current_time() + seconds)
            nursery.start_soon(pull, scope)
            stream = await listener.accept()
            await welcome(stream, cluster="c", node_id="b", peer="a")
            message = decode_untrusted(await read_frame_exactly(stream, peer="a"), peer="a")
            assert isinstance(message, Pull)
            asked.append(message)
            scope.cancel()
        await stream.aclose()
        await listener.aclose()
        return asked[0]

    assert 0 < trio.run(asked_within, 50.0).remaining_ms <= 50_000
    assert trio.run(asked_within, float("inf")).remaining_ms == 0


def test_a_lease_is_looked_at_again_while_its_blocks_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it protected may be another block by now: what is not under way yet is absent then."""
    monkeypatch.setattr(tcp, "_LOOK_S", -1.0)
    body = bytes(range(256)) * 1024
    offered = [Offered(memoryview(body), len(body), block_digest(body, len(body)))] * 12
    looks: list[int] = []
    sent: list[int] = []

    def open_lease(_: str, lease: int) -> list[Offered] | None:
        looks.append(lease)
        return offered if len(looks) < 4 else None

    async def main() -> list[bool]:
        ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
        absent: list[bool] = []
        async with ours, theirs, trio.open_nursery() as nursery:
            await theirs.send_all(frame(encode(Pull(7, bitmap(list(range(12)))))))
            nursery.start_soon(
                lambda: serve_bulk(ours, peer="b", open_lease=open_lease, idle_s=60, on_sent=sent.append)
            )
            with trio.fail_after(20):
                for position in range(12):
                    header = unpack_untrusted(await exactly(theirs, HEADER_BYTES), peer="a")
                    assert header.position == position
                    absent.append(header.absent)
                    assert await exactly(theirs, header.length) == (b"" if header.absent else body)
            await theirs.send_eof()
        return absent

    absent = trio.run(main)
    assert absent == sorted(absent), "absent from some block on"
    assert 0 < absent.count(False) < 12
    assert len(looks) >= 4
    assert sum(sent) == absent.count(False) * len(body)


async def exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await stream.receive_some(count - len(data))
    return data


def test_a_stream_of_blocks_has_the_kernel_keep_more_than_messages_need() -> None:
    """Trio lets 16 KiB wait there, so that a block of 4 MiB would take 256 wake-ups."""

    def kept_bytes(stream: trio.SocketStream) -> int:
        return int(stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT))

    async def main() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        caller = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        stream = await listener.accept()
        assert kept_bytes(stream) == 2**14
        await caller.send_all(frame(encode(Pull(1, bitmap([0])))))
        await caller.send_eof()
        await serve_bulk(stream, peer="b", open_lease=lambda *_: None, idle_s=60)
        assert kept_bytes(stream) == 0
        for one in (caller, stream, listener):
            await one.aclose()

    trio.run(main)
