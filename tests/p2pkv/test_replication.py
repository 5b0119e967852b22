"""Heat: which blocks are worth a copy, here or at one more node."""

from math import inf

import pytest

from p2pkv.blocks import BlockKey
from p2pkv.replication import REMEMBERED_MAX, WORTH, Heat

A = BlockKey(b"a")


def test_a_copy_is_kept_where_it_is_used_many_times_while_others_are_used_once() -> None:
    heat = Heat()
    wanted = [heat.wants(A, now, 100) for now in range(20)]
    assert wanted.index(True) == 8
    assert not any(Heat().wants(A, 100 * now, 10) for now in range(20)), "too seldom"


def test_where_there_is_room_uses_do_not_age() -> None:
    heat = Heat()
    assert [heat.wants(A, 1000 * now, inf) for now in range(8)] == [False] * 7 + [True]


def test_uses_are_remembered_of_so_many_blocks() -> None:
    heat = Heat()
    for _ in range(7):
        heat.wants(A, 0, 100)
    for number in range(REMEMBERED_MAX):
        heat.wants(BlockKey(number.to_bytes(8, "little")), 0, 100)
    assert not heat.wants(A, 0, 100)


@pytest.mark.parametrize("oldest_s", [0.0, -1.0])
def test_a_tier_that_is_swept_through_in_no_time_wants_no_copies(oldest_s: float) -> None:
    heat = Heat()
    assert not any(heat.wants(A, now, oldest_s) for now in range(50))


def test_one_more_node_is_named_for_each_doubling() -> None:
    heat = Heat()
    said = [heat.spreads(A, 0, 100) for _ in range(4 * WORTH)]
    assert [number for number, spreads in enumerate(said, 1) if spreads] == [2 * WORTH, 3 * WORTH, 4 * WORTH]


def test_what_cools_down_is_not_spread_further() -> None:
    heat = Heat()
    for _ in range(2 * WORTH - 1):
        assert not heat.spreads(A, 0, 100)
    assert not heat.spreads(A, 300, 100)
