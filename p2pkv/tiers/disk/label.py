"""What a slot says of itself, sans-IO: one label for the header in front of a block's bytes and for a line of the hint log.

0   8s  magic "p2pkvslt"
8   u32 version, 1
12  u32 zero
16  16s id of the store, so that a file of another one is not taken for ours
32  u64 generation: greater with every write of the store
40  u64 offset of the slot in the tier
48  u64 size of the slot, this header included
56  u64 length of the body; 0: nothing is here
64  u32 segment_bytes, the unit of the body's digest
68  u32 zero
72  i64 depth of the block in its chain; -1: not known
80  32s namespace
112 32s key
144 32s key of the block before it; zeros: none, or not known
176 16s digest of the body, XXH3-128 over the table of its slabs' XXH3-128
192 16s XXH3-128 of bytes 0..192

A header is this and zeros up to a page. The generation is what tells a lost write from one that arrived: the page that was
there before is as well formed as the new one, and may be of the same key.
"""

import struct
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import xxhash

from p2pkv.blocks import BlockInfo, BlockKey, BytesLike
from p2pkv.slots import PAGE_BYTES, Slot

HEADER_BYTES: Final = PAGE_BYTES
"""In front of every body, so that bodies stay aligned for direct I/O."""
STORE_ID_BYTES: Final = 16
_MAGIC: Final = b"p2pkvslt"
_VERSION: Final = 1
_FIELDS: Final = struct.Struct("<8sII16sQQQQIIq32s32s32s16s")
_CHECK_BYTES: Final = 16
LABEL_BYTES: Final = _FIELDS.size + _CHECK_BYTES
_NONE: Final = bytes(32)
_DEPTH_MAX: Final = 2**32

Verdict: TypeAlias = Literal["ok", "garbled", "misdirected", "stale", "corrupt"]
"""What came of looking at a slot.

`garbled`: no header that has its checksum. `misdirected`: the header of another slot. `stale`: of this slot, and of another
write than the last. `corrupt`: the header is right, and the body is not what it says.
"""


@dataclass(frozen=True, slots=True)
class Label:
    """A block in a slot, as of one write. A body of length 0 says that nothing is here."""

    info: BlockInfo
    slot: Slot
    generation: int
    depth: int | None = None
    """How many blocks stand before it in its chain; None where not known."""
    parent: BlockKey | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it says that nothing is here."""
        return not self.info.length


def nothing_at(slot: Slot, generation: int) -> Label:
    """Return the label which says that a slot, or a whole slab cut in slots of its size, has been emptied."""
    return Label(BlockInfo(BlockKey(_NONE), _NONE, 0, 1, bytes(16)), slot, generation)


def pack(label: Label, store: bytes) -> bytes:
    """Return the `LABEL_BYTES` bytes that say this."""
    info, slot = label.info, label.slot
    fields = _FIELDS.pack(
        _MAGIC,
        _VERSION,
        0,
        store,
        label.generation,
        slot.offset,
        slot.size,
        info.length,
        info.segment_bytes,
        0,
        -1 if label.depth is None else label.depth,
        info.namespace,
        info.key,
        label.parent or _NONE,
        info.digest,
    )
    return fields + xxhash.xxh3_128_digest(fields)


def unpack_untrusted(data: BytesLike, store: bytes) -> Label | None:
    """Return what the first `LABEL_BYTES` of `data` say, or None if that is not a label of this store; never raises."""
    if len(data) < LABEL_BYTES or data[:8] != _MAGIC:
        return None
    if xxhash.xxh3_128_digest(data[: _FIELDS.size]) != data[_FIELDS.size : LABEL_BYTES]:
        return None
    (_, version, _, of, generation, offset, size, length, segment_bytes, _, depth, namespace, key, parent, digest) = (
        _FIELDS.unpack_from(data)
    )
    # A checksum says that this was written so, and not that it makes sense: an older program may have been wrong.
    if version != _VERSION or of != store or offset % PAGE_BYTES or size % PAGE_BYTES or not -1 <= depth <= _DEPTH_MAX:
        return None
    if size <= HEADER_BYTES or length > size - HEADER_BYTES or not segment_bytes or length % segment_bytes:
        return None
    info = BlockInfo(BlockKey(key), namespace, length, segment_bytes, digest)
    before = BlockKey(parent) if parent != _NONE else None
    return Label(info, Slot(offset, size), generation, None if depth < 0 else depth, before)


def judge_header(page: BytesLike, expected: Label, store: bytes) -> Verdict:
    """Say whether a page is the header that was written last at a place."""
    found = unpack_untrusted(page, store)
    if found is None:
        return "garbled"
    if found.slot != expected.slot:
        return "misdirected"
    return "ok" if found == expected else "stale"
