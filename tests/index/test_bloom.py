"""Bloom filters: what they promise exactly, and what they promise on average."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.index.bloom import (
    BITS_LOG2_MAX,
    BITS_LOG2_MIN,
    BloomFilter,
    HashedKeys,
    expected_ratio,
    key_positions,
    size_for,
)

keys = st.lists(st.binary(min_size=32, max_size=32), max_size=60)
shapes = st.tuples(st.integers(BITS_LOG2_MIN, 16), st.integers(1, 32))


def seeded_keys(seed: int, count: int) -> list[bytes]:
    random = Random(seed)
    return [random.randbytes(32) for _ in range(count)]


def filled(bits_log2: int, hashes: int, present: list[bytes]) -> BloomFilter:
    bloom = BloomFilter(bits_log2, hashes)
    for key in present:
        bloom.add(key)
    return bloom


@given(keys, shapes)
def test_what_was_added_is_never_denied(present: list[bytes], shape: tuple[int, int]) -> None:
    bloom = filled(*shape, present)
    assert all(key in bloom for key in present)
    assert bloom.contains_many(HashedKeys(present)).all()


@given(keys, keys, shapes)
def test_many_keys_get_the_answers_they_get_one_by_one(
    present: list[bytes], asked: list[bytes], shape: tuple[int, int]
) -> None:
    bloom = filled(*shape, present)
    assert bloom.contains_many(HashedKeys(asked)).tolist() == [key in bloom for key in asked]


@given(st.binary(min_size=32, max_size=32), shapes)
def test_positions_of_a_key_are_distinct_and_the_same_however_they_are_computed(
    key: bytes, shape: tuple[int, int]
) -> None:
    positions = key_positions(key, *shape)
    assert len(set(positions)) == shape[1]
    assert HashedKeys([key]).positions(*shape).tolist() == [positions]


def test_positions_are_part_of_the_protocol() -> None:
    assert key_positions(bytes(range(32)), 20, 4) == [87159, 254152, 421145, 588138]


@given(keys, st.tuples(st.integers(BITS_LOG2_MIN + 1, 16), st.integers(1, 32)))
def test_a_folded_filter_is_the_one_that_size_would_have_had(present: list[bytes], shape: tuple[int, int]) -> None:
    bits_log2, hashes = shape
    folded = filled(bits_log2, hashes, present).fold()
    assert folded.to_bytes() == filled(bits_log2 - 1, hashes, present).to_bytes()


@given(keys, shapes)
def test_bytes_carry_the_whole_filter(present: list[bytes], shape: tuple[int, int]) -> None:
    bloom = filled(*shape, present)
    copy = BloomFilter.from_bytes(bloom.to_bytes(), bloom.hashes)
    assert (copy.bits_log2, copy.to_bytes()) == (bloom.bits_log2, bloom.to_bytes())
    copy.add(b"x" * 32)
    assert copy.bits is not bloom.bits


@given(st.lists(st.integers(0, 63), max_size=20))
def test_flipping_is_exclusive_or(positions: list[int]) -> None:
    bloom = BloomFilter(6, 1)
    bloom.flip(np.array(positions, np.uint32))
    odd = sum(1 << i for i in range(64) if positions.count(i) % 2)
    assert int.from_bytes(bloom.to_bytes(), "little") == odd


@pytest.mark.parametrize("ratio", [0.05, 0.01, 0.002])
def test_measured_false_positives_are_near_the_formula(ratio: float) -> None:
    blocks = 3000
    bits_log2, hashes = size_for(blocks, ratio)
    bloom = filled(bits_log2, hashes, seeded_keys(1, blocks))
    measured = bloom.contains_many(HashedKeys(seeded_keys(2, 60_000))).mean()
    expected = expected_ratio(blocks, bits_log2, hashes)
    deviation = (expected / 60_000) ** 0.5
    assert expected <= ratio
    assert abs(measured - expected) < 5 * deviation + 0.1 * expected
    assert bloom.false_positive_ratio() == pytest.approx(expected, rel=0.15)


def test_a_seeded_sample_agrees_with_the_published_table() -> None:
    # 8 and 16 bits a key at the best number of hashes: 2.16 % and 0.046 % (Summary Cache, table III).
    assert expected_ratio(2**17, 20, 6) == pytest.approx(0.0216, abs=0.0002)
    assert expected_ratio(2**16, 20, 11) == pytest.approx(0.000459, abs=0.00001)


@given(st.integers(0, 2**26), st.sampled_from([0.3, 0.1, 0.01, 0.001]))
def test_sizes_keep_their_promise_with_the_fewest_hashes(blocks: int, ratio: float) -> None:
    bits_log2, hashes = size_for(blocks, ratio)
    assert expected_ratio(blocks, bits_log2, hashes) <= ratio
    assert hashes == 1 or expected_ratio(max(1, blocks), bits_log2, hashes - 1) > ratio
    if bits_log2 > BITS_LOG2_MIN:
        assert all(expected_ratio(blocks, bits_log2 - 1, k) > ratio for k in range(1, 33))


def test_sizes_stop_at_what_positions_can_name() -> None:
    bits_log2, hashes = size_for(2**40, 0.01)
    assert (bits_log2, hashes) == (BITS_LOG2_MAX, 1)
    assert size_for(4096, 0.01) == (16, 3)


def test_fill_ratio_counts_bits() -> None:
    bloom = BloomFilter.from_bytes(b"\xff\x0f" + bytes(6), 2)
    assert bloom.fill_ratio() == 12 / 64
    assert bloom.false_positive_ratio() == (12 / 64) ** 2
    assert repr(bloom) == "<BloomFilter 2^6 bits, 2 hashes, 18.8% full>"
