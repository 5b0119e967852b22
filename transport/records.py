"""A sealed stream as records, sans-IO: a u32 little-endian length of the ciphertext, the ciphertext, a tag of 16 bytes.

The length is authenticated with its record. Nonces count the records of one direction, so a record that is missing,
repeated, moved or altered does not open, and nothing behind it does. What a record holds is bytes of the stream, not a
message: messages have frames of their own inside.
"""

import struct
from typing import Final

from cryptography.exceptions import InvalidTag

from p2pkv.errors import PeerGone, SealRefused
from p2pkv.transport.subkeys import TAG_BYTES, cipher, nonce

RECORD_BYTES_MAX: Final = 2**20
"""Bytes of the stream in one record: what has to arrive before any of it can be believed."""
RECORDS_MAX: Final = 2**32
"""Records under one key: 4 PiB, far below what AES-GCM stands; then the connection is over and a new one has new keys."""
_LENGTH: Final = struct.Struct("<I")
RECORD_HEAD_BYTES: Final = _LENGTH.size
RECORD_OVERHEAD_BYTES: Final = RECORD_HEAD_BYTES + TAG_BYTES


class RecordSealer:
    """Seals one direction of one connection."""

    def __init__(self, key: bytes) -> None:
        self._cipher = cipher(key)
        self._count = 0

    def seal_into(self, data: bytes | bytearray | memoryview, record: memoryview) -> int:
        """Write the record with `data` to the front of `record`; return its length.

        Raises:
            PeerGone: the keys are used up.
        """
        assert 0 < len(data) <= RECORD_BYTES_MAX
        if self._count >= RECORDS_MAX:
            raise PeerGone("the keys of a connection are used up", peer="this stream")
        end = RECORD_OVERHEAD_BYTES + len(data)
        _LENGTH.pack_into(record, 0, len(data))
        self._count += 1
        self._cipher.encrypt_into(nonce(self._count), data, record[:RECORD_HEAD_BYTES], record[RECORD_HEAD_BYTES:end])
        return end

    def seal(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return the record with `data`."""
        record = bytearray(RECORD_OVERHEAD_BYTES + len(data))
        self.seal_into(data, memoryview(record))
        return bytes(record)


class RecordOpener:
    """Opens one direction of one connection."""

    def __init__(self, key: bytes, *, peer: str) -> None:
        self._cipher = cipher(key)
        self._peer = peer
        self._count = 0

    def length_untrusted(self, head: bytes | bytearray) -> int:
        """Return how many bytes of the stream the record behind `head` has.

        Raises:
            SealRefused: more than a record may have, or none.
        """
        (length,) = _LENGTH.unpack(head)
        if not 0 < length <= RECORD_BYTES_MAX:
            raise SealRefused("malformed", peer=self._peer)
        return int(length)

    def open_into(self, head: bytes | bytearray, sealed: memoryview, into: memoryview) -> None:
        """Write what `sealed`, ciphertext and tag, holds to `into`, which is exactly as long.

        Raises:
            SealRefused: it is not the next record of this direction. `into` is undefined.
        """
        self._count += 1
        try:
            self._cipher.decrypt_into(nonce(self._count), sealed, head, into)
        except InvalidTag as exc:
            raise SealRefused("forged", peer=self._peer) from exc
