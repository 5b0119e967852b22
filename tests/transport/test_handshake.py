"""The first exchange on a stream, both sides against each other and against somebody who speaks otherwise."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from p2pkv.errors import MalformedMessage, P2pkvError, PeerGone, VersionMismatch
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import greet, read_frame_exactly, welcome
from p2pkv.transport.wire import MESSAGE_BYTES_MAX, PROTOCOL_MAX, Hello, HelloAck, LeaseRelease, encode

HELLO = Hello("cluster", "a", "127.0.0.1:1", 0)


def both_sides(
    caller: Callable[[trio.abc.Stream], Awaitable[object]], called: Callable[[trio.abc.Stream], Awaitable[object]]
) -> tuple[object, object]:
    """Run one on each end of a stream; return what each returned or raised."""

    async def main() -> tuple[object, object]:
        ends = trio.testing.memory_stream_pair()
        results: list[object] = [None, None]

        async def run(number: int, side: Callable[[trio.abc.Stream], Awaitable[object]]) -> None:
            try:
                results[number] = await side(ends[number])
            except P2pkvError as exc:
                results[number] = exc
            finally:
                await ends[number].aclose()

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, 0, caller)
                nursery.start_soon(run, 1, called)
        return results[0], results[1]

    return trio.run(main)


def greeting(hello: Hello) -> Callable[[trio.abc.Stream], Awaitable[object]]:
    return lambda stream: greet(stream, hello, peer="b:1")


def welcoming(cluster: str = "cluster") -> Callable[[trio.abc.Stream], Awaitable[object]]:
    return lambda stream: welcome(stream, cluster=cluster, node_id="b", peer="a:1")


def saying(data: bytes) -> Callable[[trio.abc.Stream], Awaitable[object]]:
    async def say(stream: trio.abc.Stream) -> None:
        await stream.send_all(data)
        if isinstance(stream, trio.StapledStream):
            await stream.send_eof()
        async for _ in stream:
            pass

    return say


def test_both_learn_who_the_other_is() -> None:
    assert both_sides(greeting(HELLO), welcoming()) == ("b", HELLO)


def test_a_node_of_another_cluster_is_refused_and_both_know_why() -> None:
    caller, called = both_sides(greeting(HELLO), welcoming("production"))
    assert isinstance(caller, VersionMismatch)
    assert isinstance(called, VersionMismatch)
    assert "this is cluster 'production', not 'cluster'" in str(caller)
    assert "a at a:1" in str(called)


@pytest.mark.parametrize(("low", "high"), [(PROTOCOL_MAX + 1, PROTOCOL_MAX + 9), (0, 0)])
def test_a_node_without_a_version_in_common_is_refused(low: int, high: int) -> None:
    caller, called = both_sides(greeting(Hello("cluster", "a", "", 0, low, high)), welcoming())
    assert isinstance(caller, VersionMismatch)
    assert isinstance(called, VersionMismatch)


def test_a_node_that_speaks_later_versions_too_is_welcome() -> None:
    hello = Hello("cluster", "a", "", 0, PROTOCOL_MAX, PROTOCOL_MAX + 9)
    assert both_sides(greeting(hello), welcoming()) == ("b", hello)


def test_a_cluster_name_of_the_greatest_length_still_gets_an_answer() -> None:
    caller, _ = both_sides(greeting(Hello("\U0001f600" * 128, "a", "", 0)), welcoming("c" * 64))
    assert isinstance(caller, VersionMismatch)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        pytest.param(frame(encode(LeaseRelease(1))), MalformedMessage, id="another message"),
        pytest.param(frame(b"\xc1"), MalformedMessage, id="garbage in a frame"),
        pytest.param(frame(b""), MalformedMessage, id="empty frame"),
        pytest.param((MESSAGE_BYTES_MAX + 1).to_bytes(4, "little"), MalformedMessage, id="oversized frame"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", MalformedMessage, id="another protocol"),
        pytest.param(b"", PeerGone, id="nothing"),
        pytest.param(b"\x03\x00", PeerGone, id="half a length"),
        pytest.param(frame(encode(HELLO))[:-1], PeerGone, id="half a message"),
    ],
)
def test_whoever_speaks_otherwise_is_an_error_of_the_peer_on_either_side(said: bytes, error: type[P2pkvError]) -> None:
    caller, _ = both_sides(greeting(HELLO), saying(said))
    assert type(caller) is error
    _, called = both_sides(saying(said), welcoming())
    assert type(called) is error


def test_a_greeting_is_not_an_answer_and_an_answer_no_greeting() -> None:
    caller, _ = both_sides(greeting(HELLO), saying(frame(encode(HELLO))))
    assert isinstance(caller, MalformedMessage)
    _, called = both_sides(saying(frame(encode(HelloAck("b", 1)))), welcoming())
    assert isinstance(called, MalformedMessage)


def test_what_follows_a_frame_is_left_on_the_stream() -> None:
    async def read(stream: trio.abc.Stream) -> tuple[bytes, bytes]:
        return await read_frame_exactly(stream, peer="b"), await stream.receive_some(100)

    async def say(stream: trio.abc.Stream) -> None:
        await stream.send_all(frame(b"abc") + b"bulk bytes")

    assert both_sides(read, say)[0] == (b"abc", b"bulk bytes")
