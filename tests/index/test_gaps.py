"""The code of ascending positions: what goes in comes out, in about as few bits as can be, and nothing else does."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.errors import MalformedMessage
from p2pkv.index.gaps import Ascending, Gaps, decode_gaps_untrusted, encode_gaps


def ascending(positions: set[int]) -> Ascending:
    return np.array(sorted(positions), np.uint32)


def decoded(gaps: Gaps, below: int = 2**32) -> list[int]:
    return [int(one) for one in decode_gaps_untrusted(gaps.count, gaps.gap_bits, gaps.data, below=below, peer="p")]


@given(st.sets(st.integers(0, 2**32 - 1), max_size=200) | st.sets(st.integers(0, 300), max_size=200))
def test_positions_come_back_as_they_went(positions: set[int]) -> None:
    assert decoded(encode_gaps(ascending(positions))) == sorted(positions)


@pytest.mark.parametrize(("bits_log2", "count"), [(10, 100), (16, 140), (20, 140), (24, 1000), (30, 64)])
def test_a_position_takes_little_more_than_the_least_possible(bits_log2: int, count: int) -> None:
    random = Random(1)
    positions = ascending(set(random.sample(range(2**bits_log2), count)))
    share = count / 2**bits_log2
    least = -math.log2(share) - (1 - share) / share * math.log2(1 - share)
    bits = 8 * len(encode_gaps(positions).data) / count
    assert least - 0.5 < bits < least + 0.35, "random positions may be luckier, and two paddings cost up to 14 bits"


def test_every_bit_set_takes_one_bit_each() -> None:
    assert encode_gaps(np.arange(800, dtype=np.uint32)) == Gaps(800, 0, b"\xff" * 100)
    assert encode_gaps(np.array([], np.uint32)) == Gaps(0, 0, b"")


@pytest.mark.parametrize(
    ("count", "gap_bits", "data"),
    [
        pytest.param(3, 0, b"\x03", id="fewer than announced"),
        pytest.param(1, 0, b"\x03", id="more than announced"),
        pytest.param(0, 0, b"\x01", id="one where none is"),
        pytest.param(2, 8, b"\x00", id="low parts cut off"),
        pytest.param(1, 0, b"", id="nothing"),
        pytest.param(1, 0, b"\x00\x00\x01", id="past the end"),
        pytest.param(1, 31, b"\xff\xff\xff\xff\x01", id="far past the end"),
        pytest.param(1, 32, b"\xff" * 5, id="more low bits than there are"),
        pytest.param(10**6, 31, b"\x01" * 40, id="far more announced than fit"),
    ],
)
def test_what_is_no_such_list_is_malformed(count: int, gap_bits: int, data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_gaps_untrusted(count, gap_bits, data, below=16, peer="p")


@given(st.integers(0, 8192), st.integers(0, 31), st.binary(max_size=200))
def test_whatever_is_read_ascends_and_stays_below(count: int, gap_bits: int, data: bytes) -> None:
    try:
        positions = decode_gaps_untrusted(count, gap_bits, data, below=2**20, peer="p").tolist()
    except MalformedMessage:
        return
    assert len(positions) == count
    assert positions == sorted(set(positions))
    assert all(0 <= position < 2**20 for position in positions)
