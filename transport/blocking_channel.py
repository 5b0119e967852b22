"""A greeted connection, borrowed by a worker thread that reads and writes it without the event loop.

While it is borrowed nobody else may touch it. What can go out at once is sent by whoever borrows it, on the event loop, while
a thread is only being found. The thread waits in the kernel with the GIL released; what a read through
the loop costs, some 0.1 ms of waiting for the loop's turn, would else be paid for every 200 KB that arrive. Its
descriptor blocks meanwhile, so that a piece of a block is one call however it arrives; timeouts are the kernel's.
"""

import os
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, TypeAlias

from p2pkv.errors import MalformedMessage, PeerGone, PeerTooSlow
from p2pkv.running_digest import PIECE_BYTES
from p2pkv.transport.bulk_header import HEADER_BYTES
from p2pkv.transport.mac import MAC_PIECE_BYTES, TagChecker, Tagger
from p2pkv.transport.offload import IDLE_S
from p2pkv.transport.records import RECORD_HEAD_BYTES, RECORD_OVERHEAD_BYTES
from p2pkv.transport.sealed_stream import Channel, SealedStream
from p2pkv.transport.subkeys import TAG_BYTES

BytesLike: TypeAlias = bytes | bytearray | memoryview
OnPiece: TypeAlias = Callable[[memoryview], None]
"""Called with each piece of what is received, in order, while it is hot."""
_TIMEVAL: Final = struct.Struct("ll")
_AHEAD_BYTES: Final = {
    "aead": 2 * RECORD_HEAD_BYTES + HEADER_BYTES + TAG_BYTES,
    "mac": HEADER_BYTES + TAG_BYTES,
    "off": 0,
}
"""What a read of less may bring: of a header all that protects it, and the length of what is behind it."""
_SMALL_BYTES: Final = 4096
"""Pieces up to here, headers that is, do not leave on their own."""


class BlockingChannel(AbstractContextManager["BlockingChannel"]):
    """Reads and writes of one thread at a time. An error leaves the connection of no more use."""

    def __init__(
        self,
        channel: Channel,
        *,
        timeout_s: float | None,
        peer: str,
        on_idle: Callable[[], None] | None = None,
        ahead: bool = False,
    ) -> None:
        """Borrow `channel`; every single wait is bounded by `timeout_s`.

        `on_idle` is called when nothing came for a moment after `watch`. With `ahead` a read of a few bytes takes some of what is
        behind them along, which is half of all calls where blocks are small; who asks for that calls `refuse_surplus` at the end.
        """
        self._sealed: Final = channel if isinstance(channel, SealedStream) else None
        below = channel.socket  # whose kind is said, so that the kernel is not asked for it: three calls
        self._socket: Final = socket.socket(below.family, below.type, below.proto, os.dup(below.fileno()))
        self._socket.setblocking(True)
        if (
            below.family != socket.AF_UNIX
        ):  # trio lets 16 KiB wait unsent: good for messages, and a wake-up per 16 KiB of a block
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
        self._recv_into: Final = self._socket.recv_into
        self._timeout_s = timeout_s or 0.0
        self._peer = peer
        self._on_idle = on_idle
        self._ahead_bytes = _AHEAD_BYTES[self._sealed.bulk if self._sealed is not None else "off"] if ahead else 0
        self._ahead = memoryview(bytearray(self._ahead_bytes))
        self._ahead_from = self._ahead_to = 0
        """Where in that room lies what was taken along."""
        self._head = bytearray(RECORD_HEAD_BYTES)
        self._head_view = memoryview(self._head)
        self._watching = False
        self._waits = True
        self._unsent: list[memoryview] = []
        """What `send_now` could not send; it may lie in the stream's room for a record."""
        self._limits: set[int] = set()
        """Which of the kernel's timeouts are set; the next to borrow the connection begins with none."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back, unless that is done."""
        if self._socket.fileno() < 0:
            return
        for which in tuple(self._limits):
            self._limit(which, 0.0)
        self._socket.setblocking(False)  # the loop's descriptor is another, but whether it blocks is theirs together
        self._socket.close()

    def watch(self) -> None:
        """Have `on_idle` called once if nothing comes for `IDLE_S`."""
        if not self._watching and self._on_idle is not None:
            self._watching = True
            self._limit(socket.SO_RCVTIMEO, IDLE_S)

    def send(self, message: BytesLike) -> None:
        """Send one message, sealed if the connection is.

        Raises:
            PeerGone, PeerTooSlow: it was not possible.
        """
        if self._sealed is None:
            self._send_all([memoryview(message)])
        else:
            self._send_records(self._sealed, [memoryview(message)])

    def send_now(self, parts: Sequence[BytesLike], *, body: bool) -> bool:
        """Send as `send` or `send_body`, without waiting: for the event loop's thread, before another has this.

        `parts` are a message, or a header and `PIECE_BYTES` of a body at most. Return whether all of it went; the rest, and an
        error, are left to `flush`, which has to come before anything else.
        """
        assert not self._unsent
        self._waits = False
        try:
            self.send_body(parts) if body else self.send(parts[0])
        finally:
            self._waits = True
        return not self._unsent

    def flush(self) -> None:
        """Send what `send_now` did not.

        Raises:
            PeerGone, PeerTooSlow: it was not possible.
        """
        views, self._unsent = self._unsent, []
        self._send_all(views)

    def receive_into(self, view: memoryview) -> None:
        """Fill `view` with what is no body, sealed if the connection is.

        Raises:
            PeerGone, PeerTooSlow, SealRefused: as `receive_body_into`.
        """
        if self._sealed is None:
            self._fill(view)
        else:
            self._receive_sealed(self._sealed, view, None)

    def send_body(self, parts: Sequence[BytesLike]) -> None:
        """Send a header and a body one behind the other, protected as was agreed.

        Raises:
            PeerGone, PeerTooSlow: it was not possible.
        """
        views = [memoryview(part) for part in parts if len(part)]
        if self._sealed is None or self._sealed.bulk == "off":
            self._send_all(views)
        elif self._sealed.tagger is not None:
            self._send_tagged(self._sealed.tagger, views)
        else:
            self._send_records(self._sealed, views)

    def receive_body_into(self, view: memoryview, on_piece: OnPiece | None = None) -> None:
        """Fill `view` with a header or a body, protected as was agreed.

        Raises:
            PeerGone, PeerTooSlow: it ended before, or nothing came.
            SealRefused: what came was not protected by the other side, or the key has been removed.
        """
        stream = self._sealed
        if stream is not None and stream.bulk == "aead":
            self._receive_sealed(stream, view, on_piece)
            return
        checker = stream.checker if stream is not None else None
        if len(view) <= MAC_PIECE_BYTES:
            self._receive_piece(view, checker, on_piece)
        else:
            for start in range(0, len(view), MAC_PIECE_BYTES):
                self._receive_piece(view[start : start + MAC_PIECE_BYTES], checker, on_piece)
        if stream is not None:
            stream.refuse_removed_key()

    def _receive_piece(self, piece: memoryview, checker: TagChecker | None, on_piece: OnPiece | None) -> None:
        self._fill(piece)
        if checker is not None:
            tag = bytearray(TAG_BYTES)
            self._fill(memoryview(tag))
            checker.check(piece, tag)
        if on_piece is not None:
            on_piece(piece)

    def _send_tagged(self, tagger: Tagger, views: list[memoryview]) -> None:
        waiting: list[memoryview] = []
        for view in views:
            for start in range(0, len(view), MAC_PIECE_BYTES):
                piece = view[start : start + MAC_PIECE_BYTES]
                waiting += (piece, memoryview(tagger.tag(piece)))
                if len(piece) > _SMALL_BYTES:  # while it is still in a cache
                    self._send_all(waiting)
                    waiting = []
        self._send_all(waiting)

    def _send_records(self, stream: SealedStream, views: list[memoryview]) -> None:
        waiting: list[memoryview] = []
        for view in views:
            for start in range(0, len(view), PIECE_BYTES):
                piece = view[start : start + PIECE_BYTES]
                if len(piece) <= _SMALL_BYTES:  # goes out with what follows
                    waiting.append(memoryview(stream.sealer.seal(piece)))
                    continue
                room = stream.record_room(RECORD_OVERHEAD_BYTES + len(piece))
                waiting.append(room[: stream.sealer.seal_into(piece, room)])
                self._send_all(waiting)
                waiting = []
        self._send_all(waiting)

    def _receive_sealed(self, stream: SealedStream, view: memoryview, on_piece: OnPiece | None) -> None:
        done, end = 0, len(view)
        while done < end:
            if not len(stream.rest):
                self._fill(self._head_view)
                length = stream.opener.length_untrusted(self._head)
                fits = length <= end - done
                into = view[done : done + length] if fits else memoryview(bytearray(length))
                sealed = stream.sealed_room(length + TAG_BYTES)
                self._fill(sealed)
                stream.refuse_removed_key()
                stream.opener.open_into(self._head, sealed, into)
                if fits:
                    if on_piece is not None:
                        on_piece(into)
                    done += length
                    continue
                stream.rest = into
            count = min(len(stream.rest), end - done)
            piece = view[done : done + count]
            piece[:] = stream.rest[:count]
            if on_piece is not None:
                on_piece(piece)
            stream.rest = stream.rest[count:]
            done += count

    def _send_all(self, views: list[memoryview]) -> None:
        if self._waits and self._timeout_s and socket.SO_SNDTIMEO not in self._limits:
            self._limit(socket.SO_SNDTIMEO, self._timeout_s)
        try:
            while views:
                sent = self._socket.sendmsg(views, (), 0 if self._waits else socket.MSG_DONTWAIT)
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
        except OSError as exc:
            if not self._waits:
                self._unsent += views
                return
            if isinstance(exc, BlockingIOError):
                raise PeerTooSlow("nothing was taken", peer=self._peer) from exc
            raise PeerGone(f"connection broke ({exc.strerror})", peer=self._peer) from exc

    def refuse_surplus(self) -> None:
        """Say no to what was taken along and nobody has asked for.

        Raises:
            MalformedMessage: there is some.
        """
        surplus = self._ahead_to - self._ahead_from
        if surplus:
            raise MalformedMessage(f"{surplus} bytes behind what was asked for", peer=self._peer)

    def _fill(self, view: memoryview) -> None:
        want, held = len(view), self._ahead_to - self._ahead_from
        if not held and want >= self._ahead_bytes:
            self._fill_whole(view)
            return
        room = self._ahead
        if held < want < self._ahead_bytes:
            room[:held] = room[self._ahead_from : self._ahead_to]
            self._ahead_from, self._ahead_to = 0, held
            while self._ahead_to < want:
                self._ahead_to += self._receive(room[self._ahead_to :], 0, missing=want - self._ahead_to)
            held = self._ahead_to
        count = min(want, held)
        view[:count] = room[self._ahead_from : self._ahead_from + count]
        self._ahead_from += count
        if count < want:
            self._fill_whole(view[count:])

    def _fill_whole(self, view: memoryview) -> None:
        want = len(view)
        done = self._receive(view, socket.MSG_WAITALL, missing=want)
        while done < want:
            if self._watching:
                self._stop_watching()
            done += self._receive(view[done:], socket.MSG_WAITALL, missing=want - done)

    def _receive(self, view: memoryview, flags: int, *, missing: int) -> int:
        """Return how many bytes came; none if nothing did while that was being watched."""
        if self._timeout_s and socket.SO_RCVTIMEO not in self._limits:
            self._limit(socket.SO_RCVTIMEO, self._timeout_s)
        try:
            count = self._recv_into(view, 0, flags)
        except BlockingIOError as exc:
            if not self._watching:
                raise PeerTooSlow("nothing came", peer=self._peer) from exc
            self._stop_watching()
            return 0
        except OSError as exc:
            raise PeerGone(f"connection broke ({exc.strerror})", peer=self._peer) from exc
        if count == 0:
            raise PeerGone(f"stream ended {missing} bytes early", peer=self._peer)
        return count

    def _stop_watching(self) -> None:
        self._watching = False
        self._limit(socket.SO_RCVTIMEO, self._timeout_s)
        if self._on_idle is not None:
            self._on_idle()

    def _limit(self, which: int, seconds: float) -> None:
        """Bound one call that waits; 0 is no bound."""
        self._limits.add(which) if seconds else self._limits.discard(which)
        whole = int(seconds)
        self._socket.setsockopt(socket.SOL_SOCKET, which, _TIMEVAL.pack(whole, round((seconds - whole) * 1e6)))
