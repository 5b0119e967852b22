"""What hints pin: an eighth of memory and no more, whatever they ask for, and not for longer than they said."""

import pytest

from p2pkv.acquires import Acquired
from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.errors import PinLimit
from p2pkv.hints import AT_ONCE, SHARE, Hints
from p2pkv.ledger import Ledger
from p2pkv.slots import PAGE_BYTES

ROOM = 4
"""Blocks that hints may pin."""


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big"))


CHAIN = tuple(key(number) for number in range(6))


class Bench:
    def __init__(self, *, guess: int = PAGE_BYTES) -> None:
        self.ledger = Ledger(capacity_bytes=SHARE * ROOM * PAGE_BYTES, chunk_bytes=4 * PAGE_BYTES)
        self.hints = Hints(self.ledger, lambda _, said: said or guess)
        for name in CHAIN:
            reservation = self.ledger.reserve(BlockInfo(name, bytes(32), PAGE_BYTES, PAGE_BYTES, name[:16]))
            assert reservation is not None
            self.ledger.commit(reservation)

    def acquired(self, number: int, *keys: BlockKey, holder: str = "engine") -> int:
        lease = self.ledger.lease(keys, holder=holder, deadline=60.0)
        return self.hints.on_acquired(Acquired(number, lease, ("",) * len(lease.blocks), "all here"))

    def pinned(self) -> int:
        return self.ledger.statistics().pinned_blocks


def test_a_chain_is_cut_to_what_hints_may_still_pin_and_what_is_under_way_counts() -> None:
    bench = Bench()
    first = bench.hints.room_for(CHAIN[:3])
    assert first == CHAIN[:3]
    bench.hints.begin(1, first, holder="engine", deadline=10.0)
    assert bench.hints.room_for(CHAIN) == CHAIN[:1]
    assert bench.acquired(1, *first) == 3
    assert bench.hints.room_for(CHAIN) == CHAIN[:1]
    bench.hints.begin(2, CHAIN[:1], holder="engine", deadline=10.0)
    with pytest.raises(
        PinLimit, match=f"hints pin {3 * PAGE_BYTES} bytes, limit {4 * PAGE_BYTES}, and 1 are under way"
    ):
        bench.hints.room_for(CHAIN)


def test_what_the_engine_says_of_its_blocks_counts_until_they_are_here() -> None:
    bench = Bench()
    keys = bench.hints.room_for(CHAIN, 2 * PAGE_BYTES)
    assert keys == CHAIN[:2]
    bench.hints.begin(1, keys, holder="engine", deadline=10.0, block_bytes=2 * PAGE_BYTES)
    with pytest.raises(PinLimit):
        bench.hints.room_for(CHAIN)
    bench.acquired(1, *keys)
    assert bench.hints.room_for(CHAIN) == CHAIN[:2]


def test_what_is_pinned_ends_with_the_time_that_the_engine_said_and_makes_room() -> None:
    bench = Bench()
    bench.hints.begin(1, CHAIN[:4], holder="engine", deadline=10.0)
    bench.acquired(1, *CHAIN[:4])
    bench.ledger.expire(9.0)
    assert bench.pinned() == 4
    bench.ledger.expire(10.0)
    assert bench.pinned() == 0
    assert bench.hints.room_for(CHAIN) == CHAIN[:4]


def test_blocks_that_are_larger_than_was_guessed_are_pinned_as_far_as_there_is_room() -> None:
    bench = Bench(guess=1)
    assert bench.hints.room_for(CHAIN) == CHAIN
    bench.hints.begin(1, CHAIN, holder="engine", deadline=10.0)
    assert bench.acquired(1, *CHAIN) == ROOM
    assert bench.pinned() == ROOM
    bench.ledger.expire(10.0)
    assert bench.pinned() == 0


def test_so_many_hints_are_under_way_and_no_more() -> None:
    bench = Bench(guess=1)
    for number in range(AT_ONCE):
        bench.hints.begin(number, CHAIN[:1], holder="engine", deadline=10.0)
    with pytest.raises(PinLimit, match=f"{AT_ONCE} hints are under way, limit {AT_ONCE}"):
        bench.hints.room_for(CHAIN)
    bench.acquired(0)  # nothing came of it
    assert bench.hints.room_for(CHAIN) == CHAIN


def test_an_engine_that_goes_away_takes_its_own_hints_along() -> None:
    bench = Bench()
    bench.hints.begin(1, CHAIN[:2], holder="engine", deadline=10.0)
    bench.hints.begin(2, CHAIN[:1], holder="other", deadline=10.0)
    assert bench.hints.forget("engine") == (1,)
    assert [bench.hints.waits_for(number) for number in (1, 2)] == [False, True]
    assert bench.hints.room_for(CHAIN) == CHAIN[:3]
