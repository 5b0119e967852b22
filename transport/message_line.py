"""Questions and answers on a greeted stream, for a worker thread, and for one that can be told to stop waiting.

To stop is not to close: after a question that was not waited for, the answer still says when the other side has done
what it was asked to do, and so does its hanging up.
"""

import os
import select
from typing import Final

from p2pkv.errors import PeerError, PeerGone
from p2pkv.transport.blocking_channel import BlockingChannel
from p2pkv.transport.framing import LENGTH_BYTES, FrameReader, frame
from p2pkv.transport.sealed_stream import Channel, SealedStream
from p2pkv.transport.wire import AnyMessage, Written, decode_untrusted, encode

_FRAME_S: Final = 10.0
"""How long the rest of a message may take once its first bytes are here."""
_GLANCE_S: Final = 0.05
"""The same where the event loop looks; if it takes longer, only the end of the stream says that all is over."""


class Stopped(Exception):
    """`MessageLine.stop` was called; an answer may still come."""


class MessageLine:
    """Sends and receives one message at a time. The stream below is closed by whoever opened it."""

    def __init__(self, channel: Channel, *, peer: str) -> None:
        self._channel = channel
        self._peer = peer
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.stopped = False

    def close(self) -> None:
        """Give back what waiting took; not while a thread waits."""
        os.close(self._wake)

    def stop(self) -> None:
        """Have the thread that waits in `receive`, or comes there next, raise `Stopped`."""
        self.stopped = True
        os.eventfd_write(self._wake, 1)

    def send(self, message: AnyMessage) -> None:
        """Send one message.

        Raises:
            PeerGone, PeerTooSlow: it was not possible.
        """
        with BlockingChannel(self._channel, timeout_s=_FRAME_S, peer=self._peer) as channel:
            channel.send(frame(encode(message)))

    def receive(self) -> AnyMessage:
        """Wait for a message, without limit until it begins.

        Raises:
            Stopped: by `stop`.
            PeerGone, PeerTooSlow: the stream ended, or the message did not.
            MalformedMessage, SealRefused: it is none.
        """
        if not has_waiting(self._channel):
            waiting = select.poll()
            waiting.register(self._wake, select.POLLIN)
            waiting.register(self._channel.socket.fileno(), select.POLLIN)
            ready = dict(waiting.poll())
            if self._wake in ready:
                raise Stopped
        with BlockingChannel(self._channel, timeout_s=_FRAME_S, peer=self._peer) as channel:
            return receive_message(channel, peer=self._peer)


def has_waiting(channel: Channel) -> bool:
    """Say whether bytes were read and opened already, so that the socket need not be readable."""
    return isinstance(channel, SealedStream) and len(channel.rest) > 0


def receive_message(channel: BlockingChannel, *, peer: str) -> AnyMessage:
    """Read one frame and not a byte more; as `MessageLine.receive`."""
    reader = FrameReader(peer=peer)
    need = LENGTH_BYTES
    while True:
        piece = bytearray(need)
        channel.receive_into(memoryview(piece))
        reader.feed(piece)
        payload = reader.next_frame()
        if payload is not None:
            return decode_untrusted(payload, peer=peer)
        need = reader.missing_bytes()


class AbandonedAnswer:
    """A stream on which a `Written` is due that nobody waits for: looked at now and then, without waiting."""

    def __init__(self, channel: Channel, *, peer: str) -> None:
        self._channel = channel
        self._peer = peer
        self._over = False

    def is_over(self) -> bool:
        """Say whether the answer has come, or the other side has hung up; closes the stream then."""
        while not self._over:
            if not has_waiting(self._channel):
                waiting = select.poll()
                waiting.register(self._channel.socket.fileno(), select.POLLIN)
                if not waiting.poll(0):
                    return False
            try:
                with BlockingChannel(self._channel, timeout_s=_GLANCE_S, peer=self._peer) as channel:
                    self._over = isinstance(receive_message(channel, peer=self._peer), Written)
            except PeerGone:
                self._over = True
            except PeerError:  # it speaks no sense any more; only its end says that it does nothing any more
                return False
        self._channel.socket.close()
        return True
