"""A greeted connection, borrowed by a worker thread that reads and writes it without the event loop.

While it is borrowed nobody else may touch it. The thread waits in the kernel with the GIL released; what a read through
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

from p2pkv.errors import PeerGone, PeerTooSlow
from p2pkv.running_digest import PIECE_BYTES
from p2pkv.transport.mac import MAC_PIECE_BYTES, Tagger
from p2pkv.transport.offload import REPORT_S
from p2pkv.transport.records import RECORD_HEAD_BYTES, RECORD_OVERHEAD_BYTES
from p2pkv.transport.sealed_stream import Channel, SealedStream
from p2pkv.transport.subkeys import TAG_BYTES

BytesLike: TypeAlias = bytes | bytearray | memoryview
OnPiece: TypeAlias = Callable[[memoryview], None]
"""Called with each piece of what is received, in order, while it is hot."""
_TIMEVAL: Final = struct.Struct("ll")
_SMALL_BYTES: Final = 4096
"""Pieces up to here, headers that is, do not leave on their own."""


def _ignore(_: memoryview) -> None:
    """Do nothing with a piece."""


class BlockingChannel(AbstractContextManager["BlockingChannel"]):
    """Reads and writes of one thread. An error leaves the connection of no more use."""

    def __init__(
        self,
        channel: Channel,
        *,
        timeout_s: float | None,
        peer: str,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        """Borrow `channel`; every single wait is bounded by `timeout_s`.

        `on_idle` is called when nothing came for a moment after `watch`.
        """
        self._sealed: Final = channel if isinstance(channel, SealedStream) else None
        self._socket: Final = socket.socket(fileno=os.dup(channel.socket.fileno()))
        self._socket.setblocking(True)
        self._timeout_s = timeout_s or 0.0
        self._peer = peer
        self._on_idle = on_idle
        self._watching = False
        self._limit(socket.SO_SNDTIMEO, self._timeout_s)
        self._limit(socket.SO_RCVTIMEO, self._timeout_s)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.setblocking(False)  # the loop's descriptor is another, but whether it blocks is theirs together
        self._socket.close()

    def watch(self) -> None:
        """Have `on_idle` called once if nothing comes for `REPORT_S`."""
        if not self._watching and self._on_idle is not None:
            self._watching = True
            self._limit(socket.SO_RCVTIMEO, REPORT_S)

    def send(self, message: BytesLike) -> None:
        """Send one message, sealed if the connection is.

        Raises:
            PeerGone, PeerTooSlow: it was not possible.
        """
        if self._sealed is None:
            self._send_all([memoryview(message)])
        else:
            self._send_records(self._sealed, [memoryview(message)])

    def receive_into(self, view: memoryview) -> None:
        """Fill `view` with what is no body, sealed if the connection is.

        Raises:
            PeerGone, PeerTooSlow, SealRefused: as `receive_body_into`.
        """
        if self._sealed is None:
            self._fill(view)
        else:
            self._receive_sealed(self._sealed, view, _ignore)

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

    def receive_body_into(self, view: memoryview, on_piece: OnPiece = _ignore) -> None:
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
        for start in range(0, len(view), MAC_PIECE_BYTES):
            piece = view[start : start + MAC_PIECE_BYTES]
            self._fill(piece)
            if checker is not None:
                tag = bytearray(TAG_BYTES)
                self._fill(memoryview(tag))
                checker.check(piece, tag)
            on_piece(piece)
        if stream is not None:
            stream.refuse_removed_key()

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

    def _receive_sealed(self, stream: SealedStream, view: memoryview, on_piece: OnPiece) -> None:
        done = 0
        while done < len(view):
            if not len(stream.rest):
                head = bytearray(RECORD_HEAD_BYTES)
                self._fill(memoryview(head))
                length = stream.opener.length_untrusted(head)
                fits = length <= len(view) - done
                into = view[done : done + length] if fits else memoryview(bytearray(length))
                sealed = stream.sealed_room(length + TAG_BYTES)
                self._fill(sealed)
                stream.refuse_removed_key()
                stream.opener.open_into(head, sealed, into)
                if fits:
                    on_piece(into)
                    done += length
                    continue
                stream.rest = into
            count = min(len(stream.rest), len(view) - done)
            piece = view[done : done + count]
            piece[:] = stream.rest[:count]
            on_piece(piece)
            stream.rest = stream.rest[count:]
            done += count

    def _send_all(self, views: list[memoryview]) -> None:
        try:
            while views:
                sent = self._socket.sendmsg(views)
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
        except BlockingIOError as exc:
            raise PeerTooSlow("nothing was taken", peer=self._peer) from exc
        except OSError as exc:
            raise PeerGone(f"connection broke ({exc.strerror})", peer=self._peer) from exc

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                count = self._socket.recv_into(view[done:], 0, socket.MSG_WAITALL)
            except BlockingIOError as exc:
                if not self._watching:
                    raise PeerTooSlow("nothing came", peer=self._peer) from exc
                count = -1
            except OSError as exc:
                raise PeerGone(f"connection broke ({exc.strerror})", peer=self._peer) from exc
            if count == 0:
                raise PeerGone(f"stream ended {len(view) - done} bytes early", peer=self._peer)
            done += max(0, count)
            if done < len(view) and self._watching:
                self._stop_watching()

    def _stop_watching(self) -> None:
        self._watching = False
        self._limit(socket.SO_RCVTIMEO, self._timeout_s)
        if self._on_idle is not None:
            self._on_idle()

    def _limit(self, which: int, seconds: float) -> None:
        """Bound one call that waits; 0 is no bound."""
        whole = int(seconds)
        self._socket.setsockopt(socket.SOL_SOCKET, which, _TIMEVAL.pack(whole, round((seconds - whole) * 1e6)))
