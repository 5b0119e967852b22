"""A block in a file: it comes back as it went, and no altered byte goes unnoticed."""

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.block_file import HEADER_BYTES, pack_header, unpack
from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.errors import NotABlockFile

BODY = bytes(range(48))


def block_file(body: bytes = BODY, segment_bytes: int = 16, *, version: int = 1, length: int | None = None) -> bytes:
    """Write the format by hand, so that its description is what is tested."""
    fields = struct.pack(
        "<8sIIQ32s32s16s",
        b"p2pkvblk",
        version,
        segment_bytes,
        len(body) if length is None else length,
        b"n" * 32,
        b"k" * 32,
        block_digest(body, segment_bytes or 1) if body else bytes(16),
    )
    return fields + struct.pack("<Q", xxhash.xxh3_64_intdigest(fields)) + body


@given(
    segments=st.lists(st.binary(min_size=7, max_size=7), min_size=1, max_size=9),
    namespace=st.binary(min_size=32, max_size=32),
    key=st.binary(min_size=32, max_size=32),
)
def test_a_block_comes_back_as_it_went(segments: list[bytes], namespace: bytes, key: bytes) -> None:
    body = b"".join(segments)
    info = BlockInfo(BlockKey(key), namespace, len(body), 7, block_digest(body, 7))
    found, found_body = unpack(pack_header(info) + body)
    assert (found, bytes(found_body)) == (info, body)


def test_one_byte_is_a_block_too() -> None:
    found, body = unpack(block_file(b"x", 1))
    assert (found.length, bytes(body)) == (1, b"x")


def test_the_layout_is_frozen() -> None:
    info = BlockInfo(BlockKey(b"k" * 32), b"n" * 32, len(BODY), 16, block_digest(BODY, 16))
    assert pack_header(info) + BODY == block_file()
    assert HEADER_BYTES == 112


def test_no_altered_byte_goes_unnoticed() -> None:
    whole = block_file()
    unpack(whole)
    for at in range(len(whole)):
        for mask in (0x01, 0x80, 0xFF):
            altered = bytearray(whole)
            altered[at] ^= mask
            with pytest.raises(NotABlockFile):
                unpack(bytes(altered))


def test_no_cut_goes_unnoticed() -> None:
    whole = block_file()
    for length in range(len(whole)):
        with pytest.raises(NotABlockFile):
            unpack(whole[:length])
    with pytest.raises(NotABlockFile, match="49 bytes of body, its header says 48"):
        unpack(whole + b"x")


@given(st.binary(max_size=300))
def test_garbage_is_no_block_file_and_nothing_else(data: bytes) -> None:
    for start in (b"", b"p2pkvblk"):
        with pytest.raises(NotABlockFile):
            unpack(start + data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(block_file(version=2), "version 2, this p2pkv reads 1", id="later version"),
        pytest.param(block_file(segment_bytes=0), "its header says 48", id="no segments"),
        pytest.param(block_file(b"", 16), "0 bytes of body", id="no body"),
        pytest.param(block_file(length=2**63), "its header says 9223372036854775808", id="absurd length"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_although_its_checksum_is_right(data: bytes, reason: str) -> None:
    with pytest.raises(NotABlockFile, match=reason):
        unpack(data)


def test_segments_that_do_not_divide_the_body_are_refused() -> None:
    fields = struct.pack("<8sIIQ32s32s16s", b"p2pkvblk", 1, 17, 48, bytes(32), bytes(32), bytes(16))
    with pytest.raises(NotABlockFile, match="48 bytes of body"):
        unpack(fields + struct.pack("<Q", xxhash.xxh3_64_intdigest(fields)) + BODY)
