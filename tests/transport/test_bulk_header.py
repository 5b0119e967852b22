"""The 64 bytes in front of a block: every one of them is checked."""

import struct
from dataclasses import replace

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.errors import MalformedMessage
from p2pkv.transport.bulk_header import HEADER_BYTES, BulkHeader, unpack_untrusted
from p2pkv.transport.wire import BLOCK_BYTES_MAX

headers = st.builds(
    BulkHeader,
    lease=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**32 - 1),
    length=st.integers(0, BLOCK_BYTES_MAX),
    segment_bytes=st.integers(0, 2**32 - 1),
    digest=st.binary(min_size=16, max_size=16),
    absent=st.booleans(),
)
EXAMPLE = BulkHeader(lease=7, position=3, length=4096, segment_bytes=1024, digest=bytes(range(16)))


@given(headers)
def test_a_header_comes_back_as_it_went(header: BulkHeader) -> None:
    data = header.pack()
    assert len(data) == HEADER_BYTES == 64
    assert unpack_untrusted(data, peer="a") == header


@given(st.binary(max_size=130))
def test_garbage_is_a_malformed_message_and_nothing_else(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack_untrusted(data, peer="a")


@pytest.mark.parametrize("at", range(HEADER_BYTES))
def test_no_altered_byte_goes_unnoticed(at: int) -> None:
    data = bytearray(EXAMPLE.pack())
    for bit in range(8):
        data[at] ^= 1 << bit
        with pytest.raises(MalformedMessage, match="wrong magic or checksum"):
            unpack_untrusted(bytes(data), peer="a")
        data[at] ^= 1 << bit


@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES - 1, HEADER_BYTES + 1])
def test_a_header_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(MalformedMessage, match=f"bulk header of {size} bytes, must be 64: peer-b"):
        unpack_untrusted((EXAMPLE.pack() * 2)[:size], peer="peer-b")


def test_a_length_beyond_any_block_is_refused_although_its_checksum_is_right() -> None:
    length = BLOCK_BYTES_MAX + 1
    fields = struct.pack("<4sHHQIIII16sQ", b"P2KB", 0, 0, 7, 3, length, 1, 0, bytes(16), 0)
    data = fields + struct.pack("<Q", xxhash.xxh3_64_intdigest(fields))
    assert unpack_untrusted(replace(EXAMPLE, length=BLOCK_BYTES_MAX).pack(), peer="a").length == BLOCK_BYTES_MAX
    with pytest.raises(MalformedMessage, match=f"block of {length} bytes announced, limit {BLOCK_BYTES_MAX}"):
        unpack_untrusted(data, peer="a")


def test_the_layout_is_frozen() -> None:
    fields = struct.pack("<4sHHQIIII16sQ", b"P2KB", 0, 0, 7, 3, 4096, 1024, 0, bytes(range(16)), 0)
    assert EXAMPLE.pack() == fields + struct.pack("<Q", xxhash.xxh3_64_intdigest(fields))
    absent = BulkHeader(lease=7, position=3, length=0, segment_bytes=0, digest=bytes(16), absent=True)
    assert absent.pack()[4:6] == b"\x01\x00"
