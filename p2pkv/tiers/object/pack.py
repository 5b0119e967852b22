"""What a run's object is, sans-IO: a header that says what is in it, and the blocks one behind the other.

0   8s  magic "p2pkvrun"
8   u32 version, 1
12  u32 count of blocks
16  u64 length of each block, bytes
24  u32 segment_bytes, the unit of the bodies' digests
28  u32 zero
32  32s namespace
64  and for each block
    32s key
    16s digest of the body, XXH3-128 over the table of its segments' XXH3-128
... 16s XXH3-128 of all before it
... the bodies

A reader knows before it asks which keys an object must have, and how long it must be. So the whole header is compared, and
every body with its digest; what comes from an object store is believed no further than what comes from a disk or from a peer.
"""

import struct
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
import xxhash

from p2pkv.blocks import DIGEST_BYTES, KEY_BYTES, BlockInfo, BlockKey, BytesLike, block_digest
from p2pkv.errors import LocalUseError
from p2pkv.tiers.object.runs import RUN_BLOCKS_MAX

_MAGIC: Final = b"p2pkvrun"
_VERSION: Final = 1
_FIELDS: Final = struct.Struct("<8sIIQII32s")
_ENTRY: Final = struct.Struct(f"{KEY_BYTES}s{DIGEST_BYTES}s")
_CHECK_BYTES: Final = 16

Flaw: TypeAlias = Literal["torn", "garbled", "misdirected", "corrupt"]
"""What can be wrong with an object.

`torn`: not as long as its blocks. `garbled`: no header that has its checksum. `misdirected`: the header of another run.
`corrupt`: the header is right, and a body is not what it says.
"""


def header_bytes(count: int) -> int:
    """Return how long the header of a run of `count` blocks is."""
    return _FIELDS.size + count * _ENTRY.size + _CHECK_BYTES


def object_bytes(count: int, length: int) -> int:
    """Return how long the object of a run of `count` blocks of `length` bytes is."""
    return header_bytes(count) + count * length


def span_of(count: int, length: int, first: int) -> tuple[int, int]:
    """Return where in an object the blocks from `first` on begin, and where they end."""
    return header_bytes(count) + first * length, object_bytes(count, length)


def pack_header(infos: Sequence[BlockInfo]) -> bytes:
    """Return what stands in front of the bodies of a run.

    Raises:
        LocalUseError: they are not blocks of one namespace, length and segment, or too many or none.
    """
    if not 0 < len(infos) <= RUN_BLOCKS_MAX:
        raise LocalUseError(f"a run of {len(infos)} blocks, must be 1 to {RUN_BLOCKS_MAX}")
    first = infos[0]
    if len({(info.namespace, info.length, info.segment_bytes) for info in infos}) != 1:
        raise LocalUseError("the blocks of a run must be of one namespace, length and segment_bytes")
    if not _is_shape(first.length, first.segment_bytes):
        raise LocalUseError(
            f"a block of {first.length} bytes is not a whole number of segments of {first.segment_bytes}"
        )
    fields = _FIELDS.pack(_MAGIC, _VERSION, len(infos), first.length, first.segment_bytes, 0, first.namespace)
    packed = fields + b"".join([_ENTRY.pack(info.key, info.digest) for info in infos])
    return packed + xxhash.xxh3_128_digest(packed)


def pack_object(infos: Sequence[BlockInfo], bodies: Sequence[BytesLike]) -> memoryview:
    """Return the object of a run.

    Raises:
        LocalUseError: see `pack_header`; or a body has another length.
    """
    header = pack_header(infos)
    length = infos[0].length
    if len(bodies) != len(infos) or any(len(body) != length for body in bodies):
        raise LocalUseError(f"a run of {len(infos)} blocks of {length} bytes, and its bodies are {[*map(len, bodies)]}")
    packed = np.empty(object_bytes(len(infos), length), dtype=np.uint8)
    packed[: len(header)] = np.frombuffer(header, dtype=np.uint8)
    for number, body in enumerate(bodies):
        start = len(header) + number * length
        np.copyto(packed[start : start + length], np.frombuffer(body, dtype=np.uint8))  # lets other threads run
    return packed.data


def unpack_header_untrusted(data: BytesLike) -> tuple[BlockInfo, ...] | None:
    """Return the blocks that a header speaks of, or None if that is no header; never raises."""
    if len(data) < _FIELDS.size:
        return None
    magic, version, count, length, segment_bytes, zero, namespace = _FIELDS.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or zero or not 0 < count <= RUN_BLOCKS_MAX:
        return None
    whole = header_bytes(count)
    view = memoryview(data)
    if len(view) < whole or xxhash.xxh3_128_digest(view[: whole - _CHECK_BYTES]) != view[whole - _CHECK_BYTES : whole]:
        return None
    # A checksum says that this was written so, and not that it makes sense: an older program may have been wrong.
    if not _is_shape(length, segment_bytes):
        return None
    entries = _ENTRY.iter_unpack(view[_FIELDS.size : whole - _CHECK_BYTES])
    return tuple([BlockInfo(BlockKey(key), namespace, length, segment_bytes, digest) for key, digest in entries])


def judge_header(data: BytesLike, keys: Sequence[BlockKey], length: int) -> tuple[BlockInfo, ...] | Flaw:
    """Return the blocks of the run that was asked for, or what is wrong with its header.

    Keys say what blocks are; the namespace is part of that, and taken as the header has it.
    """
    infos = unpack_header_untrusted(data)
    if infos is None:
        return "garbled"
    same = infos[0].length == length and [info.key for info in infos] == list(keys)
    return infos if same else "misdirected"


def verified(infos: Sequence[BlockInfo], bodies: memoryview) -> list[tuple[BlockInfo, memoryview]]:
    """Return the blocks whose bytes are theirs, up to the first whose are not: those behind it have no use without it.

    `bodies` is one behind the other, and long enough for all.
    """
    good: list[tuple[BlockInfo, memoryview]] = []
    for number, info in enumerate(infos):
        body = bodies[number * info.length : (number + 1) * info.length]
        if block_digest(body, info.segment_bytes) != info.digest:
            break
        good.append((info, body))
    return good


def _is_shape(length: int, segment_bytes: int) -> bool:
    return length > 0 and segment_bytes > 0 and length % segment_bytes == 0
