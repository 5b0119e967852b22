"""An object says what it is; a byte that was altered anywhere, or an object of elsewhere, is found."""

import os
import struct
from random import Random

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.errors import LocalUseError
from p2pkv.tiers.object.pack import (
    header_bytes,
    judge_header,
    object_bytes,
    pack_header,
    pack_object,
    span_of,
    unpack_header_untrusted,
    verified,
)
from tests.objects import NAMESPACE, body_of, chain_of, info_of

LENGTH = 96
KEYS = chain_of(1, 4)
INFOS = tuple(info_of(key, LENGTH) for key in KEYS)
OBJECT = bytes(pack_object(INFOS, [body_of(key, LENGTH) for key in KEYS]))
HEADER = header_bytes(4)
INPUTS = int(os.environ.get("P2PKV_FUZZ_INPUTS", "20000"))


def by_hand(**other: object) -> bytes:
    """Write the format by hand, so that its description is what is tested."""
    fields: dict[str, object] = {
        "magic": b"p2pkvrun",
        "version": 1,
        "count": 4,
        "length": LENGTH,
        "segment_bytes": LENGTH // 2,
        "zero": 0,
        "namespace": NAMESPACE,
    }
    packed = struct.pack("<8sIIQII32s", *(fields | other).values())
    assert len(packed) == 64
    packed += b"".join(info.key + info.digest for info in INFOS)
    return packed + xxhash.xxh3_128_digest(packed)


def judged(data: bytes) -> str:
    """Return what a reader says of an object that has the right length."""
    infos = judge_header(data[:HEADER], KEYS, LENGTH)
    if isinstance(infos, str):
        return infos
    return "ok" if len(verified(infos, memoryview(data)[HEADER:])) == len(KEYS) else "corrupt"


def test_the_format_is_the_one_described() -> None:
    assert pack_header(INFOS) == by_hand()
    assert by_hand() + b"".join(body_of(key, LENGTH) for key in KEYS) == OBJECT
    assert unpack_header_untrusted(by_hand()) == INFOS
    assert len(OBJECT) == object_bytes(4, LENGTH)
    assert span_of(4, LENGTH, 3) == (len(OBJECT) - LENGTH, len(OBJECT))


def test_the_checksums_of_the_format_are_frozen() -> None:
    """An object written by this version must be read by later ones."""
    info = BlockInfo(BlockKey(b"k" * 32), b"n" * 32, 4, 2, block_digest(b"abcd", 2))
    assert bytes(pack_object([info], [b"abcd"])).hex()[-40:] == "48c7ae5952c74d443cfb1daad283889d61626364"


@given(count=st.integers(1, 64), segments=st.integers(1, 5), segment_bytes=st.integers(1, 9), seed=st.integers(0, 9))
def test_an_object_comes_back_as_it_went(count: int, segments: int, segment_bytes: int, seed: int) -> None:
    length = segments * segment_bytes
    bodies = [Random(f"{seed} {i}").randbytes(length) for i in range(count)]
    infos = tuple(
        BlockInfo(key, NAMESPACE, length, segment_bytes, block_digest(body, segment_bytes))
        for key, body in zip(chain_of(seed, count), bodies, strict=True)
    )
    packed = pack_object(infos, bodies)
    assert len(packed) == object_bytes(count, length)
    header = judge_header(packed, [info.key for info in infos], length)
    assert header == infos
    assert verified(infos, packed[header_bytes(count) :]) == list(zip(infos, bodies, strict=True))


@pytest.mark.parametrize("at", range(len(OBJECT)))
def test_an_altered_byte_is_found(at: int) -> None:
    data = bytearray(OBJECT)
    data[at] ^= 1 << at % 8
    assert judged(bytes(data)) == ("garbled" if at < HEADER else "corrupt")


@pytest.mark.parametrize(
    "other",
    [
        {"magic": b"p2pkvblk"},
        {"version": 2},
        {"count": 0},
        {"count": 3},
        {"count": 5},
        {"count": 65},
        {"count": 2**32 - 1},
        {"length": 0},
        {"length": LENGTH + 1},
        {"length": 2**64 - 1},
        {"segment_bytes": 0},
        {"segment_bytes": 7},
        {"zero": 1},
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense_is_none_though_its_checksum_is_right(other: dict[str, object]) -> None:
    assert unpack_header_untrusted(by_hand(**other)) is None


def test_an_object_of_another_run_is_misdirected() -> None:
    assert judge_header(OBJECT, KEYS, 2 * LENGTH) == "misdirected"
    assert judge_header(OBJECT, KEYS[:3], LENGTH) == "misdirected"
    assert judge_header(OBJECT, KEYS[::-1], LENGTH) == "misdirected"


def test_blocks_before_a_bad_one_are_good() -> None:
    data = bytearray(OBJECT)
    data[-LENGTH - 1] ^= 1
    assert [info for info, _ in verified(INFOS, memoryview(data)[HEADER:])] == list(INFOS[:2])


def test_what_is_no_run_is_not_packed() -> None:
    with pytest.raises(LocalUseError, match="0 blocks"):
        pack_header([])
    with pytest.raises(LocalUseError, match="65 blocks"):
        pack_header([INFOS[0]] * 65)
    with pytest.raises(LocalUseError, match="one namespace"):
        pack_header([INFOS[0], BlockInfo(KEYS[1], b"m" * 32, LENGTH, LENGTH // 2, bytes(16))])
    with pytest.raises(LocalUseError, match="whole number"):
        pack_header([BlockInfo(KEYS[1], NAMESPACE, LENGTH, 7, bytes(16))])
    with pytest.raises(LocalUseError, match="its bodies"):
        pack_object(INFOS, [b"too short"] * 4)


def test_no_mutation_of_an_object_is_taken_for_it() -> None:
    """Cut, lengthened, flipped, and with stretches moved, doubled and left out."""
    random = Random(1)
    for _ in range(INPUTS):
        data = bytearray(OBJECT[: random.randrange(1, len(OBJECT))] if random.random() < 0.5 else OBJECT)
        for _ in range(random.randrange(1, 4)):
            start, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
            match random.randrange(4):
                case 0:
                    data[start:end] = random.randbytes(min(end - start, 64))
                case 1:
                    data[start:start] = data[start:end]
                case 2:
                    del data[start:end]
                case 3 if start < len(data):
                    data[start] ^= 1 << random.randrange(8)
        assert bytes(data) == OBJECT or len(data) != len(OBJECT) or judged(bytes(data)) != "ok"
        found = unpack_header_untrusted(data)
        assert found in {None, INFOS}
