"""Which runs of the chains in memory are put into an object store, and when, and what becomes of them when that fails."""

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.config import ObjectConfig
from p2pkv.ledger import Ledger
from p2pkv.run_costs import RunCosts
from p2pkv.run_writes import KNOWN_MAX, KNOWN_S, PAUSE_S, PutRun, RunWrites
from p2pkv.tiers.object.runs import cut_for, runs_of
from tests.objects import NAMESPACE, chain_of

LENGTH = 512 * 1024
"""Runs of 16 to 2."""
CUT = cut_for(LENGTH)
SETTLE_S = 2.0


class Bench:
    """The writes of one node, and a store that answers when it is told to."""

    def __init__(self, *, write: str = "through", at_once: int = 2, host_blocks: int = 1000) -> None:
        self.now = 0.0
        self.ledger = Ledger(capacity_bytes=host_blocks * LENGTH, chunk_bytes=LENGTH)
        config = ObjectConfig(url="file:///x", write=write, settle_s=SETTLE_S)  # type: ignore[arg-type]
        self.costs = RunCosts()
        self.writes = RunWrites(config, host=self.ledger, costs=self.costs, at_once=at_once)
        self.puts: dict[int, PutRun] = {}
        self.stored: list[tuple[BlockKey, ...]] = []
        self.prefill_s: float | None = None

    def store(
        self,
        keys: Sequence[BlockKey],
        *,
        first: int = 0,
        only: Sequence[int] | None = None,
        namespace: bytes = NAMESPACE,
    ) -> None:
        for depth in only if only is not None else range(first, len(keys)):
            key = keys[depth]
            reservation = self.ledger.reserve(BlockInfo(key, namespace, LENGTH, LENGTH, key[:16]))
            if reservation is not None:
                for gone in reservation.evicted:
                    self.writes.on_evicted(gone)
                self.ledger.commit(reservation)
                self.writes.on_stored(key, (depth, keys[depth - 1] if depth else None), self.now)
            self.start()

    def evict(self, key: BlockKey) -> None:
        assert self.ledger.drop(key)
        self.writes.on_evicted(key)

    def start(self) -> None:
        for put in self.writes.start(self.now, self.prefill_s, LENGTH):
            self.puts[put.move] = put

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.start()

    def answer(self, result: str = "stored") -> None:
        move, put = next(iter(self.puts.items()))
        del self.puts[move]
        if result == "stored":
            self.stored.append(tuple(held.info.key for held in put.blocks))
        self.writes.on_put(move, result, 0.1, self.now)
        self.start()

    def answer_all(self, result: str = "stored") -> None:
        while self.puts:
            self.answer(result)

    def settle(self) -> None:
        self.tick(SETTLE_S)
        self.answer_all()


def runs(keys: Sequence[BlockKey]) -> list[tuple[BlockKey, ...]]:
    return [run.keys for run in runs_of(keys, CUT)]


def test_a_largest_run_is_put_when_its_last_block_is_stored_and_an_end_when_it_has_settled() -> None:
    keys = chain_of(1, 41)
    bench = Bench()
    bench.store(keys)
    bench.answer_all()
    assert bench.stored == runs(keys[:32])
    assert bench.writes.next_deadline() == SETTLE_S
    bench.settle()
    assert bench.stored == runs(keys)
    assert [len(run) for run in bench.stored] == [16, 16, 8]
    assert bench.writes.next_deadline() == float("inf")
    assert bench.ledger.statistics().leases == 0


def test_an_end_that_grows_is_put_once() -> None:
    keys = chain_of(1, 12)
    bench = Bench()
    for length in range(1, 13):
        bench.store(keys[:length])
        bench.tick(SETTLE_S / 2)
    assert not bench.puts
    bench.settle()
    assert bench.stored == runs(keys)


def test_of_a_chain_that_goes_on_later_what_is_new_is_put() -> None:
    keys = chain_of(1, 30)
    bench = Bench()
    bench.store(keys[:10])
    bench.settle()
    bench.store(keys)
    bench.settle()
    assert bench.stored == [*runs(keys[:10]), *runs(keys)]
    bench.store(keys)
    bench.settle()
    assert len(bench.stored) == 6


def test_blocks_that_come_in_any_order_are_put_as_the_same_runs() -> None:
    keys = chain_of(1, 37)
    for seed in range(20):
        bench = Bench()
        order = list(range(37))
        Random(seed).shuffle(order)
        bench.store(keys, only=order)
        bench.settle()
        assert set(runs(keys)) <= set(bench.stored)


def test_a_whole_run_whose_last_block_came_first_is_one_run_and_not_its_parts_too() -> None:
    keys = chain_of(1, 16)
    bench = Bench()
    bench.store(keys, only=[15, *range(15)])
    bench.settle()
    assert bench.stored == runs(keys)


def test_two_chains_that_part_inside_a_run_are_each_put_whole() -> None:
    trunk = chain_of(1, 9)
    one, other = trunk + chain_of(2, 7, parent=trunk[-1]), trunk + chain_of(3, 7, parent=trunk[-1])
    bench = Bench(at_once=1)
    bench.store(one)
    bench.store(other, first=9)
    bench.settle()
    assert set(bench.stored) == {one, other}


def test_what_leaves_memory_before_its_turn_is_lost_and_counted() -> None:
    bench = Bench(at_once=1)
    first, second = chain_of(1, 16), chain_of(2, 16)
    bench.store(first)
    bench.store(second)
    (put,) = bench.puts.values()
    assert put.blocks[0].info.key == first[0]
    assert not bench.ledger.drop(first[3]), "it is being put"
    bench.evict(second[3])
    bench.answer_all()
    assert bench.stored == [first]
    assert bench.writes.counts.lost == 1
    assert bench.writes.waiting == 0


def test_of_a_chain_whose_beginning_is_gone_later_runs_are_put_all_the_same() -> None:
    keys = chain_of(1, 40)
    bench = Bench(at_once=0)
    bench.store(keys[:20])
    for key in keys[:18]:
        bench.evict(key)
    bench.writes._at_once = 2  # type: ignore[misc]
    bench.store(keys, first=20)
    bench.settle()
    assert bench.stored == [keys[32:40]]


def test_what_is_there_already_is_not_put_again_for_a_while() -> None:
    keys = chain_of(1, 16)
    bench = Bench()
    bench.store(keys)
    bench.answer_all("there")
    assert bench.writes.counts.there == 1
    for expected, wait_s in ((0, 1.0), (1, KNOWN_S)):
        bench.tick(wait_s)
        bench.evict(keys[15])
        bench.store(keys)
        assert len(bench.puts) == expected


def test_what_a_reader_found_is_known_and_what_it_missed_is_not() -> None:
    keys = chain_of(1, 16)
    bench = Bench()
    bench.writes.on_known(keys[15], bench.now)
    bench.store(keys)
    bench.settle()
    assert bench.stored == []
    bench.writes.on_absent(keys[15])
    bench.evict(keys[15])
    bench.store(keys)
    bench.settle()
    assert bench.stored == [keys]


def test_no_more_is_known_than_may_be() -> None:
    bench = Bench()
    keys = chain_of(1, KNOWN_MAX + 10)
    for key in keys:
        bench.writes.on_known(key, bench.now)
    assert len(bench.writes._known) == KNOWN_MAX
    assert keys[9] not in bench.writes._known


def test_while_the_store_fails_what_is_to_be_put_waits_and_is_tried_again_later_and_later() -> None:
    keys = chain_of(1, 16)
    bench = Bench()
    bench.store(keys)
    for attempt in range(20):
        bench.answer("late" if attempt % 2 else "resting")
        assert not bench.puts
        pause_s = PAUSE_S * min(32, 2**attempt)
        assert bench.writes.next_deadline() == bench.now + pause_s
        bench.tick(pause_s)
        assert len(bench.puts) == 1
    bench.answer_all()
    assert bench.stored == [keys]
    assert (bench.writes.counts.failed, bench.writes.counts.lost) == (20, 0)


def test_a_run_that_fails_while_others_do_not_is_given_up() -> None:
    bench = Bench(at_once=1)
    bad = chain_of(0, 16)
    others = [chain_of(seed, 16) for seed in range(1, 11)]
    bench.store(bad)
    for other in others:
        bench.store(other)
        while bench.puts:
            (put,) = bench.puts.values()
            bench.answer("failed" if put.blocks[0].info.key == bad[0] else "stored")
        bench.tick(100.0)
    bench.answer_all()
    assert bench.stored == others
    assert bench.writes.counts.lost == 1


def test_a_store_that_is_back_is_put_to_at_once() -> None:
    bench = Bench()
    bench.store(chain_of(1, 16))
    for _ in range(6):
        bench.answer("failed")
        bench.tick(32.0)
    bench.answer("failed")
    bench.writes.on_service()
    assert bench.writes.next_deadline() == -float("inf")
    bench.tick(0.0)
    assert len(bench.puts) == 1


def test_blocks_that_are_not_what_they_were_are_not_put() -> None:
    bench = Bench()
    bench.store(chain_of(1, 16))
    bench.answer("corrupt")
    bench.tick(1000.0)
    assert not bench.puts
    assert bench.writes.counts.failed == 1


def test_what_is_computed_sooner_than_it_is_got_back_is_not_put() -> None:
    bench = Bench()
    bench.prefill_s = 1e-6
    bench.store(chain_of(1, 16))
    bench.settle()
    assert bench.stored == []
    assert bench.writes.counts.cheap == 1
    bench.prefill_s = 1.0
    bench.store(chain_of(2, 16))
    bench.answer_all()
    assert len(bench.stored) == 1


def test_written_back_is_what_was_stored_longest_ago_when_memory_needs_it() -> None:
    bench = Bench(write="back", host_blocks=128)
    chains = [chain_of(seed, 16) for seed in range(16)]
    for chain in chains[:6]:
        bench.store(chain)
        bench.settle()
    assert bench.stored == [], "three quarters of memory are not full of it yet"
    for chain in chains[6:]:
        bench.store(chain)
        bench.answer_all()
    assert bench.stored == chains[:10]
    assert bench.writes.counts.lost == 0


def test_who_only_reads_puts_nothing() -> None:
    bench = Bench(write="never")
    bench.store(chain_of(1, 16))
    bench.settle()
    assert bench.stored == []
    assert bench.writes.next_deadline() == float("inf")


@pytest.mark.parametrize("place", [(None, None), (3, None)])
def test_blocks_that_are_nowhere_in_a_chain_are_counted(place: tuple[int | None, BlockKey | None]) -> None:
    bench = Bench()
    (key,) = chain_of(1, 1)
    reservation = bench.ledger.reserve(BlockInfo(key, NAMESPACE, LENGTH, LENGTH, key[:16]))
    assert reservation is not None
    bench.ledger.commit(reservation)
    bench.writes.on_stored(key, place, bench.now)
    assert bench.writes.counts.unknown_places == 1
    assert bench.writes.next_deadline() == float("inf")


def test_a_chain_that_comes_back_to_itself_ends() -> None:
    """An engine may say so, and must not stop its node."""
    one, other = chain_of(1, 2)
    bench = Bench()
    for key in (one, other):
        reservation = bench.ledger.reserve(BlockInfo(key, NAMESPACE, LENGTH, LENGTH, key[:16]))
        assert reservation is not None
        bench.ledger.commit(reservation)
    for first, second in ((one, one), (one, other)):
        bench.writes.on_stored(first, (15, second), bench.now)
        bench.writes.on_stored(second, (16, first), bench.now)
        bench.settle()
    assert bench.stored == []


def test_blocks_of_two_namespaces_are_no_run() -> None:
    keys = chain_of(1, 16)
    bench = Bench(at_once=0)
    bench.store(keys[:8])
    bench.store(keys, first=8, namespace=b"m" * 32)
    bench.writes._at_once = 2  # type: ignore[misc]
    bench.settle()
    assert bench.stored == []
    assert bench.writes.counts.lost == 1


STEP = st.one_of(
    st.tuples(st.just("store"), st.integers(0, 3), st.integers(1, 60)),
    st.tuples(st.just("evict"), st.integers(0, 3), st.integers(0, 59)),
    st.tuples(st.just("answer"), st.sampled_from(["stored", "there", "late", "resting", "corrupt"]), st.just(0)),
    st.tuples(st.just("tick"), st.sampled_from([0.5, 2.0, 40.0]), st.just(0)),
)


@given(steps=st.lists(STEP, max_size=60), write=st.sampled_from(["through", "back"]))
def test_whatever_happens_what_is_put_is_a_run_of_blocks_that_are_here_and_pinned(
    steps: list[tuple[str, object, int]], write: str
) -> None:
    bench = Bench(write=write, host_blocks=64)
    trunk = chain_of(0, 20)
    chains = [trunk + chain_of(seed, 40, parent=trunk[-1]) for seed in range(1, 5)]
    allowed = {run for chain in chains for stop in range(61) for run in runs(chain[:stop])}
    for what, which, number in steps:
        match what:
            case "store":
                bench.store(chains[int(str(which))][:number])
            case "evict":
                key = chains[int(str(which))][number]
                if bench.ledger.drop(key):
                    bench.writes.on_evicted(key)
            case "answer" if bench.puts:
                bench.answer(str(which))
            case "tick":
                bench.tick(float(str(which)))
        for put in bench.puts.values():
            keys = tuple(held.info.key for held in put.blocks)
            assert keys in allowed
            assert all(bench.ledger.get(key) is not None and not bench.ledger.drop(key) for key in keys)
        writes = bench.writes
        assert len(bench.puts) <= 2
        assert writes._ready_bytes == sum(ready.size for ready in writes._ready.values())
        assert set(writes._ready_of) == {key for ready in writes._ready.values() for key in ready.keys}
        assert all(bench.ledger.get(key) is not None for key in (*writes._ready_of, *writes._places))
        assert len(writes._ends) <= len(writes._places)
    bench.answer_all()
    assert bench.ledger.statistics().leases == 0
