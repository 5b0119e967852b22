"""Lengths from announced keys: exact where they say they are, and what false positives can and cannot do to them."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.index.announce import STEP, announced
from p2pkv.index.bloom import BloomFilter, size_for
from p2pkv.index.lookup import TIPS_MAX, lengths
from p2pkv.index.matcher import Matcher

KEYS = [i.to_bytes(32, "big") for i in range(200)]


def holding(keys: list[bytes], shape: tuple[int, int] = (16, 6)) -> BloomFilter:
    bloom = BloomFilter(*shape)
    for key in keys:
        bloom.add(key)
    return bloom


@given(st.lists(st.integers(0, 200), max_size=12), st.integers(0, 200), st.booleans())
def test_lengths_are_right_to_within_a_step_and_exact_for_the_greatest(
    held: list[int], asked: int, all_said: bool
) -> None:
    matcher = Matcher()
    for peer, blocks in enumerate(held):
        said = range(blocks) if all_said else announced(blocks)
        matcher.replace(str(peer), holding([KEYS[depth] for depth in said]))
    found = lengths(matcher, KEYS[:asked])
    truth = {str(peer): min(blocks, asked) for peer, blocks in enumerate(held) if min(blocks, asked)}
    assert set(found) == set(truth)
    assert all(truth[peer] - STEP < length <= truth[peer] for peer, length in found.items())
    if len({max(1, length) // STEP for length in truth.values()}) <= TIPS_MAX and (
        all_said or max(held, default=0) <= asked
    ):
        assert found == truth


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=6), st.integers(0, 60), st.integers(0, 60))
def test_behind_a_base_lengths_are_right_to_within_a_step(held: list[tuple[int, int]], asked: int, base: int) -> None:
    asked, base = max(asked, base), min(asked, base)
    matcher = Matcher()
    for peer, (start, stop) in enumerate(held):
        said = [depth for depth in announced(stop) if depth >= start]
        matcher.replace(str(peer), holding([KEYS[depth] for depth in said]))
    found = lengths(matcher, KEYS[:asked], base)
    for peer, (start, stop) in enumerate(held):
        has = min(stop, asked) if start <= base < stop and asked > base else base
        length = found.get(str(peer), base)
        if start <= base:
            assert has - STEP < length <= has
        elif length > base:  # what lies before the first landmark that is claimed cannot be known
            assert start < base + STEP


def test_a_chain_that_goes_on_behind_the_end_of_the_question_is_known_to_its_last_landmark() -> None:
    # The holder's tip is block 30, and the question ends before it: block 27 was not announced, 23 was.
    matcher = Matcher()
    matcher.replace("a", holding([KEYS[depth] for depth in announced(31)]))
    assert lengths(matcher, KEYS[:28]) == {"a": 24}
    assert lengths(matcher, KEYS[:31]) == {"a": 31}


def test_a_hole_within_a_step_is_not_seen_and_one_at_a_landmark_ends_the_run() -> None:
    matcher = Matcher()
    matcher.replace("within", holding([KEYS[depth] for depth in announced(40)]))
    matcher.replace("at", holding([KEYS[depth] for depth in announced(40) if depth != 23]))
    assert lengths(matcher, KEYS) == {"within": 40, "at": 16}


def bisected(bloom: BloomFilter, keys: list[bytes]) -> int:
    """What a reader might do who trusts single answers: O(log n) questions for a length."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if keys[middle - 1] in bloom else (low, middle - 1)
    return low


def test_bisection_picks_the_wrong_peer_where_a_leading_run_does_not() -> None:
    # 300 filters at 1 %, full; one peer holds 24 blocks of each chain, the others hold none of it.
    random, peers, chains, held = Random(4), 300, 40, 24
    keys = 500
    shape = size_for(keys, 0.01)
    asked = [[random.randbytes(32) for _ in range(100)] for _ in range(chains)]
    plain, matcher = {}, Matcher()
    for peer in range(peers):
        mine = [chain[depth] for number, chain in enumerate(asked) if number == peer for depth in announced(held)]
        whole = [chain[depth] for number, chain in enumerate(asked) if number == peer for depth in range(held)]
        others = [random.randbytes(32) for _ in range(keys - len(whole))]
        plain[str(peer)] = holding(others + whole, shape)
        matcher.replace(str(peer), holding(others + mine, shape))
    wrong_by_bisection = wrong_by_run = 0
    for number, chain in enumerate(asked):
        bisection = {peer: bisected(bloom, chain) for peer, bloom in plain.items()}
        wrong_by_bisection += max(bisection, key=bisection.__getitem__) != str(number)
        run = lengths(matcher, chain)
        wrong_by_run += max(run, key=run.__getitem__) != str(number)
    assert wrong_by_run == 0
    assert wrong_by_bisection > chains / 2
