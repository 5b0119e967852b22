"""Block bytes over plain TCP: works everywhere, and is the reference for the transport contract.

Bodies go from the owner's arena to the kernel and from the kernel into the receiver's arena, without a copy between. With
a keyring they are encrypted out of the one arena and decrypted into the other.
A connection carries one pull at a time and is kept for the next one; whatever goes wrong closes it.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Final, TypeAlias, TypeVar

import trio

from p2pkv.config import parse_address
from p2pkv.errors import ConfigError, MalformedMessage, PeerError, PeerGone, PeerRefused, PeerTooSlow, SealRefused
from p2pkv.running_digest import PIECE_BYTES
from p2pkv.transport.base import STREAM_PATIENCE_S, Bodies, Offered, OnBlock, OpenLease, Wanted
from p2pkv.transport.blocking_channel import BlockingChannel
from p2pkv.transport.bulk_header import BulkHeader, packed
from p2pkv.transport.bulk_keys import BulkKeys, SharedKeys
from p2pkv.transport.handshake import read_frame_exactly
from p2pkv.transport.offload import run_blocking, workers
from p2pkv.transport.part_streams import OpenPart, serve_parts
from p2pkv.transport.remaining import until
from p2pkv.transport.sealed_handshake import Rings, greet_as
from p2pkv.transport.sealed_stream import Channel, SealedStream, has_closed, is_outdated
from p2pkv.transport.tcp_pull import SharedPull
from p2pkv.transport.widths import Widths
from p2pkv.transport.wire import (
    FabricOffer,
    Hello,
    LeaseRequest,
    Pull,
    PullParts,
    bit_positions,
    decode_untrusted,
)

S = TypeVar("S", bound=trio.abc.Stream)
T = TypeVar("T")

OnRequest: TypeAlias = Callable[[trio.SocketStream, LeaseRequest], Awaitable[bool]]
"""Answers a direct question on the stream it came on; says whether the stream is of any more use."""

_IDLE_CONNECTIONS_MAX: Final = 2
"""Kept per peer, or as many as a pull may use; two engines of one node rarely fetch from one peer at the same moment."""
_IDLE_ADDRESSES_MAX: Final = 256
"""Addresses with kept connections; beyond it the one not used for longest goes. Peers come and go, sockets must not."""
_HERE_BYTES: Final = 512 * 2**10
"""Of an answer, sent where the event loop is; that takes 0.1 ms, and less than the way to a thread."""
_LOOK_S: Final = 0.02
_LOOK_BYTES: Final = 32 * 2**20
"""A lease is looked at anew when so much time has passed, or so much was sent, so that one that ends is noticed soon."""


async def open_tcp(host: str, port: int) -> trio.SocketStream:
    """Open a stream that breaks where nothing is acknowledged for `STREAM_PATIENCE_S`."""
    stream = await trio.open_tcp_stream(host, port)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(STREAM_PATIENCE_S * 1000))
    return stream


async def connect(address: str, hello: Hello, *, timeout_s: float, ring: Rings | None = None) -> tuple[Channel, str]:
    """Open a greeted TCP stream to `address`, as `connect_over`."""
    return await connect_over(open_tcp, address, hello, timeout_s=timeout_s, ring=ring)


async def connect_over(
    open_stream: Callable[[str, int], Awaitable[S]],
    address: str,
    hello: Hello,
    *,
    timeout_s: float,
    ring: Rings | None = None,
) -> tuple[S | SealedStream, str]:
    """Open a greeted stream to `address` with `open_stream(host, port)`; return it and the answering node's id.

    It is sealed if there is a `ring`.

    Raises:
        PeerGone, PeerTooSlow: nobody answers there.
        VersionMismatch, SealRefused, MalformedMessage: somebody does, but not for us.
    """
    return await reach(
        open_stream, address, lambda stream: greet_as(stream, hello, peer=address, ring=ring), timeout_s=timeout_s
    )


async def reach(
    open_stream: Callable[[str, int], Awaitable[S]],
    address: str,
    greet: Callable[[S], Awaitable[T]],
    *,
    timeout_s: float,
) -> T:
    """Open a stream to `address` and return what `greet` makes of it; if that fails, the stream is closed.

    Raises:
        PeerRefused: the machine at every address of it says that nobody listens there.
        PeerGone, PeerTooSlow: nobody answers there.
        PeerError: whatever `greet` raises.
    """
    try:
        host, port = parse_address(address)
        with trio.fail_after(timeout_s):
            try:
                stream = await open_stream(host, port)
            except OSError as exc:
                if _is_refusal(exc):
                    raise PeerRefused(f"no connection ({_reason(exc)})", peer=address) from exc
                raise
            try:
                return await greet(stream)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
    except trio.TooSlowError as exc:
        raise PeerTooSlow(f"no connection within {timeout_s:g} s", peer=address) from exc
    except (OSError, trio.BrokenResourceError, ConfigError, UnicodeError) as exc:
        raise PeerGone(f"no connection ({_reason(exc)})", peer=address) from exc


class TcpTransport:
    """The receiving side. See `p2pkv.transport.base.BulkTransport`."""

    name: Final = "tcp"

    def __init__(
        self,
        *,
        hello: Callable[[], Hello],
        connect_timeout_s: float,
        ring: Rings | None = None,
        keys: BulkKeys | None = None,
        widths: Widths | None = None,
    ) -> None:
        """`hello` makes the greeting of a bulk stream; it is asked late, when the node knows its own address.

        With a `ring` every stream is sealed under it; with `keys`, under what those say. Without `widths` a pull uses one
        connection.
        """
        self._widths = widths or Widths(1)
        self._idle_max = max(_IDLE_CONNECTIONS_MAX, self._widths.most)
        self.connections_lost = 0
        """That failed in a pull, since start."""
        self._under_way: dict[str, set[SharedPull]] = {}
        """Peer -> its pulls."""
        self._overlapped: set[SharedPull] = set()
        """Those of them that had not been alone; how long they took says nothing about one path."""
        self._hello = hello
        self._connect_timeout_s = connect_timeout_s
        self._keys = keys or SharedKeys(ring)
        self._idle: dict[str, list[tuple[str, Channel]]] = {}
        """Address -> kept connections with the id of the node there; the address used last is last."""

    def path(self, peer: str) -> str:  # noqa: ARG002 - the same for all
        """See `BulkTransport`."""
        return self.name

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        """See `BulkTransport`. Large pulls are shared by several connections where that is faster."""
        pull_bytes = sum(one.length for one in wanted)
        # A thread each. When they are scarce further ones are better left to other pulls, and to answers above all.
        width = min(self._widths.choose(peer, pull_bytes), 1 + int(workers().available_tokens) // 2)
        pull = SharedPull(
            _Streams(self, peer, address), peer=peer, lease=lease, wanted=wanted, on_block=on_block, connections=width
        )
        others = self._under_way.setdefault(peer, set())
        self._overlapped.update(others, (pull,) if others else ())
        others.add(pull)
        began = trio.current_time()
        try:
            await pull.run()
            if pull not in self._overlapped and not pull.lost and not pull.late:
                self._widths.measured(peer, width, pull_bytes, trio.current_time() - began)
        finally:
            self.connections_lost += pull.lost
            self._overlapped.discard(pull)
            others.discard(pull)
            if not others:
                del self._under_way[peer]

    def connections(self, peer: str) -> int:
        """Return how many connections a large pull from `peer` uses, as far as is known now."""
        return self._widths.settled(peer)

    def open_connections(self) -> tuple[int, int]:
        """Return how many connections bring blocks now, and how many are kept for the next pull."""
        busy = sum(pull.busy for pulls in self._under_way.values() for pull in pulls)
        return busy, sum(map(len, self._idle.values()))

    def borrow(self, address: str) -> tuple[str, trio.SocketStream] | None:
        """Return a kept connection to `address` that is not sealed, and the node there; None if there is none.

        Whoever has it has it kept again when nothing is left to be read on it, or closes it.
        """
        waiting = self._idle.get(address, [])
        while waiting:
            node, stream = waiting[-1]
            if not isinstance(stream, trio.SocketStream):
                return None
            waiting.pop()
            if not has_closed(stream):
                return node, stream
            stream.socket.close()
        return None

    async def open_stream(self, peer: str, address: str) -> Channel:
        """Open a greeted bulk stream to `peer` that nobody else uses.

        Raises:
            PeerError: it is not to be had, or another node answers there.
        """
        stream, node = await self._keys.greeted(peer, address, partial(self._connect, address))
        if node != peer:
            await trio.aclose_forcefully(stream)
            raise PeerGone(f"another node ({node}) answers at {address}", peer=peer)
        return stream

    def let_go_of_closed(self) -> None:
        """Close kept connections that the other side has closed; to be called now and then, for it may have died."""
        for address, streams in tuple(self._idle.items()):
            kept = [(node, stream) for node, stream in streams if not has_closed(stream)]
            for _, stream in streams:
                if has_closed(stream):
                    stream.socket.close()
            self._idle[address] = kept
            if not kept:
                del self._idle[address]

    async def aclose(self) -> None:
        """Close the kept connections."""
        for streams in self._idle.values():
            for _, stream in streams:
                await trio.aclose_forcefully(stream)
        self._idle.clear()

    async def _connect(self, address: str, ring: Rings | None) -> tuple[Channel, str]:
        return await connect(address, self._hello(), timeout_s=self._connect_timeout_s, ring=ring)

    def take(self, peer: str, address: str) -> Channel | None:
        """Return a kept connection; one to another node that had the address before, or under an old key, is closed."""
        waiting = self._idle.get(address, [])
        while waiting:
            node, stream = waiting.pop()
            if node == peer and not is_outdated(stream):
                return stream
            stream.socket.close()
        return None

    def keep(self, peer: str, address: str, stream: Channel) -> None:
        """Take a connection back that the next pull may use."""
        streams = self._idle[address] = self._idle.pop(address, [])
        if len(streams) < self._idle_max:
            streams.append((peer, stream))
        else:
            stream.socket.close()
        if len(self._idle) > _IDLE_ADDRESSES_MAX:
            for _, oldest in self._idle.pop(next(iter(self._idle))):
                oldest.socket.close()


@dataclass(frozen=True, slots=True)
class _Streams:
    """The connections of one pull: see `p2pkv.transport.tcp_pull.Streams`."""

    transport: TcpTransport
    peer: str
    address: str

    def take(self) -> Channel | None:
        return self.transport.take(self.peer, self.address)

    async def open(self) -> Channel:
        return await self.transport.open_stream(self.peer, self.address)

    def keep(self, stream: Channel) -> None:
        self.transport.keep(self.peer, self.address, stream)


async def serve_bulk(
    stream: Channel,
    *,
    peer: str,
    open_lease: OpenLease,
    idle_s: float,
    block_s: float = 60.0,
    on_sent: Callable[[int], None] = lambda count: None,  # noqa: ARG005 - who counts nothing says nothing
    on_overdue: Callable[[], None] = lambda: None,
    open_part: OpenPart | None = None,
    on_fabric: Callable[[FabricOffer], Awaitable[None]] | None = None,
    on_request: OnRequest | None = None,
) -> None:
    """Answer pulls of a greeted caller until it goes away, misbehaves, is silent for `idle_s`, or has no time left for one.

    A caller that offers a fabric is left to `on_fabric` from there on; `on_request` answers direct questions.

    Raises:
        MalformedMessage, SealRefused: it said something that is not a pull. The caller of this closes the stream.
    """
    while True:
        with trio.move_on_after(idle_s) as idle:
            try:
                payload = await read_frame_exactly(stream, peer=peer)
            except (PeerError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                if isinstance(exc, MalformedMessage | SealRefused):
                    raise
                return
        if idle.cancelled_caught:
            return
        message = decode_untrusted(payload, peer=peer)
        if isinstance(message, PullParts) and open_part is not None:
            goes_on = False
            with trio.CancelScope(deadline=until(message.remaining_ms)) as limit:
                goes_on = await serve_parts(
                    stream, message, peer=peer, open_part=open_part, block_s=block_s, on_sent=on_sent
                )
            if limit.cancelled_caught:
                on_overdue()
            if not goes_on:
                return
            continue
        if isinstance(message, FabricOffer) and on_fabric is not None:
            await on_fabric(message)
            return
        if isinstance(message, LeaseRequest) and on_request is not None and isinstance(stream, trio.SocketStream):
            with trio.move_on_after(min(block_s, message.remaining_ms / 1000)) as patience:
                if not await on_request(stream, message):
                    return
            if patience.cancelled_caught:
                return
            continue
        if not isinstance(message, Pull):
            raise MalformedMessage(f"{type(message).__name__} where Pull was due", peer=peer)
        sending = _Sending(stream, message, open_lease, on_sent, block_s=block_s, peer=peer)
        with trio.CancelScope(deadline=until(message.remaining_ms)) as limit:
            try:
                await sending.send()
            except (PeerError, trio.ClosedResourceError):
                return
        if limit.cancelled_caught:  # what was being sent broke off in the middle: the stream is of no more use
            on_overdue()
            return


class _Sending:
    """One answer: its first bytes where the event loop is, while the asker finds itself a thread, and the others in a thread.

    The lease is opened anew now and then: one that ended meanwhile no longer protects its slots. One more block is sent while
    the event loop does that. What is sent while a lease ends is caught by the receiver's digest.
    """

    def __init__(
        self,
        stream: Channel,
        pull: Pull,
        open_lease: OpenLease,
        on_sent: Callable[[int], None],
        *,
        block_s: float,
        peer: str,
    ) -> None:
        """`block_s` bounds each wait: who asks and does not read would hold the thread, and the slots, for ever."""
        self._stream = stream
        self._lease = pull.lease
        self._open_lease = open_lease
        self._on_sent = on_sent
        self._block_s = block_s
        self._peer = peer
        self._positions = bit_positions(pull.wanted)
        self._begun = 0
        """Positions that are sent or begun."""
        self._body = memoryview(b"")
        """Of the last of them, if it was not sent as a whole where the event loop is."""
        self._bodies: Bodies = ()
        self._looked_at = 0.0
        self._looked_bytes = 0
        """What had been sent then."""
        self._sent_bytes = 0
        self._counted_bytes = 0
        self._errors: list[Exception] = []
        self._looks: SimpleQueue[Bodies | None] = SimpleQueue()
        """What `_look` found; None: the answer ends here."""
        self._token = trio.lowlevel.current_trio_token()

    async def send(self) -> None:
        """Send all.

        Raises:
            PeerError: it was not possible.
        """
        try:
            with BlockingChannel(self._stream, timeout_s=self._block_s, peer=self._peer) as channel:
                if not self._begin(channel):
                    await run_blocking(partial(self._go_on, channel), interrupt=self._interrupt)
            if self._errors:
                raise self._errors[0]
            self._count()
        finally:
            if self._sent_bytes > self._counted_bytes:
                self._count()

    def _begin(self, channel: BlockingChannel) -> bool:
        """Send what the socket takes of the first blocks; say whether that was all."""
        self._bodies = self._open_lease(self._peer, self._lease) or ()
        self._looked_at = monotonic()
        room = _HERE_BYTES
        for position in self._positions:
            head, body = self._head_and_body(position)
            self._begun += 1
            if not channel.send_now([head, body[:PIECE_BYTES]], body=True) or len(body) > PIECE_BYTES:
                self._body = body
                return False
            self._sent_bytes += len(body)
            room -= len(body)
            if room <= 0:
                break
        return self._begun == len(self._positions)

    def _go_on(self, channel: BlockingChannel) -> None:
        """Send the others, or until something goes wrong; for a worker thread."""
        channel.flush()
        channel.send_body([self._body[PIECE_BYTES:]])
        self._sent_bytes += len(self._body)
        left = len(self._positions) - self._begun
        for position in self._positions[self._begun :]:
            left -= 1
            head, body = self._head_and_body(position)
            late = monotonic() - self._looked_at > _LOOK_S or self._sent_bytes - self._looked_bytes > _LOOK_BYTES
            if left and late:
                self._token.run_sync_soon(self._look)
            channel.send_body([head, body])
            self._sent_bytes += len(body)
            if left and late:
                bodies = self._looks.get()
                if bodies is None:
                    return
                self._bodies, self._looked_bytes = bodies, self._sent_bytes

    def _interrupt(self) -> None:
        """Have `_go_on` end soon; for the event loop's thread."""
        self._looks.put(None)
        with suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_RDWR)

    def _head_and_body(self, position: int) -> tuple[bytes | memoryview, memoryview]:
        """Return what stands on the stream for one block."""
        head, *body = _parts(self._lease, position, self._bodies[position] if position < len(self._bodies) else None)
        return head, memoryview(body[0] if body else b"")

    def _look(self) -> None:
        """Open the lease anew; for the event loop's thread, where nothing may raise."""
        try:
            self._count()
            self._looked_at = monotonic()
            self._looks.put(self._open_lease(self._peer, self._lease) or ())
        except Exception as exc:  # noqa: BLE001 - raised by `send`; here it would end the event loop
            self._errors.append(exc)
            self._looks.put(None)

    def _count(self) -> None:
        sent_bytes = self._sent_bytes
        count, self._counted_bytes = sent_bytes - self._counted_bytes, sent_bytes
        self._on_sent(count)


def _parts(lease: int, position: int, one: Offered | None) -> list[bytes | memoryview]:
    """Return what stands on the stream for one block."""
    if one is None:
        return [BulkHeader(lease, position, 0, 0, bytes(16), absent=True).pack()]
    return [packed(lease, position, len(one.body), one.segment_bytes, one.digest), one.body]


def _is_refusal(exc: BaseException) -> bool:
    """Whether every attempt was refused; a name may have several addresses, of which one may only be silent."""
    cause = exc.__cause__ or exc
    if isinstance(cause, BaseExceptionGroup):
        return all(map(_is_refusal, cause.exceptions))
    return isinstance(cause, ConnectionRefusedError)


def _reason(exc: BaseException) -> str:
    cause = exc.__cause__ or exc
    while isinstance(cause, BaseExceptionGroup):  # one attempt per address of a name; the first says enough
        cause = cause.exceptions[0]
    return str(getattr(cause, "strerror", None) or cause) or type(cause).__name__
