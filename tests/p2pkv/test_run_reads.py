"""Recalls: what is asked of an object store for a chain, in what order, and what of it is in memory in the end."""

from collections.abc import Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.ledger import Ledger, Place, Reservation
from p2pkv.run_costs import RunCosts
from p2pkv.run_reads import AHEAD, WAITING_MAX, GetRun, Recalled, RunReads
from p2pkv.tiers.object.runs import cut_for, runs_of
from tests.objects import NAMESPACE, chain_of

LENGTH = 512 * 1024
"""Runs of 16 to 2."""
CUT = cut_for(LENGTH)


class Bench:
    """The reads of one node, and a store that has chains and answers when it is told to."""

    def __init__(self, *chains: Sequence[BlockKey], at_once: int = 6, host_blocks: int = 1000) -> None:
        self.now = 0.0
        self.ledger = Ledger(capacity_bytes=host_blocks * LENGTH, chunk_bytes=LENGTH)
        self.costs = RunCosts()
        self.reads = RunReads(
            host=self.ledger,
            costs=self.costs,
            at_once=at_once,
            io_timeout_s=10.0,
            reserve=lambda info, _: self.ledger.reserve(info),
            arrived=self._arrived,
        )
        self.objects = {run.keys for chain in chains for run in runs_of(chain, CUT)}
        self.flawed: dict[BlockKey, int] = {}
        """Last block of a run -> how many of its blocks are good."""
        self.gets: dict[int, GetRun] = {}
        self.asked = 0
        self.over: dict[int, str] = {}
        self.places: dict[BlockKey, Place] = {}

    def _arrived(self, reservation: Reservation, place: Place, _: float) -> None:
        self.places[reservation.info.key] = place
        self.ledger.commit(reservation)

    def take(self, effects: Sequence[GetRun | Recalled]) -> None:
        for effect in effects:
            if isinstance(effect, GetRun):
                self.gets[effect.move] = effect
                self.asked += 1
            else:
                assert effect.recall not in self.over
                self.over[effect.recall] = effect.verdict

    def recall(self, keys: Sequence[BlockKey], *, at: int = 0, within_s: float = 60.0) -> int | None:
        number, effects = self.reads.recall(keys, at, LENGTH, self.now + within_s, self.now)
        self.take(effects)
        return number

    def answer(self, move: int, verdict: str = "") -> None:
        get = self.gets.pop(move)
        infos = [BlockInfo(key, NAMESPACE, LENGTH, LENGTH, key[:16]) for key in get.run.keys[get.first :]]
        good = self.flawed.get(get.run.keys[-1])
        if verdict:
            infos = []
        elif get.run.keys not in self.objects:
            verdict, infos = "absent", []
        elif good is not None:
            verdict, infos = "corrupt", infos[: max(0, good - get.first)]
        else:
            verdict = "ok"
        places, effects = self.reads.on_got(move, verdict, infos, self.now)
        self.take(effects)
        if any(places):
            self.take(self.reads.on_placed(move, self.now))

    def answer_all(self, random: Random | None = None) -> None:
        while self.gets:
            self.answer(random.choice(sorted(self.gets)) if random else next(iter(self.gets)))


def test_a_chain_comes_run_by_run_and_more_of_them_at_a_time_once_one_was_there() -> None:
    keys = chain_of(1, 200)
    bench = Bench(keys)
    number = bench.recall(keys)
    assert len(bench.gets) == 1
    for expected in (2, 4, 4):
        bench.answer(next(iter(bench.gets)))
        assert len(bench.gets) == min(expected, AHEAD)
    bench.answer_all()
    assert bench.over == {number: "ok"}
    assert bench.ledger.prefix(keys) == 200
    assert bench.places[keys[0]] == (0, None)
    assert bench.places[keys[77]] == (77, keys[76])
    assert bench.reads.counts.blocks == 200


def test_that_there_is_nothing_takes_as_many_questions_as_a_run_can_be_halved() -> None:
    keys = chain_of(1, 200)
    bench = Bench()
    number = bench.recall(keys)
    bench.answer_all()
    assert bench.over == {number: "absent"}
    assert bench.asked == 4
    assert bench.reads.counts.verdicts == {"absent": 4}


def test_where_a_run_is_missing_its_halves_are_asked_for_at_the_same_time_and_one_is_taken() -> None:
    keys = chain_of(1, 200)
    bench = Bench(keys[:24], keys[:20])  # after 16 blocks there are 8, and 4
    number = bench.recall(keys)
    bench.answer(1)
    assert len(bench.gets) == 2
    bench.answer(2)  # 16 more
    assert sorted(len(get.run.keys) for get in bench.gets.values()) == [2, 4, 8, 16]
    while len(bench.gets) > 1:
        bench.answer(max(bench.gets))
    bench.answer_all()
    assert bench.over == {number: "absent"}
    assert bench.ledger.prefix(keys) == 24
    assert bench.places[keys[20]] == (20, keys[19])


def test_a_store_that_seldom_has_anything_is_asked_for_all_that_may_be_at_once() -> None:
    keys = chain_of(1, 200)
    bench = Bench(keys[:6], keys)
    for _ in range(5):
        bench.costs.on_recalled(0, 0.05, 0.0)
    bench.recall(keys)
    assert sorted(len(get.run.keys) for get in bench.gets.values()) == [2, 4, 8, 16]
    bench.answer(1)
    assert {get.run.start for get in bench.gets.values()} == {0, 16, 32}, "those of before are on their way"
    bench.answer_all()
    assert bench.ledger.prefix(keys) == 200


def test_what_is_here_already_is_not_fetched_again() -> None:
    keys = chain_of(1, 40)
    bench = Bench(keys)
    bench.recall(keys, at=13)
    (get,) = bench.gets.values()
    assert (get.run.start, get.first) == (0, 13)
    bench.answer_all()
    assert set(bench.places) == set(keys[13:40])


def test_a_tail_that_no_run_can_have_is_not_asked_for() -> None:
    keys = chain_of(1, 33)
    bench = Bench(keys)
    assert bench.recall(keys, at=32) is None
    assert bench.recall(keys, at=33) is None
    assert bench.asked == 0


def test_two_who_wait_for_one_chain_ask_for_it_once() -> None:
    keys = chain_of(1, 64)
    bench = Bench(keys)
    numbers = [bench.recall(keys), bench.recall(keys)]
    bench.answer_all()
    assert bench.over == dict.fromkeys(numbers, "ok")
    assert bench.asked == 4


def test_who_has_gone_away_is_asked_for_no_further_and_told_nothing() -> None:
    keys = chain_of(1, 200)
    bench = Bench(keys)
    number = bench.recall(keys)
    assert number is not None
    bench.answer(next(iter(bench.gets)))
    bench.reads.cancel(number)
    bench.reads.cancel(number)
    bench.answer_all()
    assert bench.over == {}
    assert bench.asked == 3
    assert bench.ledger.prefix(keys) == 16
    assert bench.reads.counts.unwanted == 2
    assert bench.reads.waiting == 0


def test_time_is_up_at_the_deadline_and_what_was_on_its_way_is_let_go() -> None:
    keys = chain_of(1, 200)
    bench = Bench(keys)
    number = bench.recall(keys, within_s=1.0)
    bench.answer(next(iter(bench.gets)))
    assert bench.reads.next_deadline() == 1.0
    bench.now = 1.0
    bench.take(bench.reads.on_time(bench.now))
    assert bench.over == {number: "late"}
    assert bench.ledger.prefix(keys) == 16
    bench.answer_all()
    assert bench.ledger.prefix(keys) == 16
    assert bench.reads.next_deadline() == float("inf")


def test_a_block_that_is_wrong_ends_a_recall_behind_those_before_it() -> None:
    keys = chain_of(1, 64)
    bench = Bench(keys)
    bench.flawed[keys[31]] = 5
    number = bench.recall(keys)
    bench.answer_all()
    assert bench.over == {number: "corrupt"}
    assert bench.ledger.prefix(keys) == 21


def test_memory_without_room_ends_a_recall() -> None:
    keys = chain_of(1, 64)
    bench = Bench(keys, host_blocks=20)
    lease = bench.ledger.lease((), holder="guard", deadline=float("inf"))
    arrived = bench._arrived

    def pinned(reservation: Reservation, place: Place, now: float) -> None:
        arrived(reservation, place, now)
        bench.ledger.extend(lease.id, reservation.info.key)

    bench.reads._arrived = pinned  # type: ignore[misc]
    number = bench.recall(keys)
    bench.answer_all()
    assert bench.over == {number: "full"}
    assert bench.ledger.prefix(keys) == 20
    assert bench.reads.counts.unplaced_blocks > 0


def test_no_more_runs_wait_than_may_and_no_more_are_asked_for_at_a_time() -> None:
    bench = Bench(at_once=2)
    numbers = [bench.recall(chain_of(seed, 16)) for seed in range(WAITING_MAX + 12)]
    assert len(bench.gets) == 2
    assert bench.reads.waiting == WAITING_MAX + 2
    shed = [number for number, verdict in bench.over.items() if verdict == "shed"]
    assert shed == numbers[-10:]
    assert bench.reads.counts.shed == 10
    bench.answer_all()
    assert len(bench.over) == len(numbers)
    assert bench.reads.waiting == 0


@given(
    stored=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), max_size=4),
    wanted=st.lists(st.tuples(st.integers(1, 90), st.integers(0, 90), st.integers(0, 1)), min_size=1, max_size=4),
    faults=st.lists(st.sampled_from(["", "", "", "late", "failed", "resting", "absent"]), max_size=12),
    seldom=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_recall_ends_once_with_a_whole_prefix_and_with_all_of_it_where_nothing_fails(
    stored: list[tuple[int, int]], wanted: list[tuple[int, int, int]], faults: list[str], seldom: bool, seed: int
) -> None:
    """Chains part at some block; several are recalled at a time, from wherever they are known to."""
    random = Random(seed)
    trunk = chain_of(0, 90)

    def chain(length: int, parts_at: int) -> tuple[BlockKey, ...]:
        head = trunk[: min(parts_at, length)]
        return head + chain_of(1 + parts_at, length - len(head), parent=head[-1] if head else b"")

    bench = Bench(*(chain(length, parts_at) for length, parts_at in stored), at_once=3)
    if seldom:
        bench.costs.on_recalled(0, 0.05, 0.0)
    expected: dict[int, tuple[tuple[BlockKey, ...], int]] = {}
    for length, parts_at, later in wanted:
        keys = chain(length, parts_at)
        if later and bench.gets:
            bench.answer(next(iter(bench.gets)))
        at = bench.ledger.prefix(keys)
        number = bench.recall(keys, at=at)
        if number is not None:
            expected[number] = (keys, _reach(bench.objects, keys, at))
    failing = bool([fault for fault in faults if fault])
    for fault in faults:
        if bench.gets:
            bench.answer(random.choice(sorted(bench.gets)), fault)
    bench.answer_all(random)
    assert set(bench.over) == set(expected)
    assert bench.reads.waiting == 0
    assert not bench.reads._named
    for keys, reach in expected.values():
        if not failing:
            assert bench.ledger.prefix(keys) >= reach
    for key, (depth, parent) in bench.places.items():
        assert (depth == 0) == (parent is None), key


def _reach(objects: set[tuple[BlockKey, ...]], keys: tuple[BlockKey, ...], at: int) -> int:
    """Return how far a reader comes that asks for whole runs and then for halves, by the words of the decision."""
    at_run = at - at % CUT.largest
    size = CUT.largest
    while size >= CUT.smallest:
        if at_run + size <= len(keys) and (at_run + size <= at or keys[at_run : at_run + size] in objects):
            at_run += size
            size = CUT.largest if at_run % CUT.largest == 0 else size // 2
        else:
            size //= 2
    return max(at, at_run)
