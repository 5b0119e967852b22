"""The matcher against an oracle that does the obvious thing."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.index.bloom import BloomFilter
from p2pkv.index.matcher import Matcher

KEYS = [i.to_bytes(32, "big") for i in range(200)]

blooms = st.tuples(
    st.sampled_from([(6, 1), (6, 2), (10, 3), (14, 3), (14, 5)]),  # the small ones lie a lot
    st.integers(0, 200),
    st.sets(st.integers(0, 199), max_size=20),
)


def build(shape: tuple[int, int], prefix: int, others: set[int]) -> BloomFilter:
    bloom = BloomFilter(*shape)
    for i in sorted({*range(prefix), *others}):
        bloom.add(KEYS[i])
    return bloom


def leading_run(bloom: BloomFilter, keys: list[bytes]) -> int:
    for depth, key in enumerate(keys):
        if key not in bloom:
            return depth
    return len(keys)


@given(st.lists(blooms, max_size=8), st.integers(0, 200))
def test_depths_are_leading_runs(
    filters: list[tuple[tuple[int, int], int, set[int]]],
    asked: int,
) -> None:
    matcher, oracle = Matcher(), {}
    for i, (shape, prefix, others) in enumerate(filters):
        bloom = build(shape, prefix, others)
        depth = leading_run(bloom, KEYS[:asked])
        if depth:
            oracle[f"peer-{i}"] = depth
        matcher.replace(f"peer-{i}", bloom)
    found = matcher.longest(KEYS[:asked])
    assert found == oracle
    assert list(found) == list(oracle), "the order is the order peers became known in"


@given(st.lists(blooms, max_size=20), st.integers(0, 8), st.integers(0, 192))
def test_of_few_keys_the_answer_is_the_same_without_arrays(
    filters: list[tuple[tuple[int, int], int, set[int]]], asked: int, start: int
) -> None:
    matcher = Matcher()
    for i, (shape, prefix, others) in enumerate(filters):
        matcher.replace(f"peer-{i}", build(shape, prefix, others))
    keys = KEYS[start : start + asked]
    found = matcher.longest_of_few(keys)
    assert found == matcher.longest(keys)
    assert list(found) == list(matcher.longest(keys))


def test_a_hole_ends_the_run_whatever_lies_behind_it() -> None:
    matcher = Matcher()
    bloom = BloomFilter(16, 4)
    for key in KEYS[:50] + KEYS[51:]:
        bloom.add(key)
    matcher.replace("a", bloom)
    assert matcher.longest(KEYS) == {"a": 50}


def test_who_lies_is_not_believed_beyond_the_lie() -> None:
    # A hundred filters at 1 % claim some key or other of a long chain; none of them claims a leading run of it.
    matcher = Matcher()
    for peer in range(100):
        bloom = BloomFilter(10, 3)
        for i in range(80):
            bloom.add(b"%d of %d" % (i, peer))
        matcher.replace(str(peer), bloom)
    truth = BloomFilter(16, 4)
    for key in KEYS[:120]:
        truth.add(key)
    matcher.replace("truth", truth)
    depths = matcher.longest(KEYS)
    assert depths.pop("truth") == 120
    assert max(depths.values(), default=0) <= 3


def test_holders_are_those_who_claim_the_key() -> None:
    matcher = Matcher()
    for peer, present in (("b", KEYS[:3]), ("a", KEYS[2:5]), ("c", KEYS[7:9])):
        bloom = BloomFilter(16, 4)
        for key in present:
            bloom.add(key)
        matcher.replace(peer, bloom)
    assert matcher.holders(KEYS[2]) == ("b", "a")
    assert matcher.holders(KEYS[100]) == ()


def test_filters_can_be_changed_replaced_and_forgotten() -> None:
    matcher = Matcher()
    bloom = BloomFilter(10, 1)
    bloom.add(KEYS[0])
    matcher.replace("a", bloom)
    assert matcher.longest(KEYS) == {"a": 1}
    bits = np.unpackbits(bloom.bits, bitorder="little").nonzero()[0].astype(np.uint32)
    matcher.flip("a", bits)
    assert matcher.longest(KEYS) == {}
    matcher.replace("a", build((14, 4), 5, set()))
    assert matcher.longest(KEYS) == {"a": 5}
    assert matcher.filter_bytes() == 2**14 // 8
    assert repr(matcher) == "<Matcher 1 peers, 2048 bytes>"
    matcher.forget("a")
    matcher.forget("a")
    assert (matcher.longest(KEYS), list(matcher.peers())) == ({}, [])


def test_no_keys_and_no_peers_are_no_matches() -> None:
    matcher = Matcher()
    assert matcher.longest(KEYS) == {}
    matcher.replace("a", build((10, 2), 200, set()))
    assert matcher.longest([]) == {}


def test_more_peers_than_one_slab_takes_come_and_go_without_a_trace() -> None:
    random, matcher = Random(3), Matcher()
    plain: dict[str, BloomFilter] = {}
    for step in range(1500):
        peer = f"peer-{random.randrange(700)}"
        if step < 1100 or random.random() < 0.2:
            plain[peer] = build(random.choice([(6, 1), (8, 2)]), random.randrange(20), set())
            matcher.replace(peer, BloomFilter(plain[peer].bits_log2, plain[peer].hashes, plain[peer].bits.copy()))
        else:
            plain.pop(peer, None)
            matcher.forget(peer)
        if step % 250 == 249:
            depths = {peer: leading_run(bloom, KEYS) for peer, bloom in plain.items()}
            assert matcher.longest(KEYS) == {peer: depth for peer, depth in depths.items() if depth}
            assert matcher.filter_bytes() <= 4 * sum(bloom.bits.nbytes for bloom in plain.values())
    for peer in plain:
        matcher.forget(peer)
    assert matcher.filter_bytes() == 0
    assert matcher.longest(KEYS) == {}


def test_one_peer_that_changes_its_size_again_and_again_leaves_nothing_behind() -> None:
    matcher = Matcher()
    for round_ in range(200):
        matcher.replace("a", build((10 + round_ % 3, 3), 50, set()))
        matcher.replace("b", build((10, 3), 7, set()))
        assert matcher.longest(KEYS[:60])["b"] >= 7
    assert matcher.filter_bytes() <= 2**12 // 8 + 2 * 2**10 // 8


def test_a_steady_churn_of_one_shape_keeps_one_slab() -> None:
    matcher = Matcher()
    for i in range(1000):
        matcher.replace(str(i), build((10, 3), i % 5, set()))
        if i >= 20:
            matcher.forget(str(i - 20))
    assert matcher.filter_bytes() == 32 * 2**10 // 8
