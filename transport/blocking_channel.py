"""A greeted connection, borrowed by a worker thread that reads and writes it without the event loop.

While it is borrowed nobody else may touch it. The thread waits in the kernel with the GIL released; what a read through
the loop costs, some 0.1 ms of waiting for the loop's turn, would else be paid for every 200 KB that arrive. Timeouts
are the kernel's `poll`, so the descriptor stays non-blocking for the loop that gets it back.
"""

import os
import socket
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, TypeAlias

from p2pkv.errors import PeerGone, PeerTooSlow
from p2pkv.transport.records import RECORD_BYTES_MAX, RECORD_HEAD_BYTES, RECORD_OVERHEAD_BYTES
from p2pkv.transport.sealed_stream import Channel, SealedStream
from p2pkv.transport.subkeys import TAG_BYTES

BytesLike: TypeAlias = bytes | bytearray | memoryview


class BlockingChannel(AbstractContextManager["BlockingChannel"]):
    """Reads and writes of one thread. An error leaves the connection of no more use."""

    def __init__(self, channel: Channel, *, timeout_s: float | None, peer: str) -> None:
        """Borrow `channel`; every single wait is bounded by `timeout_s`."""
        self._sealed: Final = channel if isinstance(channel, SealedStream) else None
        self._socket: Final = socket.socket(fileno=os.dup(channel.socket.fileno()))
        # Without a bound a day stands for it: None would make the descriptor blocking, for the loop too.
        self._socket.settimeout(86_400.0 if timeout_s is None else timeout_s)
        self._peer = peer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, parts: Sequence[BytesLike]) -> None:
        """Send `parts` one behind the other, gathered by the kernel if they are not sealed.

        Raises:
            PeerGone, PeerTooSlow: it was not possible.
        """
        try:
            if self._sealed is None:
                self._send_plain([memoryview(part) for part in parts if len(part)])
                return
            for part in parts:
                view = memoryview(part)
                for start in range(0, len(view), RECORD_BYTES_MAX):
                    piece = view[start : start + RECORD_BYTES_MAX]
                    room = self._sealed.record_room(RECORD_OVERHEAD_BYTES + len(piece))
                    self._socket.sendall(room[: self._sealed.sealer.seal_into(piece, room)])
        except TimeoutError as exc:
            raise PeerTooSlow("nothing was taken", peer=self._peer) from exc
        except OSError as exc:
            raise PeerGone(f"connection broke ({exc.strerror})", peer=self._peer) from exc

    def receive_into(self, view: memoryview) -> None:
        """Fill `view`.

        Raises:
            PeerGone, PeerTooSlow: it ended before, or nothing came.
            SealRefused: what came was not sealed by the other side, or its key has been removed.
        """
        if self._sealed is None:
            self._fill(view)
            return
        done = 0
        while done < len(view):
            if not len(self._sealed.rest):
                head = bytearray(RECORD_HEAD_BYTES)
                self._fill(memoryview(head))
                length = self._sealed.opener.length_untrusted(head)
                fits = length <= len(view) - done
                into = view[done : done + length] if fits else memoryview(bytearray(length))
                sealed = self._sealed.sealed_room(length + TAG_BYTES)
                self._fill(sealed)
                self._sealed.refuse_removed_key()
                self._sealed.opener.open_into(head, sealed, into)
                if fits:
                    done += length
                    continue
                self._sealed.rest = into
            rest = self._sealed.rest
            count = min(len(rest), len(view) - done)
            view[done : done + count] = rest[:count]
            self._sealed.rest = rest[count:]
            done += count

    def _send_plain(self, views: list[memoryview]) -> None:
        while views:
            sent = self._socket.sendmsg(views)
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    def _fill(self, view: memoryview) -> None:
        done = 0
        try:
            while done < len(view):
                count = self._socket.recv_into(view[done:])
                if count == 0:
                    raise PeerGone(f"stream ended {len(view) - done} bytes early", peer=self._peer)
                done += count
        except TimeoutError as exc:
            raise PeerTooSlow("nothing came", peer=self._peer) from exc
        except OSError as exc:
            raise PeerGone(f"connection broke ({exc.strerror})", peer=self._peer) from exc
