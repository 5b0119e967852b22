"""A slab against the plain filters it was made from, while peers come, change and go."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.index.bloom import BloomFilter, HashedKeys
from p2pkv.index.slab import COLUMNS_MAX, Slab

BITS_LOG2, HASHES = 7, 2
KEYS = [i.to_bytes(32, "big") for i in range(60)]
ROWS = np.ascontiguousarray(HashedKeys(KEYS).positions(BITS_LOG2, HASHES).T).astype(np.intp)


def random_filter(random: Random) -> BloomFilter:
    return BloomFilter.from_bytes(random.randbytes(2**BITS_LOG2 // 8), HASHES)


def copy(bloom: BloomFilter) -> BloomFilter:
    return BloomFilter(bloom.bits_log2, bloom.hashes, bloom.bits.copy())


def check(slab: Slab, plain: dict[str, BloomFilter]) -> None:
    """Compare every answer of `slab` to those of the plain filters, and its memory to its promise."""
    assert set(slab.columns) == set(plain)
    assert len(set(slab.columns.values())) == len(plain)
    claims = np.unpackbits(slab.claims(ROWS).view(np.uint8), axis=1, bitorder="little")
    for peer, bloom in plain.items():
        assert claims[:, slab.columns[peer]].tolist() == [key in bloom for key in KEYS]
    occupied = np.unpackbits(slab.occupied().view(np.uint8), bitorder="little")
    assert set(np.flatnonzero(occupied)) == set(slab.columns.values())
    assert slab.nbytes <= 4 * max(1, len(plain)) * 2**BITS_LOG2 // 8


changes = st.lists(st.tuples(st.sampled_from("pppfd"), st.integers(0, 39)), max_size=120)


@given(changes, st.integers())
def test_a_slab_answers_as_its_filters_would(steps: list[tuple[str, int]], seed: int) -> None:
    random, slab = Random(seed), Slab(BITS_LOG2)
    plain: dict[str, BloomFilter] = {}
    for verb, number in steps:
        peer = str(number)
        if verb == "p":
            plain[peer] = random_filter(random)
            slab.put(peer, copy(plain[peer]))
        elif peer in plain and verb == "f":
            flips = np.array(random.choices(range(2**BITS_LOG2), k=9), np.uint32)
            plain[peer].flip(flips)
            slab.flip(peer, flips)
        elif peer in plain:
            del plain[peer]
            slab.drop(peer)
    check(slab, plain)


@pytest.mark.parametrize("leaving", ["first", "last", "mixed"])
def test_a_slab_narrows_as_its_peers_leave(leaving: str) -> None:
    random, slab = Random(1), Slab(BITS_LOG2)
    plain = {str(i): random_filter(random) for i in range(COLUMNS_MAX)}
    for peer, bloom in plain.items():
        assert slab.has_room
        slab.put(peer, copy(bloom))
    assert not slab.has_room
    order = list(plain)
    if leaving == "last":
        order.reverse()
    if leaving == "mixed":
        random.shuffle(order)
    for left, peer in enumerate(order[:-1]):
        del plain[peer]
        slab.drop(peer)
        assert slab.nbytes <= 4 * len(plain) * 2**BITS_LOG2 // 8
        if left % 37 == 0 or len(plain) < 10:
            check(slab, plain)
    assert slab.capacity == 1


def test_a_slab_of_one_peer_is_its_filter() -> None:
    slab = Slab(20)
    slab.put("a", BloomFilter(20, 5))
    assert slab.nbytes == 2**20 // 8
    assert repr(slab) == "<Slab of 2^20 rows, 1 of 1 columns>"


def test_wide_filters_are_sliced_in_pieces() -> None:
    # Below eight columns, rows are moved 2^19 at a time; this has more.
    random, slab = Random(2), Slab(21)
    plain = {str(i): BloomFilter.from_bytes(random.randbytes(2**18), 1) for i in range(3)}
    for peer, bloom in plain.items():
        slab.put(peer, copy(bloom))
    slab.drop("0")
    rows = np.array([[0, 2**19 - 1, 2**19, 2**20 + 7, 2**21 - 1]])
    claims = np.unpackbits(slab.claims(rows).view(np.uint8), axis=1, bitorder="little")
    for peer in ("1", "2"):
        expected = plain[peer].test(rows.T.astype(np.uint64))
        assert claims[:, slab.columns[peer]].view(np.bool_).tolist() == expected.tolist()
