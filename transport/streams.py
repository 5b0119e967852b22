"""Control messages over TCP. One connection per direction: this node opens its own to whomever it has to tell something.

A sender never waits: messages go into a bounded queue per address, a task per address writes them, and whatever is
lost is reported once by `on_lost(address)`. An address that is not written to for a while is let go. A message that nobody
waits for any more when its turn comes is left out.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import Final, TypeAlias

import trio

from p2pkv.errors import PeerError, PeerGone
from p2pkv.transport.base import STREAM_QUEUE_MAX
from p2pkv.transport.framing import FrameReader, frame
from p2pkv.transport.sealed_handshake import Rings, greet_as
from p2pkv.transport.sealed_stream import has_closed, is_outdated
from p2pkv.transport.tcp import open_tcp, reach
from p2pkv.transport.tls_handshake import Certified
from p2pkv.transport.wire import AnyMessage, Hello, decode_untrusted, encode

_IDLE_S: Final = 60.0
_READ_BYTES: Final = 64 * 1024

Waiting: TypeAlias = tuple[AnyMessage, float]
"""A message, and until when it is of use to whom it is for."""


class ControlStreams:
    """Outgoing control messages of one node."""

    def __init__(
        self,
        *,
        hello: Callable[[], Hello],
        connect_timeout_s: float,
        on_lost: Callable[[str, PeerError], None],
        on_overdue: Callable[[], None] = lambda: None,
        open_stream: Callable[[str, int], Awaitable[trio.abc.Stream]] = open_tcp,
        ring: Rings | None = None,
        certified: Certified | None = None,
    ) -> None:
        """`open_stream` takes host and port. With `certified` every stream is inside TLS, else with a `ring` sealed."""
        self._certified = certified
        self._hello = hello
        self._ring = ring
        self._connect_timeout_s = connect_timeout_s
        self._on_lost = on_lost
        self._on_overdue = on_overdue
        self._open_stream = open_stream
        self._queues: dict[str, tuple[trio.MemorySendChannel[Waiting], trio.CancelScope]] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is given, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def send_nowait(self, address: str, message: AnyMessage, until: float = inf) -> None:
        """Queue `message` for `address`, to leave before `until` or not at all."""
        assert self._nursery is not None, "run first"
        if address not in self._queues:
            queue, source = trio.open_memory_channel[Waiting](STREAM_QUEUE_MAX)
            writer = trio.CancelScope()
            self._queues[address] = (queue, writer)
            self._nursery.start_soon(self._write, address, source, writer)
        try:
            self._queues[address][0].send_nowait((message, until))
        except trio.WouldBlock:
            self._drop(address, PeerGone(f"{STREAM_QUEUE_MAX} messages are waiting already", peer=address))

    def waiting(self) -> int:
        """Return how many messages wait over all addresses."""
        return sum(queue.statistics().current_buffer_used for queue, _ in self._queues.values())

    def _drop(self, address: str, error: PeerError) -> None:
        """Let go of an address, with the task that may be stuck in a write to it."""
        if address in self._queues:
            queue, writer = self._queues.pop(address)
            queue.close()
            writer.cancel()
            self._on_lost(address, error)

    async def _write(self, address: str, source: trio.MemoryReceiveChannel[Waiting], writer: trio.CancelScope) -> None:
        with writer:
            await self._write_until_idle(address, source)

    async def _write_until_idle(self, address: str, source: trio.MemoryReceiveChannel[Waiting]) -> None:
        stream: trio.abc.Stream | None = None
        try:
            stream = await self._connect(address)
            while True:
                with trio.move_on_after(_IDLE_S) as idle:
                    first = await source.receive()
                if idle.cancelled_caught:
                    if source.statistics().current_buffer_used:  # given in the very moment the time was up
                        continue
                    queue, _ = self._queues.pop(address)
                    queue.close()
                    return
                if is_outdated(stream):
                    await trio.aclose_forcefully(stream)  # all was read: peers read until the end
                    stream = await self._connect(address)
                if has_closed(stream):  # peers say nothing here: it has closed, and a write would go nowhere
                    raise trio.BrokenResourceError("the peer closed it")
                await stream.send_all(b"".join(map(_framed, self._due(first, source))))
        except PeerError as exc:
            self._drop(address, exc)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            self._drop(address, PeerGone(f"connection broke ({exc})", peer=address))
        except trio.EndOfChannel:
            pass
        finally:
            source.close()
            if stream is not None:
                await trio.aclose_forcefully(stream)

    def _due(self, first: Waiting, source: trio.MemoryReceiveChannel[Waiting]) -> list[AnyMessage]:
        """Return `first` and all that wait behind it, for one write; less what nobody waits for any more."""
        waiting = [first]
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                waiting.append(source.receive_nowait())
        now = trio.current_time()
        due = [message for message, until in waiting if now < until]
        for _ in range(len(waiting) - len(due)):
            self._on_overdue()
        return due

    async def _connect(self, address: str) -> trio.abc.Stream:
        async def greet(stream: trio.abc.Stream) -> trio.abc.Stream:
            if self._certified is not None:
                greeted, _ = await self._certified.greet(stream, self._hello(), peer=address)
                return greeted
            sealed, _ = await greet_as(stream, self._hello(), peer=address, ring=self._ring)
            return sealed

        return await reach(self._open_stream, address, greet, timeout_s=self._connect_timeout_s)


def _framed(message: AnyMessage) -> bytes:
    return frame(encode(message))


def _no_answer(_: AnyMessage) -> AnyMessage | None:
    """Say that a message is not one to be answered on its own stream."""
    return None


async def serve_control(
    stream: trio.abc.Stream,
    *,
    peer: str,
    deliver: Callable[[str, AnyMessage], None],
    answer: Callable[[AnyMessage], AnyMessage | None] = _no_answer,
) -> None:
    """Hand on the messages of a greeted caller until it goes away; what `answer` has one for is answered instead.

    Raises:
        MalformedMessage, SealRefused: it sent something else. The caller of this closes the stream.
        PeerGone: it went away in the middle of a message.
    """
    reader = FrameReader(peer=peer)
    while True:
        try:
            data = await stream.receive_some(_READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            reader.finish()
            return
        reader.feed(data)
        while (payload := reader.next_frame()) is not None:
            message = decode_untrusted(payload, peer=peer)
            answered = answer(message)
            if answered is None:
                deliver(peer, message)
                continue
            try:
                await stream.send_all(frame(encode(answered)))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
