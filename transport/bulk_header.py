"""The fixed 64 bytes in front of every block's body on a bulk stream. Bodies never touch msgpack.

0  4s  magic "P2KB"
4  u16 flags: 1 = absent (the lease is over or never was; no body follows)
6  u16 reserved, zero
8  u64 lease      which answer this belongs to: an answer to an earlier, cancelled pull is noticed
16 u32 position   in the grant
20 u32 length     of the body that follows
24 u32 segment_bytes
28 u32 reserved, zero
32 16s digest     of the body, as announced in the grant
48 u64 reserved, zero
56 u64 XXH3-64 of bytes 0..56
"""

import struct
from dataclasses import dataclass
from typing import Final

import xxhash

from p2pkv.errors import MalformedMessage
from p2pkv.transport.wire import BLOCK_BYTES_MAX

_FIELDS: Final = struct.Struct("<4sHHQIIII16sQ")
_CHECK: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _FIELDS.size + _CHECK.size
assert HEADER_BYTES == 64  # noqa: PLR2004 - the format says so
_MAGIC: Final = b"P2KB"
_ABSENT: Final = 1


@dataclass(frozen=True, slots=True)
class BulkHeader:
    """What follows on the stream: `length` bytes of block `position` of `lease`, or nothing if `absent`."""

    lease: int
    position: int
    length: int
    segment_bytes: int
    digest: bytes
    absent: bool = False

    def pack(self) -> bytes:
        """Return the 64 bytes."""
        assert 0 <= self.length <= BLOCK_BYTES_MAX
        flags = _ABSENT if self.absent else 0
        fields = _FIELDS.pack(
            _MAGIC, flags, 0, self.lease, self.position, self.length, self.segment_bytes, 0, self.digest, 0
        )
        return fields + _CHECK.pack(xxhash.xxh3_64_intdigest(fields))


def packed(lease: int, position: int, length: int, segment_bytes: int, digest: bytes) -> bytes:
    """Return the 64 bytes in front of a block that is there: `BulkHeader.pack`, at a third of its time."""
    fields = _FIELDS.pack(_MAGIC, 0, 0, lease, position, length, segment_bytes, 0, digest, 0)
    return fields + _CHECK.pack(xxhash.xxh3_64_intdigest(fields))


def unpack_untrusted(data: bytes, *, peer: str) -> BulkHeader:
    """Return the header in `data`, which came from the network.

    Raises:
        MalformedMessage: it is not a header, was altered, or announces more than a block may have.
    """
    if len(data) != HEADER_BYTES:
        raise MalformedMessage(f"bulk header of {len(data)} bytes, must be {HEADER_BYTES}", peer=peer)
    magic, flags, _, lease, position, length, segment_bytes, _, digest, _ = _FIELDS.unpack_from(data)
    (check,) = _CHECK.unpack_from(data, _FIELDS.size)
    if magic != _MAGIC or check != xxhash.xxh3_64_intdigest(data[: _FIELDS.size]):
        raise MalformedMessage("bulk header with a wrong magic or checksum", peer=peer)
    if length > BLOCK_BYTES_MAX:
        raise MalformedMessage(f"block of {length} bytes announced, limit {BLOCK_BYTES_MAX}", peer=peer)
    return BulkHeader(lease, position, length, segment_bytes, digest, absent=bool(flags & _ABSENT))
