"""Last copies: who forwards, whom to, how often, and what a copy is worth."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import BlockKey
from p2pkv.forwarding import Forwarding, candidates, takes

A, B = BlockKey(b"a"), BlockKey(b"b")


def test_what_was_computed_here_may_go_on_and_what_was_fetched_may_not() -> None:
    forwarding = Forwarding()
    forwarding.add(A)
    assert forwarding.is_original(A)
    assert forwarding.may_go_on(A)
    assert not forwarding.is_original(B)
    assert not forwarding.may_go_on(B)


def test_a_block_goes_on_so_often_until_it_is_used_again() -> None:
    forwarding = Forwarding(hops_max=2)
    forwarding.add(A, hops=1)
    assert forwarding.may_go_on(A)
    forwarding.add(A, hops=2)
    assert not forwarding.may_go_on(A)
    forwarding.use(A)
    assert forwarding.may_go_on(A)
    assert forwarding.remove(A) == 0
    assert forwarding.remove(A) is None


def test_with_no_hops_nothing_goes_on() -> None:
    forwarding = Forwarding(hops_max=0)
    forwarding.add(A)
    assert not forwarding.may_go_on(A)


def test_the_one_with_room_or_else_with_the_oldest_block_is_chosen() -> None:
    forwarding = Forwarding()
    assert forwarding.choose(10, [("x", 11), ("y", 30)]) == "y"
    assert forwarding.choose(10, [("x", inf), ("y", 30)]) == "x"
    assert forwarding.choose(10, [("x", 10), ("y", 3)]) is None
    assert forwarding.choose(10, []) is None
    assert (forwarding.forwarded, forwarding.refused) == (2, 2)


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_no_two_blocks_change_places_for_ever(one_s: float, other_s: float) -> None:
    assert not (takes(one_s, other_s) and takes(other_s, one_s))


def test_three_others_are_offered_a_block_where_there_are_so_many() -> None:
    owners = {b"ab": ("x", "y", "me"), b"ba": ("y", "z", "u")}
    assert candidates(owners.__getitem__, b"ab", "me") == ("x", "y", "z")
    assert candidates(lambda _: ("me",), b"ab", "me") == ()
