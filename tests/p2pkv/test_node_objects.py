"""A node with an object store: what is asked of it when, for how long, and what is done with what comes."""

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.acquires import FROM_OBJECT, Acquired
from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.config import Config, DiskConfig, HostConfig, ObjectConfig
from p2pkv.effects import Note
from p2pkv.node import Effect, Node
from p2pkv.planner import Cost
from p2pkv.run_reads import GetRun
from p2pkv.run_writes import PutRun
from p2pkv.tiers.object.runs import cut_for, runs_of
from p2pkv.transport.wire import MemberRecord
from tests.objects import NAMESPACE, chain_of

LENGTH = 128 * 1024
"""Runs of 64 to 8."""
CHAIN = chain_of(1, 72)
HOST_BLOCKS = 128


def info(key: BlockKey) -> BlockInfo:
    return BlockInfo(key, NAMESPACE, LENGTH, LENGTH, key[:16])


class Bench:
    """One node, and a store that has chains and answers when it is told to."""

    def __init__(self, *chains: Sequence[BlockKey], url: str = "file:///x") -> None:
        self.now = 0.0
        config = Config(
            host=HostConfig(capacity_bytes=HOST_BLOCKS * LENGTH, chunk_bytes=LENGTH),
            object=ObjectConfig(url=url, settle_s=1.0),
            disk=DiskConfig(),
        )
        me = MemberRecord(id="me", boot=1, incarnation=0, state=0, name="me", address="me:1", offered_bytes=2**20)
        self.node = Node(config, me, Random(1))
        self.objects = {run.keys for chain in chains for run in runs_of(chain, cut_for(LENGTH))}
        self.gets: dict[int, GetRun] = {}
        self.puts: dict[int, PutRun] = {}
        self.acquired: dict[int, Acquired] = {}
        self.states: list[str] = []

    def take(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case GetRun():
                    self.gets[effect.move] = effect
                case PutRun():
                    self.puts[effect.move] = effect
                case Acquired():
                    self.acquired[effect.acquire] = effect
                case Note(event="object store"):
                    self.states.append(str(dict(effect.facts)["state"]))
                case _:
                    pass

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.take(self.node.on_time(self.now))

    def store(self, keys: Sequence[BlockKey]) -> None:
        for depth, key in enumerate(keys):
            reservation = self.node.reserve(info(key), self.now)
            if reservation is not None:
                self.node.commit(reservation, self.now, depth, keys[depth - 1] if depth else None)
        self.tick()

    def acquire(
        self,
        keys: Sequence[BlockKey],
        *,
        within_s: float = 10.0,
        prefill_s: float = 0.0,
        first: int = 0,
        known: int = LENGTH,
    ) -> int:
        cost = Cost(LENGTH, prefill_s) if prefill_s else None
        number, effects = self.node.acquire(
            keys,
            holder="engine",
            deadline=self.now + within_s,
            now=self.now,
            first=first,
            cost=cost,
            block_bytes=known,
        )
        self.take(effects)
        return number

    def answer(self, verdict: str = "", *, problem: str = "") -> None:
        move, get = next(iter(self.gets.items()))
        del self.gets[move]
        if not verdict:
            verdict = "ok" if get.run.keys in self.objects else "absent"
        infos = [info(key) for key in get.run.keys[get.first :]] if verdict == "ok" else []
        places, effects = self.node.on_object_got(get, verdict, infos, self.now, problem=problem)
        self.take(effects)
        if any(places):
            self.take(self.node.on_object_placed(move, self.now))

    def answer_all(self) -> None:
        while self.gets:
            self.answer()

    def put_all(self) -> list[tuple[BlockKey, ...]]:
        done = []
        while self.puts:
            move, put = self.puts.popitem()
            done.append(tuple(held.info.key for held in put.blocks))
            self.take(self.node.on_object_put(move, "stored", self.now))
        return done

    def release(self, number: int) -> None:
        self.node.ledger.release(self.acquired[number].lease.id, holder="engine")


def test_an_engine_gets_from_the_store_what_nobody_else_has() -> None:
    bench = Bench(CHAIN)
    number = bench.acquire(CHAIN)
    assert number not in bench.acquired
    bench.answer_all()
    acquired = bench.acquired[number]
    assert [held.info.key for held in acquired.lease.blocks] == list(CHAIN)
    assert acquired.sources == (FROM_OBJECT,) * 72
    assert acquired.reason == "all here"


def test_of_what_is_in_memory_and_of_what_the_engine_has_only_the_rest_is_asked_for() -> None:
    bench = Bench(CHAIN)
    bench.store(CHAIN[:20])
    number = bench.acquire(CHAIN, first=10, known=0)
    (get,) = bench.gets.values()
    assert (get.run.keys, get.first) == (CHAIN[:64], 20)
    bench.answer_all()
    assert bench.acquired[number].sources == ("",) * 10 + (FROM_OBJECT,) * 52


def test_a_store_that_has_nothing_is_a_miss_that_says_so() -> None:
    bench = Bench()
    number = bench.acquire(CHAIN)
    bench.answer_all()
    acquired = bench.acquired[number]
    assert acquired.lease.blocks == ()
    assert acquired.reason == "no peer claims the next block; the object store has no more"
    assert bench.node.statistics().object.reads.verdicts == {"absent": 4}


def test_who_does_not_say_how_long_blocks_are_is_asked_for_only_where_that_is_known() -> None:
    bench = Bench(CHAIN)
    number = bench.acquire(CHAIN, known=0)
    assert bench.acquired[number].reason == "no peer claims the next block"
    assert bench.node.statistics().object.unknown_lengths == 1
    (stray,) = chain_of(3, 1)
    reservation = bench.node.reserve(info(stray), bench.now)
    assert reservation is not None
    bench.node.commit(reservation, bench.now)
    assert bench.acquire(CHAIN, known=0) in bench.acquired, "a block that is in no chain says nothing"
    bench.store(chain_of(2, 1))
    number = bench.acquire(CHAIN, known=0)
    bench.answer_all()
    assert len(bench.acquired[number].lease.blocks) == 72


def test_an_engine_that_computes_faster_is_answered_at_once() -> None:
    bench = Bench(CHAIN)
    number = bench.acquire(CHAIN, prefill_s=1e-6)
    assert number in bench.acquired
    assert bench.node.statistics().object.not_worth_asking == 1


def test_an_engine_waits_no_longer_than_it_would_compute_and_never_past_its_deadline() -> None:
    for within_s, prefill_s, expected_s in ((10.0, 0.05, 72 * 0.05), (2.0, 0.05, 2.0), (2.0, 0.0, 2.0)):
        bench = Bench(CHAIN)
        number = bench.acquire(CHAIN, within_s=within_s, prefill_s=prefill_s)
        bench.tick(expected_s - 0.01)
        assert number not in bench.acquired
        assert bench.node.next_deadline() <= expected_s
        bench.tick(0.02)
        assert bench.acquired[number].reason.endswith("the object store did not answer in time")
        bench.answer_all()
        assert bench.node.ledger.prefix(CHAIN) == 0


def test_what_came_in_time_is_the_engines() -> None:
    bench = Bench(CHAIN)
    number = bench.acquire(CHAIN, within_s=1.0)
    bench.answer()
    bench.tick(1.0)
    assert len(bench.acquired[number].lease.blocks) == 64


def test_an_engine_that_goes_away_leaves_nothing_behind() -> None:
    bench = Bench(CHAIN)
    number = bench.acquire(CHAIN)
    bench.take(bench.node.cancel(number, bench.now))
    bench.answer_all()
    assert number not in bench.acquired
    assert bench.node.ledger.prefix(CHAIN) == 0
    assert bench.node.ledger.statistics().leases == 0


def test_what_is_used_once_goes_and_stays_at_the_second_use_where_memory_is_tight() -> None:
    bench = Bench(CHAIN[:8])
    others = chain_of(9, HOST_BLOCKS)
    bench.store(others)
    bench.put_all()
    for use in range(2):
        number = bench.acquire(CHAIN[:8])
        bench.answer_all()
        assert len(bench.acquired[number].lease.blocks) == 8
        bench.release(number)
        assert (bench.node.ledger.get(CHAIN[0]) is not None) == (use == 1)


def test_what_came_from_the_store_is_not_put_there_again() -> None:
    bench = Bench(CHAIN)
    bench.acquire(CHAIN)
    bench.answer_all()
    bench.tick(5.0)
    assert bench.node.ledger.prefix(CHAIN) == 72
    assert not bench.puts


def test_what_engines_store_is_put_there_when_it_has_settled() -> None:
    bench = Bench()
    bench.store(CHAIN)
    bench.tick(1.0)
    assert sorted(map(len, bench.put_all())) == [8, 64]
    assert bench.node.ledger.statistics().leases == 0


def test_what_the_engine_computes_sooner_is_not_put_there() -> None:
    bench = Bench()
    bench.acquire(CHAIN, prefill_s=1e-6)
    bench.store(CHAIN)
    bench.tick(1.0)
    assert not bench.puts
    assert bench.node.statistics().object.writes.cheap == 2


def test_the_state_is_what_the_shell_says_and_said_once() -> None:
    bench = Bench(CHAIN)
    bench.acquire(CHAIN)
    bench.answer("failed", problem="failed")
    bench.acquire(CHAIN)
    bench.answer("resting", problem="failed")
    assert bench.states == ["out of service"]
    assert bench.node.statistics().object.reason == "failed"
    bench.take(bench.node.on_object_checked("", bench.now))
    assert bench.states == ["out of service", "serving"]


STEP = st.one_of(
    st.tuples(st.just("acquire"), st.integers(0, 3), st.sampled_from([8, 40, 72]), st.sampled_from([0.0, 0.05, 1.0])),
    st.tuples(st.just("answer"), st.sampled_from(["", "", "", "late", "failed", "corrupt"]), st.just(0), st.just(0.0)),
    st.tuples(st.just("put"), st.sampled_from(["stored", "there", "late"]), st.just(0), st.just(0.0)),
    st.tuples(st.just("tick"), st.sampled_from([0.0, 0.3, 2.0, 20.0]), st.just(0), st.just(0.0)),
    st.tuples(st.just("cancel"), st.integers(1, 20), st.just(0), st.just(0.0)),
    st.tuples(st.just("store"), st.integers(0, 3), st.integers(1, 72), st.just(0.0)),
)


@given(steps=st.lists(STEP, max_size=40))
def test_every_acquire_ends_once_and_in_time_and_nothing_stays_pinned(steps: list[tuple[str, Any, int, float]]) -> None:
    trunk = chain_of(0, 30)
    chains = [trunk + chain_of(seed, 42, parent=trunk[-1]) for seed in range(1, 5)]
    bench = Bench(chains[0], chains[1][:40])
    waiting: dict[int, float] = {}
    for what, which, number, seconds in steps:
        match what:
            case "acquire":
                within_s = 1.0 + number / 10
                waiting[bench.acquire(chains[which][:number], within_s=within_s, prefill_s=seconds)] = (
                    bench.now + within_s
                )
            case "answer" if bench.gets:
                bench.answer(which)
            case "put" if bench.puts:
                bench.take(bench.node.on_object_put(bench.puts.popitem()[0], which, bench.now))
            case "tick":
                bench.tick(which)
            case "cancel":
                if waiting.pop(which, None) is not None and which not in bench.acquired:
                    bench.take(bench.node.cancel(which, bench.now))
            case "store":
                bench.store(chains[which][:number])
        late = [one for one, until in waiting.items() if until <= bench.now and one not in bench.acquired]
        bench.tick()
        assert all(one in bench.acquired for one in late)
    bench.tick(100.0)
    assert set(waiting) <= set(bench.acquired)
    bench.answer_all()
    bench.tick()
    while bench.puts:
        bench.put_all()
        bench.tick()
    bench.node.ledger.release_holder("engine")
    assert bench.node.ledger.statistics().leases == 0
    assert bench.node.ledger.statistics().pinned_blocks == 0
    objects = bench.node.statistics().object
    assert (objects.waiting_reads, objects.waiting_writes) == (0, 0)


def test_what_the_store_would_be_asked_for_can_be_said_before() -> None:
    bench = Bench(CHAIN)

    def outlook(at: int = 0, prefill_s: float = 0.0, known: int = LENGTH) -> str:
        cost = Cost(LENGTH, prefill_s) if prefill_s else None
        return bench.node.objects.outlook(CHAIN, at, cost=cost, block_bytes=known, now=bench.now)

    assert outlook() == "asked; 72 blocks in 144 ms if it has them, no in 50 ms"
    assert outlook(prefill_s=1e-6).startswith("not asked: computing takes less time; 72 blocks")
    assert outlook(known=0) == "not asked: nobody has said how long a block is"
    assert not outlook(at=72)
    bench.take(bench.node.on_object_checked("late", bench.now))
    assert outlook() == "out of service (late)"
    assert not bench.gets


def test_without_a_url_there_is_no_object_store() -> None:
    bench = Bench(CHAIN, url="")
    assert bench.acquire(CHAIN) in bench.acquired
    bench.store(CHAIN)
    bench.tick(5.0)
    assert not bench.gets
    assert not bench.puts
    assert bench.node.statistics().object.state == "off"
