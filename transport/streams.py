"""Control messages over TCP. One connection per direction: this node opens its own to whomever it has to tell something.

A sender never waits: messages go into a bounded queue per address, a task per address writes them, and whatever is
lost is reported once by `on_lost(address)`. An address that is not written to for a while is let go. A message that nobody
waits for any more when its turn comes is left out.
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Final, TypeAlias

import trio

from p2pkv.errors import PeerError, PeerGone
from p2pkv.transport.base import STREAM_QUEUE_MAX
from p2pkv.transport.framing import FrameReader, frame
from p2pkv.transport.sealed_handshake import Rings, greet_as
from p2pkv.transport.sealed_stream import Channel, SealedStream, has_closed, is_outdated
from p2pkv.transport.tcp import open_tcp, reach
from p2pkv.transport.tls_handshake import Certified
from p2pkv.transport.wire import AnyMessage, Hello, LeaseGrant, LeaseRequest, decode_untrusted, encode

_IDLE_S: Final = 60.0
_READ_BYTES: Final = 64 * 1024
_AT_ONCE: Final = (LeaseRequest, LeaseGrant)
"""Messages that an engine waits for. They do not wait for the turn of the task that writes, some 0.1 ms on a busy machine;
all others do, so that many go in one write."""


@dataclass(frozen=True, slots=True)
class _Rest:
    """The end of something that was begun to be written, as it stands on the wire."""

    bytes: bytes


Waiting: TypeAlias = tuple[AnyMessage | _Rest, float]
"""A message, and until when it is of use to whom it is for."""
_Source: TypeAlias = "trio.MemoryReceiveChannel[Waiting]"


@dataclass(slots=True)
class _Line:
    """What goes to one address."""

    queue: trio.MemorySendChannel[Waiting]
    writer: trio.CancelScope
    idle: Channel | None = None
    """The stream while the writer waits for something to write: what must not wait may then be written past it."""
    written_at: float = 0.0
    """When something was, last."""


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
        self._lines: dict[str, _Line] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is given, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def send_nowait(self, address: str, message: AnyMessage, until: float = inf) -> None:
        """Queue `message` for `address`, to leave before `until` or not at all.

        It is written at once if an engine waits for it and nothing is before it.
        """
        assert self._nursery is not None, "run first"
        line = self._lines.get(address)
        if line is None:
            queue, source = trio.open_memory_channel[Waiting](STREAM_QUEUE_MAX)
            line = self._lines[address] = _Line(queue, trio.CancelScope())
            self._nursery.start_soon(self._write, address, source, line)
        queued: Waiting = (message, until)
        if line.idle is not None and isinstance(message, _AT_ONCE):
            rest = _write_at_once(line.idle, _framed(message))
            line.written_at = trio.current_time()
            if rest is not None and not rest.bytes:
                return
            queued = queued if rest is None else (rest, inf)
        line.idle = None  # what comes next must not overtake it
        try:
            line.queue.send_nowait(queued)
        except trio.WouldBlock:
            self._drop(address, PeerGone(f"{STREAM_QUEUE_MAX} messages are waiting already", peer=address))

    def waiting(self) -> int:
        """Return how many messages wait over all addresses."""
        return sum(line.queue.statistics().current_buffer_used for line in self._lines.values())

    def _drop(self, address: str, error: PeerError) -> None:
        """Let go of an address, with the task that may be stuck in a write to it."""
        if address in self._lines:
            line = self._lines.pop(address)
            line.idle = None
            line.queue.close()
            line.writer.cancel()
            self._on_lost(address, error)

    async def _write(self, address: str, source: _Source, line: _Line) -> None:
        with line.writer:
            await self._write_until_idle(address, source, line)

    async def _write_until_idle(self, address: str, source: _Source, line: _Line) -> None:
        stream: trio.abc.Stream | None = None
        try:
            stream = await self._connect(address)
            line.written_at = trio.current_time()
            while True:
                line.idle = _writable_past(stream, source)
                with trio.move_on_at(line.written_at + _IDLE_S) as idle:
                    first = await source.receive()
                line.idle = None
                if idle.cancelled_caught:
                    if source.statistics().current_buffer_used:  # given in the very moment the time was up
                        line.written_at = trio.current_time()
                    if trio.current_time() < line.written_at + _IDLE_S:  # or written past this task meanwhile
                        continue
                    self._lines.pop(address).queue.close()
                    return
                line.written_at = trio.current_time()
                if isinstance(first[0], _Rest):  # nothing was written since
                    await _below(stream).send_all(first[0].bytes)
                    continue
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
            line.idle = None
            source.close()
            if stream is not None:
                await trio.aclose_forcefully(stream)

    def _due(self, first: Waiting, source: _Source) -> list[AnyMessage]:
        """Return `first` and all that wait behind it, for one write; less what nobody waits for any more."""
        waiting = [first]
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                waiting.append(source.receive_nowait())
        now = trio.current_time()
        due = [message for message, until in waiting if now < until and not isinstance(message, _Rest)]
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


def _writable_past(stream: trio.abc.Stream, source: _Source) -> Channel | None:
    """Return the stream if what must not wait may be written to it by others than its task, None if not."""
    if isinstance(stream, trio.SocketStream | SealedStream) and isinstance(_below(stream), trio.SocketStream):
        return stream if not source.statistics().current_buffer_used else None
    return None


def _below(stream: trio.abc.Stream) -> trio.abc.Stream:
    return stream.below if isinstance(stream, SealedStream) else stream


def _write_at_once(stream: Channel, data: bytes) -> _Rest | None:
    """Write `data` without waiting; return what the socket did not take, None if nothing was tried.

    An error is left for the writer to find, who knows what to do with it.
    """
    if is_outdated(stream) or has_closed(stream):
        return None
    out = memoryview(stream.seal(data) if isinstance(stream, SealedStream) else data)
    try:
        return _Rest(bytes(out[os.write(stream.socket.fileno(), out) :]))
    except OSError:
        return _Rest(bytes(out))


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
