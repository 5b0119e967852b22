"""One block in a file, for people: `p2pkv get KEY >FILE` writes it, `p2pkv put KEY <FILE` reads it.

0   8s  magic "p2pkvblk"
8   u32 version, 1
12  u32 segment_bytes
16  u64 length of the body
24  32s namespace
56  32s key
88  16s digest of the body
104 u64 XXH3-64 of bytes 0..104
112 body
"""

import struct
from typing import Final

import xxhash

from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.errors import NotABlockFile
from p2pkv.transport.wire import BLOCK_BYTES_MAX

_MAGIC: Final = b"p2pkvblk"
_VERSION: Final = 1
_FIELDS: Final = struct.Struct("<8sIIQ32s32s16s")
_CHECK: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _FIELDS.size + _CHECK.size


def pack_header(info: BlockInfo) -> bytes:
    """Return what stands in front of the body."""
    fields = _FIELDS.pack(_MAGIC, _VERSION, info.segment_bytes, info.length, info.namespace, info.key, info.digest)
    return fields + _CHECK.pack(xxhash.xxh3_64_intdigest(fields))


def unpack(data: bytes) -> tuple[BlockInfo, memoryview]:
    """Return the block in `data`: what it is, and its body.

    Raises:
        NotABlockFile: it is none, or was cut short or altered anywhere.
    """
    if len(data) < HEADER_BYTES or data[: len(_MAGIC)] != _MAGIC:
        raise NotABlockFile("not a block file", hint="`p2pkv get KEY >FILE` writes one")
    _, version, segment_bytes, length, namespace, key, digest = _FIELDS.unpack_from(data)
    (check,) = _CHECK.unpack_from(data, _FIELDS.size)
    if check != xxhash.xxh3_64_intdigest(data[: _FIELDS.size]):
        raise NotABlockFile("block file with an altered header")
    if version != _VERSION:
        raise NotABlockFile(f"block file of version {version}, this p2pkv reads {_VERSION}")
    body = memoryview(data)[HEADER_BYTES:]
    if len(body) != length or not 0 < length <= BLOCK_BYTES_MAX or not segment_bytes or length % segment_bytes:
        raise NotABlockFile(f"block file with {len(body)} bytes of body, its header says {length}")
    if block_digest(body, segment_bytes) != digest:
        raise NotABlockFile("block file with an altered body")
    return BlockInfo(BlockKey(key), namespace, length, segment_bytes, digest), body
