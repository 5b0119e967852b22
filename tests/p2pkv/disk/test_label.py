"""A label says what a slot is; a byte that was altered anywhere, or a label of elsewhere, is no label."""

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.slots import Slot
from p2pkv.tiers.disk.label import (
    LABEL_BYTES,
    Label,
    judge_header,
    nothing_at,
    pack,
    unpack_untrusted,
)

STORE = b"s" * 16
INFO = BlockInfo(BlockKey(b"k" * 32), b"n" * 32, 9000, 3000, b"d" * 16)
LABEL = Label(INFO, Slot(8192, 16384), 7, 3, BlockKey(b"p" * 32))


def by_hand(**other: object) -> bytes:
    """Write the format by hand, so that its description is what is tested."""
    fields: dict[str, object] = {
        "magic": b"p2pkvslt",
        "version": 1,
        "zero": 0,
        "store": STORE,
        "generation": 7,
        "offset": 8192,
        "size": 16384,
        "length": 9000,
        "segment_bytes": 3000,
        "nought": 0,
        "depth": 3,
        "namespace": b"n" * 32,
        "key": b"k" * 32,
        "parent": b"p" * 32,
        "digest": b"d" * 16,
    }
    packed = struct.pack("<8sII16sQQQQIIq32s32s32s16s", *(fields | other).values())
    assert len(packed) == 192
    return packed + xxhash.xxh3_128_digest(packed)


def test_the_format_is_the_one_described() -> None:
    assert pack(LABEL, STORE) == by_hand()
    assert unpack_untrusted(by_hand(), STORE) == LABEL
    assert len(by_hand()) == LABEL_BYTES


def test_the_checksum_of_the_format_is_frozen() -> None:
    """A folder written by this version must be read by later ones."""
    assert pack(LABEL, STORE)[192:].hex() == "e1648a5f7d41ad85d35edfb734279508"


@given(
    key=st.binary(min_size=32, max_size=32),
    pages=st.integers(2, 2**20),
    place=st.integers(0, 2**30),
    segments=st.integers(1, 64),
    generation=st.integers(0, 2**64 - 1),
    depth=st.none() | st.integers(0, 2**32),
    parent=st.none() | st.binary(min_size=32, max_size=32).filter(any),
)
def test_a_label_comes_back_as_it_went(
    key: bytes, pages: int, place: int, segments: int, generation: int, depth: int | None, parent: bytes | None
) -> None:
    info = BlockInfo(BlockKey(key), b"n" * 32, segments * 7, 7, b"d" * 16)
    before = BlockKey(parent) if parent is not None else None
    label = Label(info, Slot(place * 4096, pages * 4096), generation, depth, before)
    assert unpack_untrusted(pack(label, STORE) + bytes(100), STORE) == label


@pytest.mark.parametrize("at", range(LABEL_BYTES))
def test_an_altered_byte_is_no_label(at: int) -> None:
    data = bytearray(by_hand())
    data[at] ^= 0x10
    assert unpack_untrusted(data, STORE) is None


@given(st.binary(max_size=2 * LABEL_BYTES))
def test_any_bytes_are_a_label_or_none(data: bytes) -> None:
    assert unpack_untrusted(data, STORE) is None


@pytest.mark.parametrize(
    "other",
    [
        {"version": 2},
        {"store": b"t" * 16},
        {"offset": 8193},
        {"size": 16385},
        {"size": 4096, "length": 0},
        {"length": 12289},
        {"segment_bytes": 0},
        {"segment_bytes": 3001},
        {"depth": -2},
        {"depth": 2**33},
    ],
    ids=str,
)
def test_a_label_that_makes_no_sense_is_none_though_its_checksum_fits(other: dict[str, object]) -> None:
    assert unpack_untrusted(by_hand(**other), STORE) is None


@pytest.mark.parametrize("cut", [0, 1, 191, LABEL_BYTES - 1])
def test_a_label_that_was_cut_short_is_none(cut: int) -> None:
    assert unpack_untrusted(by_hand()[:cut], STORE) is None


def test_a_header_is_judged_by_what_was_written_last() -> None:
    judged = {
        what: judge_header(page, LABEL, STORE)
        for what, page in {
            "the same": by_hand(),
            "nothing": bytes(4096),
            "of another store": by_hand(store=b"t" * 16),
            "of another slot": by_hand(offset=8192 + 16384),
            "of another cut": by_hand(size=20480),
            "of an earlier write": by_hand(generation=6),
            "of a later write": by_hand(generation=8),
            "of another block": by_hand(key=b"l" * 32),
            "of another copy": by_hand(digest=b"e" * 16),
        }.items()
    }
    assert judged == {
        "the same": "ok",
        "nothing": "garbled",
        "of another store": "garbled",
        "of another slot": "misdirected",
        "of another cut": "misdirected",
        "of an earlier write": "stale",
        "of a later write": "stale",
        "of another block": "stale",
        "of another copy": "stale",
    }


def test_nothing_is_a_label_too() -> None:
    label = nothing_at(Slot(4096, 8192), 3)
    assert label.is_empty
    assert unpack_untrusted(pack(label, STORE), STORE) == label
