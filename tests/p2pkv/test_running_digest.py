"""A digest taken in pieces is the digest, however the pieces are cut."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import block_digest
from p2pkv.errors import LocalUseError
from p2pkv.running_digest import RunningDigest


@given(
    segments=st.integers(1, 40),
    segment_bytes=st.integers(1, 100),
    cuts=st.lists(st.integers(0, 4000), max_size=20),
    seed=st.randoms(use_true_random=False),
)
def test_pieces_of_any_size_give_the_digest_of_the_whole(
    segments: int, segment_bytes: int, cuts: list[int], seed: Random
) -> None:
    body = seed.randbytes(segments * segment_bytes)
    digest, ends = RunningDigest(segment_bytes), sorted({*(cut for cut in cuts if cut < len(body)), len(body)})
    for start, end in zip([0, *ends], ends, strict=False):
        digest.take(memoryview(body)[start:end])
    assert digest.digest() == block_digest(body, segment_bytes)


@pytest.mark.parametrize("length", [0, 7, 9])
def test_a_body_that_ends_within_a_segment_has_no_digest(length: int) -> None:
    digest = RunningDigest(8)
    digest.take(memoryview(bytes(length)))
    with pytest.raises(LocalUseError, match="segment of 8"):
        digest.digest()
