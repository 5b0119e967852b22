"""Least recently used first, within each size class."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import BlockKey
from p2pkv.eviction import EvictionPolicy, Lru

A, B, C, D = (BlockKey(name) for name in (b"a", b"b", b"c", b"d"))


@pytest.fixture
def lru() -> Lru:
    policy: EvictionPolicy = Lru()
    assert isinstance(policy, Lru)
    for key in (A, B, C):
        policy.insert(key, 1)
    policy.insert(D, 2)
    return policy


def test_the_oldest_goes_first(lru: Lru) -> None:
    assert list(lru.candidates(1)) == [A, B, C]


def test_a_use_saves_a_block_for_longest(lru: Lru) -> None:
    lru.touch(A)
    assert list(lru.candidates(1)) == [B, C, A]


def test_size_classes_are_kept_apart(lru: Lru) -> None:
    lru.touch(D)
    assert list(lru.candidates(1)) == [A, B, C]
    assert list(lru.candidates(2)) == [D]
    assert list(lru.candidates(3)) == []


def test_uses_are_comparable_across_size_classes(lru: Lru) -> None:
    assert lru.last_use(C) < lru.last_use(D)
    lru.touch(A)
    assert lru.last_use(D) < lru.last_use(A)


def test_what_was_removed_is_forgotten_and_may_come_back_elsewhere(lru: Lru) -> None:
    lru.remove(D)
    lru.remove(A)
    assert list(lru.candidates(1)) == [B, C]
    assert list(lru.candidates(2)) == []
    lru.insert(A, 2)
    assert list(lru.candidates(2)) == [A]


def test_nothing_is_kept_of_a_size_class_that_is_no_more(lru: Lru) -> None:
    for key in (A, B, C, D):
        lru.remove(key)
    assert lru._groups == {}
    assert lru._group_of == {}


def test_a_chain_touched_tail_first_keeps_its_head_longest(lru: Lru) -> None:
    for key in reversed([A, B, C]):
        lru.touch(key)
    assert list(lru.candidates(1)) == [C, B, A]


def test_one_key_is_not_taken_twice(lru: Lru) -> None:
    with pytest.raises(AssertionError):
        lru.insert(A, 1)


@given(st.lists(st.tuples(st.sampled_from(["use", "remove"]), st.integers(0, 9)), max_size=60))
def test_the_order_is_that_of_a_list_of_uses(steps: list[tuple[str, int]]) -> None:
    lru, order = Lru(), list[tuple[int, BlockKey]]()
    for what, number in steps:
        key, group = BlockKey(bytes([number])), number % 2
        known = any(one == key for _, one in order)
        order = [(g, one) for g, one in order if one != key]
        if what == "use":
            if known:
                lru.touch(key)
            else:
                lru.insert(key, group)
            order.append((group, key))
        elif known:
            lru.remove(key)
        for g in (0, 1):
            assert list(lru.candidates(g)) == [one for group_of, one in order if group_of == g]
        uses = [lru.last_use(one) for _, one in order]
        assert uses == sorted(set(uses))
