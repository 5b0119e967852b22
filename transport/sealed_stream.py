"""A TCP stream whose bytes are sealed: read and written like the plain one, with records (`p2pkv.transport.records`) below.

Large pieces are encrypted and decrypted in worker threads, where the GIL is released, so that gossip does not wait
for a block. A record that fills the place where its bytes belong is decrypted there; nothing is copied in between.
After any error, and after a cancelled read or write, the stream is of no more use and is to be closed.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar

import trio

from p2pkv.errors import PeerGone, SealRefused
from p2pkv.transport.bulk_protection import BulkProtection
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.mac import TagChecker, Tagger
from p2pkv.transport.records import (
    RECORD_BYTES_MAX,
    RECORD_HEAD_BYTES,
    RECORD_OVERHEAD_BYTES,
    RecordOpener,
    RecordSealer,
)
from p2pkv.transport.subkeys import TAG_BYTES

_THREAD_BYTES: Final = 512 * 1024
"""Records from this size on are left to a worker thread. 512 KiB take about 40 µs; the way to a thread and back takes 50."""


class Guarded(trio.abc.Stream):
    """A connection whose two ends have proved to each other that they belong here."""

    @property
    @abstractmethod
    def below(self) -> trio.abc.Stream:
        """The stream that its bytes travel on."""

    @abstractmethod
    def is_current(self) -> bool:
        """Whether a new connection would be under the same keys; if not, it is better."""


class SealedStream(Guarded):
    """One connection whose two ends have proved to each other that they have a key of the ring."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        sealer: RecordSealer,
        opener: RecordOpener,
        key: bytes,
        ring: Callable[[], KeyRing],
        peer: str,
        bulk: BulkProtection = "aead",
        tag_key: bytes = b"",
    ) -> None:
        """Take over `stream` right behind the handshake; `key` is the key of the ring that it was made under.

        `bulk` is how bodies are protected on it, `tag_key` what they are tagged under if that is all.
        """
        self.bulk: Final = bulk
        self.tagger: Final = Tagger(tag_key) if bulk == "mac" else None
        self.checker: Final = TagChecker(tag_key, peer=peer) if bulk == "mac" else None
        self._stream = stream
        self.sealer = sealer
        self.opener = opener
        self._key = key
        self._ring = ring
        self._peer = peer
        self._record = memoryview(bytearray(0))
        self._sealed = memoryview(bytearray(0))
        self._head = bytearray(RECORD_HEAD_BYTES)
        self.rest = memoryview(b"")
        """Opened and not read yet."""

    @property
    def below(self) -> trio.abc.Stream:
        """The stream that the records travel on."""
        return self._stream

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket below, to ask whether it is readable, or to close it; there must be one."""
        assert isinstance(self._stream, trio.SocketStream)
        return self._stream.socket

    def is_current(self) -> bool:
        """Whether this connection's key is still the primary one; if not, a new connection is better."""
        return self._ring().keys[0] == self._key

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Seal and send `data`."""
        view = memoryview(data)
        for start in range(0, len(view), RECORD_BYTES_MAX):
            piece = view[start : start + RECORD_BYTES_MAX]
            record = self.record_room(RECORD_OVERHEAD_BYTES + len(piece))
            if len(piece) < _THREAD_BYTES:
                end = self.sealer.seal_into(piece, record)
            else:
                end = await trio.to_thread.run_sync(self.sealer.seal_into, piece, record)
            await self._stream.send_all(record[:end])

    def seal(self, data: bytes) -> memoryview:
        """Return `data`, which fits one record, as it stands on the wire; it has to be written there, all of it and next."""
        record = self.record_room(RECORD_OVERHEAD_BYTES + len(data))
        return record[: self.sealer.seal_into(memoryview(data), record)]

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket takes bytes."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return some bytes, or none when the other side has closed.

        Raises:
            SealRefused: what came was not sealed by the other side, or its key has been removed.
            PeerGone: it went away in the middle of a record.
        """
        if not self.rest:
            length = await self._next_length(may_end=True)
            if not length:
                return b""
            self.rest = memoryview(bytearray(length))
            await self._open_record(length, self.rest)
        count = len(self.rest) if max_bytes is None else min(max_bytes, len(self.rest))
        data, self.rest = bytes(self.rest[:count]), self.rest[count:]
        return data

    async def receive_into(self, view: memoryview) -> None:
        """Fill `view`.

        Raises:
            SealRefused, PeerGone: as `receive_some`; `view` is undefined.
        """
        done = 0
        while done < len(view):
            if not self.rest:
                length = await self._next_length(may_end=False)
                if length <= len(view) - done:
                    await self._open_record(length, view[done : done + length])
                    done += length
                    continue
                self.rest = memoryview(bytearray(length))
                await self._open_record(length, self.rest)
            count = min(len(self.rest), len(view) - done)
            view[done : done + count] = self.rest[:count]
            self.rest = self.rest[count:]
            done += count

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    def record_room(self, size: int) -> memoryview:
        """Return room for a record that is to be sent, the same every time."""
        if len(self._record) < size:
            self._record = memoryview(bytearray(size))
        return self._record

    def sealed_room(self, size: int) -> memoryview:
        """Return room of exactly `size` bytes for what is to be opened, the same every time."""
        if len(self._sealed) < size:
            self._sealed = memoryview(bytearray(size))
        return self._sealed[:size]

    def refuse_removed_key(self) -> None:
        """Say no to what is sealed under a key that has been removed since.

        Raises:
            SealRefused: it is this connection's.
        """
        if self._key not in self._ring().keys:  # what was opened under it before is not opened any more
            raise SealRefused("unknown_key", peer=self._peer, detail="removed")

    async def _next_length(self, *, may_end: bool) -> int:
        """Return the length of the next record; 0 if the stream ended instead and may."""
        got = await self._fill(memoryview(self._head))
        if got < RECORD_HEAD_BYTES:
            if got == 0 and may_end:
                return 0
            raise PeerGone("stream ended early", peer=self._peer)
        return self.opener.length_untrusted(self._head)

    async def _open_record(self, length: int, into: memoryview) -> None:
        sealed = self.sealed_room(length + TAG_BYTES)
        if await self._fill(sealed) < len(sealed):
            raise PeerGone("stream ended early", peer=self._peer)
        self.refuse_removed_key()
        if length < _THREAD_BYTES:
            self.opener.open_into(self._head, sealed, into)
        else:
            await trio.to_thread.run_sync(self.opener.open_into, self._head, sealed, into)

    async def _fill(self, view: memoryview) -> int:
        try:
            return await fill(self._stream, view)
        except OSError as exc:  # as trio's own streams do
            raise trio.BrokenResourceError(str(exc)) from exc

    def __repr__(self) -> str:
        return f"<SealedStream peer={self._peer}>"


S = TypeVar("S", bound=trio.abc.Stream)
Channel: TypeAlias = trio.SocketStream | SealedStream
"""A greeted connection: sealed if this node has a keyring."""


async def receive_into(stream: Channel, view: memoryview, *, peer: str) -> None:
    """Fill `view` from a connection of either kind.

    Raises:
        PeerGone: it ended before.
        SealRefused: see `SealedStream.receive_some`.
    """
    if isinstance(stream, SealedStream):
        await stream.receive_into(view)
        return
    count = await fill(stream, view)
    if count < len(view):
        raise PeerGone(f"stream ended {len(view) - count} bytes early", peer=peer)


def is_outdated(stream: trio.abc.Stream) -> bool:
    """Whether a new connection would be under another key than this one."""
    return isinstance(stream, Guarded) and not stream.is_current()


def has_closed(stream: trio.abc.Stream) -> bool:
    """Whether the other side of a stream on which it says nothing has closed it: then there is an end to be read."""
    below = stream.below if isinstance(stream, Guarded) else stream
    return isinstance(below, trio.SocketStream) and below.socket.is_readable()


async def fill(stream: trio.abc.Stream, view: memoryview) -> int:
    """Read until `view` is full or the stream ends; return how many bytes came."""
    done = 0
    while done < len(view):
        if isinstance(stream, trio.SocketStream):
            try:
                count = await stream.socket.recv_into(view[done:])
            except OSError as exc:  # as streams say it
                raise trio.BrokenResourceError(f"connection broke ({exc.strerror})") from exc
        else:
            data = await stream.receive_some(len(view) - done)
            count = len(data)
            view[done : done + count] = data
        if count == 0:
            break
        done += count
    return done
