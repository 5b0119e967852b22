"""Bytes <-> frames, sans-IO: a frame is a u32 little-endian length and that many bytes.

    reader = FrameReader(peer="b")
    reader.feed(data)
    while (frame := reader.next_frame()) is not None: ...

Holds at most one frame plus what the caller fed; the length is checked before anything waits for its bytes.
"""

import struct
from typing import Final

from p2pkv.errors import MalformedMessage, PeerGone
from p2pkv.transport.wire import MESSAGE_BYTES_MAX

_LENGTH: Final = struct.Struct("<I")
LENGTH_BYTES: Final = _LENGTH.size


def frame(payload: bytes) -> bytes:
    """Return `payload` behind its length."""
    assert len(payload) <= MESSAGE_BYTES_MAX, f"frame of {len(payload)} bytes"
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a stream of bytes from one peer into frames."""

    def __init__(self, *, peer: str, frame_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._peer = peer
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> None:
        """Take bytes as they arrived, in pieces of any size."""
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """Return the next whole frame's payload, or None if more bytes are needed.

        Raises:
            MalformedMessage: the stream announces a frame larger than allowed. The stream cannot be read any further.
        """
        if len(self._buffer) < LENGTH_BYTES:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self._frame_bytes_max:
            raise MalformedMessage(f"frame of {length} bytes, limit {self._frame_bytes_max}", peer=self._peer)
        end = LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[LENGTH_BYTES:end])
        del self._buffer[:end]
        return payload

    def missing_bytes(self) -> int:
        """Return how many more bytes complete what is known to be due: the length, then the frame."""
        if len(self._buffer) < LENGTH_BYTES:
            return LENGTH_BYTES - len(self._buffer)
        (length,) = _LENGTH.unpack_from(self._buffer)
        return int(LENGTH_BYTES + length - len(self._buffer))

    def finish(self) -> None:
        """Say that the stream has ended.

        Raises:
            PeerGone: it ended in the middle of a frame.
        """
        if self._buffer:
            raise PeerGone(f"stream ended {len(self._buffer)} bytes into a frame", peer=self._peer)

    def __repr__(self) -> str:
        return f"<FrameReader peer={self._peer} buffered={len(self._buffer)}>"
