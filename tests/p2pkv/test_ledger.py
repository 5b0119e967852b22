"""The books of a tier: examples that tell the rules, and a machine that does anything at all and checks them."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.errors import PinLimit, TierFull
from p2pkv.eviction import ORDERS, Policy
from p2pkv.ledger import Lease, Ledger, Reservation
from p2pkv.slots import PAGE_BYTES, Slot

CHUNK = 4 * PAGE_BYTES
INF = float("inf")


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big"))


def info(number: int, pages: int = 1) -> BlockInfo:
    return BlockInfo(key(number), bytes(32), pages * PAGE_BYTES, PAGE_BYTES, bytes(16))


def held(ledger: Ledger, number: int, pages: int = 1) -> Slot:
    reservation = ledger.reserve(info(number, pages))
    assert reservation is not None
    ledger.commit(reservation)
    return reservation.slot


def numbers(ledger: Ledger) -> list[int]:
    return sorted(int.from_bytes(one, "big") for one in ledger.keys())  # noqa: SIM118 - not a mapping


@pytest.fixture
def ledger() -> Ledger:
    """Room for eight small blocks, in two chunks."""
    return Ledger(capacity_bytes=2 * CHUNK, chunk_bytes=CHUNK, leases_max=3)


# -- a block's life --------------------------------------------------------------------------------------------------


def test_only_committed_blocks_are_found(ledger: Ledger) -> None:
    reservation = ledger.reserve(info(1))
    assert reservation is not None
    assert ledger.get(key(1)) is None
    assert len(ledger) == 0
    ledger.commit(reservation)
    found = ledger.get(key(1))
    assert found is not None
    assert (found.info, found.slot) == (info(1), reservation.slot)
    assert ledger.keys() == (key(1),)


def test_a_block_on_its_way_or_here_needs_no_second_place(ledger: Ledger) -> None:
    reservation = ledger.reserve(info(1))
    assert reservation is not None
    assert ledger.reserve(info(1)) is None
    ledger.commit(reservation)
    assert ledger.reserve(info(1)) is None
    assert ledger.statistics().used_bytes == PAGE_BYTES


def test_blocks_of_a_tier_that_outlived_its_process_are_held_and_the_first_of_them_goes_first() -> None:
    before = Ledger(capacity_bytes=2 * CHUNK, chunk_bytes=CHUNK)
    for number in range(5):
        held(before, number)
    blocks = [(found.info, found.slot) for one in (3, 1, 4) if (found := before.get(key(one))) is not None]
    ledger = Ledger(capacity_bytes=2 * CHUNK, chunk_bytes=CHUNK)
    ledger.restore(blocks)
    assert [ledger.get(one.key) is not None for one, _ in blocks] == [True, True, True]
    assert ledger.statistics().used_bytes == 3 * PAGE_BYTES
    slots = {held(ledger, number) for number in range(10, 15)}
    assert numbers(ledger) == [1, 3, 4, 10, 11, 12, 13, 14], "all of the other places are free"
    assert slots.isdisjoint(slot for _, slot in blocks)
    held(ledger, 20)
    assert numbers(ledger) == [1, 4, 10, 11, 12, 13, 14, 20]


def test_a_header_stands_in_every_slot_of_a_tier_that_has_one() -> None:
    ledger = Ledger(capacity_bytes=2 * CHUNK, chunk_bytes=CHUNK, header_bytes=PAGE_BYTES, tier="disk")
    assert held(ledger, 1, 3).size == CHUNK
    with pytest.raises(TierFull, match=f"limit {3 * PAGE_BYTES}: disk tier") as caught:
        ledger.reserve(info(2, 4))
    assert caught.value.hint == "raise disk.capacity_bytes"


def test_an_aborted_place_is_free_again(ledger: Ledger) -> None:
    reservation = ledger.reserve(info(1))
    assert reservation is not None
    ledger.abort(reservation)
    assert ledger.statistics().used_bytes == 0
    assert ledger.get(key(1)) is None
    assert ledger.reserve(info(1)) is not None


@pytest.mark.parametrize("verb", ["commit", "abort"])
def test_a_reservation_ends_only_once(ledger: Ledger, verb: str) -> None:
    reservation = ledger.reserve(info(1))
    assert reservation is not None
    ledger.abort(reservation)
    with pytest.raises((AssertionError, KeyError)):
        getattr(ledger, verb)(reservation)


def test_a_prefix_ends_at_its_first_gap(ledger: Ledger) -> None:
    for number in (1, 2, 4):
        held(ledger, number)
    chain = [key(number) for number in (1, 2, 3, 4)]
    assert ledger.prefix(chain) == 2
    assert ledger.prefix(chain[:2]) == 2
    assert ledger.prefix(chain[2:]) == 0
    assert ledger.prefix([]) == 0


def test_a_block_can_be_dropped_unless_it_is_pinned_or_absent(ledger: Ledger) -> None:
    held(ledger, 1)
    lease = ledger.lease([key(1)], holder="a", deadline=INF)
    assert not ledger.drop(key(1))
    ledger.release(lease.id, holder="a")
    assert ledger.drop(key(1))
    assert not ledger.drop(key(1))
    assert ledger.statistics().evictions == 0, "nobody had to go for want of room"


# -- eviction --------------------------------------------------------------------------------------------------------


def test_a_full_tier_drops_the_least_recently_used(ledger: Ledger) -> None:
    for number in range(8):
        held(ledger, number)
    ledger.release(ledger.lease([key(0)], holder="a", deadline=INF).id, holder="a")
    reservation = ledger.reserve(info(8))
    assert reservation is not None
    assert reservation.evicted == (key(1),)
    assert numbers(ledger) == [0, 2, 3, 4, 5, 6, 7]
    assert ledger.statistics().evictions == 1


def test_of_a_leased_chain_the_tail_goes_first(ledger: Ledger) -> None:
    for number in range(8):
        held(ledger, number)
    lease = ledger.lease([key(number) for number in range(8)], holder="a", deadline=INF)
    ledger.release(lease.id, holder="a")
    reservation = ledger.reserve(info(8))
    assert reservation is not None
    assert reservation.evicted == (key(7),)


def test_pinned_blocks_stay_and_the_error_says_so(ledger: Ledger) -> None:
    for number in range(8):
        held(ledger, number)
    ledger.lease([key(number) for number in range(8)], holder="a", deadline=INF)
    with pytest.raises(TierFull, match=f"no room for a block of {PAGE_BYTES} bytes, everything is pinned"):
        ledger.reserve(info(8))
    assert numbers(ledger) == list(range(8))


def test_blocks_on_their_way_stay(ledger: Ledger) -> None:
    reservations = [ledger.reserve(info(number)) for number in range(8)]
    with pytest.raises(TierFull):
        ledger.reserve(info(8))
    assert reservations[3] is not None
    ledger.abort(reservations[3])
    assert ledger.reserve(info(8)) is not None


def test_a_block_that_can_never_fit_evicts_nobody(ledger: Ledger) -> None:
    held(ledger, 1)
    with pytest.raises(TierFull, match="limit"):
        ledger.reserve(info(2, pages=5))
    assert numbers(ledger) == [1]


def test_a_size_class_that_comes_later_is_not_starved(ledger: Ledger) -> None:
    """A class that was large once would else keep its chunks for ever."""
    for number in range(8):
        held(ledger, number)
    reservation = ledger.reserve(info(9, pages=4))
    assert reservation is not None
    assert sorted(reservation.evicted) == [key(number) for number in range(4)]
    assert numbers(ledger) == [4, 5, 6, 7]


def test_a_chunk_gives_way_only_if_even_its_newest_block_is_older_than_ours(ledger: Ledger) -> None:
    for number in range(4):
        held(ledger, number)
    held(ledger, 10, pages=4)
    ledger.release(ledger.lease([key(3)], holder="a", deadline=INF).id, holder="a")
    reservation = ledger.reserve(info(11, pages=4))
    assert reservation is not None
    assert reservation.evicted == (key(10),), "block 3 was used after block 10"
    ledger.commit(reservation)
    reservation = ledger.reserve(info(12, pages=4))
    assert reservation is not None
    assert sorted(reservation.evicted) == [key(number) for number in range(4)]


@pytest.mark.parametrize("why", ["pinned", "on its way"])
def test_a_chunk_in_which_one_block_cannot_go_is_left_whole(ledger: Ledger, why: str) -> None:
    for number in range(7):
        held(ledger, number)
    if why == "pinned":
        held(ledger, 7)
        ledger.lease([key(1)], holder="a", deadline=INF)
        expected = [4, 5, 6, 7]
    else:
        ledger.reserve(info(7))
        expected = [0, 1, 2, 3]
    reservation = ledger.reserve(info(9, pages=4))
    assert reservation is not None
    assert sorted(reservation.evicted) == [key(number) for number in expected]


@pytest.mark.parametrize("end", ["abort", "commit"])
def test_a_chunk_in_which_a_reservation_ended_can_give_way(ledger: Ledger, end: str) -> None:
    for number in range(7):
        held(ledger, number)
    reservation = ledger.reserve(info(7))
    assert reservation is not None
    getattr(ledger, end)(reservation)
    ledger.touch([key(number) for number in range(4)])
    large = ledger.reserve(info(9, pages=4))
    assert large is not None
    assert set(large.evicted) == {key(number) for number in range(4, 8 if end == "commit" else 7)}


def test_a_chunk_whose_leases_ended_can_give_way(ledger: Ledger) -> None:
    for number in range(8):
        held(ledger, number)
    leases = [ledger.lease([key(0), key(0)], holder="a", deadline=INF) for _ in range(2)]
    ledger.extend(leases[0].id, key(1))
    for lease in leases:
        ledger.release(lease.id, holder="a")
    ledger.touch([key(number) for number in range(4, 8)])
    large = ledger.reserve(info(9, pages=4))
    assert large is not None
    assert set(large.evicted) == {key(number) for number in range(4)}


class CountingPolicy(Policy):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__(ORDERS["lru"], capacity=lambda _: 1024)
        self.asked = 0

    def last_use(self, key: BlockKey) -> int:
        self.asked += 1
        return super().last_use(key)


def test_finding_room_does_not_look_at_every_block_of_the_other_classes() -> None:
    """The loop that gossips also makes room: with 57,000 small blocks in the other chunks this took 60 ms a block."""
    policy, chunk = CountingPolicy(), 256 * PAGE_BYTES
    ledger = Ledger(capacity_bytes=4 * chunk, chunk_bytes=chunk, policy=policy)
    held(ledger, 0, pages=256)
    for number in range(1, 3 * 256 + 1):
        held(ledger, number)
    policy.asked = 0
    reservation = ledger.reserve(info(1000, pages=256))
    assert reservation is not None
    assert reservation.evicted == (key(0),)
    assert policy.asked <= 4 * 4, "a few times per chunk, not once per block"


def test_a_touched_chain_loses_its_tail_first(ledger: Ledger) -> None:
    for number in range(8):
        held(ledger, number)
    ledger.touch([key(number) for number in (5, 6, 7, 99)])
    gone = []
    for number in range(8, 16):
        reservation = ledger.reserve(info(number))
        assert reservation is not None
        gone += reservation.evicted
    assert gone == [key(number) for number in (0, 1, 2, 3, 4, 7, 6, 5)]


def chained(ledger: Ledger, numbers: list[int]) -> None:
    """Hold blocks of one chain, its head first, as an engine publishes it; used in this order, its head is the oldest."""
    before = None
    for number in numbers:
        reservation = ledger.reserve(info(number))
        assert reservation is not None
        ledger.commit(reservation, parent=before)
        before = key(number)


def test_no_tail_is_left_without_its_head(ledger: Ledger) -> None:
    chained(ledger, [1, 2, 3, 4])
    gone = []
    for number in range(8, 16):
        reservation = ledger.reserve(info(number))
        assert reservation is not None
        gone += reservation.evicted
    assert gone == [key(number) for number in (4, 3, 2, 1)]


def test_a_block_that_only_passes_is_no_matter_of_the_policy(ledger: Ledger) -> None:
    reservation = ledger.reserve(info(1))
    assert reservation is not None
    ledger.commit(reservation, passing=(None, None))
    lease = ledger.lease([key(1)], holder="a", deadline=INF)
    for number in range(2, 10):
        if number < 9:
            held(ledger, number)
    ledger.release(lease.id, holder="a")
    assert numbers(ledger) == list(range(2, 9))


def test_what_is_not_used_for_its_time_to_live_goes_unless_it_is_pinned() -> None:
    policy = Policy(ORDERS["lru"], capacity=lambda _: 8, ttl_s=10)
    ledger = Ledger(capacity_bytes=2 * CHUNK, chunk_bytes=CHUNK, policy=policy)
    ledger.on_time(0.0)
    for number in (1, 2, 3):
        held(ledger, number)
    ledger.on_time(6.0)
    ledger.touch([key(1)])
    lease = ledger.lease([key(2)], holder="a", deadline=20.0)
    assert ledger.next_deadline() == 10.0
    assert ledger.drop_idle(9.9) == ()
    assert ledger.drop_idle(10.0) == (key(3),)
    assert set(ledger.drop_idle(17.0)) == {key(1)}
    assert numbers(ledger) == [2]
    ledger.release(lease.id, holder="a")
    assert ledger.drop_idle(26.9) == ()
    assert ledger.drop_idle(27.0) == (key(2),)
    assert ledger.next_deadline() == INF


# -- leases ----------------------------------------------------------------------------------------------------------


def test_a_lease_pins_what_is_here_and_leaves_out_what_is_not(ledger: Ledger) -> None:
    held(ledger, 1)
    lease = ledger.lease([key(1), key(2)], holder="a", deadline=5.0)
    assert [one.info.key for one in lease.blocks] == [key(1)]
    assert ledger.statistics().pinned_blocks == 1


def test_a_lease_ends_at_its_deadline(ledger: Ledger) -> None:
    held(ledger, 1)
    ledger.lease([key(1)], holder="a", deadline=5.0)
    ledger.lease([key(1)], holder="b", deadline=7.0)
    assert ledger.next_deadline() == 5.0
    assert ledger.expire(4.999) == 0
    assert ledger.expire(5.0) == 1
    assert not ledger.drop(key(1))
    assert ledger.next_deadline() == 7.0
    assert ledger.expire(100.0) == 1
    assert ledger.next_deadline() == INF
    assert ledger.drop(key(1))
    assert ledger.statistics().leases_expired == 2


def test_one_holder_cannot_use_or_end_the_lease_of_another(ledger: Ledger) -> None:
    held(ledger, 1)
    lease = ledger.lease([key(1)], holder="a", deadline=INF)
    assert ledger.find_lease(lease.id, holder="b") is None
    assert not ledger.release(lease.id, holder="b")
    assert ledger.find_lease(lease.id, holder="a") == lease
    assert ledger.release(lease.id, holder="a")
    assert not ledger.release(lease.id, holder="a")


def test_a_holder_that_goes_away_takes_its_leases_and_no_others(ledger: Ledger) -> None:
    held(ledger, 1)
    for _ in range(3):
        ledger.lease([key(1)], holder="a", deadline=INF)
    other = ledger.lease([key(1)], holder="b", deadline=INF)
    assert ledger.release_holder("a") == 3
    assert ledger.release_holder("a") == 0
    assert not ledger.drop(key(1))
    ledger.release(other.id, holder="b")
    assert ledger.drop(key(1))


def test_one_holder_has_at_most_so_many_leases(ledger: Ledger) -> None:
    held(ledger, 1)
    leases = [ledger.lease([key(1)], holder="a", deadline=INF) for _ in range(3)]
    with pytest.raises(PinLimit, match="a holds 3 leases, limit 3: host tier"):
        ledger.lease([key(1)], holder="a", deadline=INF)
    assert ledger.statistics().leases == 3
    ledger.lease([key(1)], holder="b", deadline=INF)
    ledger.release(leases[0].id, holder="a")
    ledger.lease([key(1)], holder="a", deadline=INF)


def test_a_lease_that_is_shortened_pins_only_its_head(ledger: Ledger) -> None:
    held(ledger, 1)
    held(ledger, 2)
    lease = ledger.lease([key(1), key(2)], holder="a", deadline=INF)
    ledger.shorten(lease.id, 1)
    assert not ledger.drop(key(1))
    assert ledger.drop(key(2))
    ledger.release(lease.id, holder="a")
    ledger.shorten(lease.id, 1)
    assert ledger.drop(key(1))


def test_a_lease_grows_by_blocks_that_arrive(ledger: Ledger) -> None:
    held(ledger, 1)
    lease = ledger.lease([key(1)], holder="a", deadline=INF)
    held(ledger, 2)
    ledger.extend(lease.id, key(2))
    assert not ledger.drop(key(2))
    ledger.release(lease.id, holder="a")
    assert ledger.drop(key(2))


def test_extending_what_is_gone_does_nothing(ledger: Ledger) -> None:
    held(ledger, 1)
    lease = ledger.lease([], holder="a", deadline=INF)
    ledger.extend(lease.id, key(9))
    ledger.extend(lease.id + 1, key(1))
    assert ledger.statistics().pinned_blocks == 0


# -- anything at all -------------------------------------------------------------------------------------------------


@dataclass
class ModelLease:
    holder: str
    deadline: float
    named: list[BlockKey]
    """What it was made for."""
    keys: list[BlockKey] = field(default_factory=list)
    """What it pins, with what it was extended by."""


@settings(stateful_step_count=60)
class Machine(RuleBasedStateMachine):
    """A ledger of three chunks beside the simplest books that could be kept."""

    CAPACITY = 3 * CHUNK
    LEASES_MAX = 4

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(capacity_bytes=self.CAPACITY, chunk_bytes=CHUNK, leases_max=self.LEASES_MAX)
        self.places: dict[BlockKey, Slot] = {}
        self.open: dict[BlockKey, Reservation] = {}
        self.leases: dict[int, ModelLease] = {}
        self.now = 0.0
        self.evictions = 0

    def pinned(self) -> set[BlockKey]:
        return {one for lease in self.leases.values() for one in lease.keys}

    @rule(number=st.integers(0, 25), length=st.integers(1, CHUNK + 1))
    def reserve(self, number: int, length: int) -> None:
        block = BlockInfo(key(number), bytes(32), length, length, bytes(16))
        before = set(self.places)
        try:
            reservation = self.ledger.reserve(block)
        except TierFull:
            assert set(self.ledger.keys()) == before, "nothing was evicted"
            assert length > CHUNK or not self.could_make_room(-(-length // PAGE_BYTES) * PAGE_BYTES)
            return
        if block.key in before or block.key in self.open:
            assert reservation is None
            return
        assert reservation is not None
        assert length <= CHUNK
        assert not set(reservation.evicted) & self.pinned(), "a pinned block was evicted"
        assert set(reservation.evicted) <= before
        for gone in reservation.evicted:
            del self.places[gone]
        self.evictions += len(reservation.evicted)
        self.open[block.key] = reservation

    def could_make_room(self, size: int) -> bool:
        """Say whether an empty chunk, a free or droppable slot of the class, or a droppable chunk exists."""
        standing = {**self.places, **{one: r.slot for one, r in self.open.items()}}
        fixed = self.pinned() | set(self.open)
        for start in range(0, self.CAPACITY, CHUNK):
            inside = {one: slot for one, slot in standing.items() if start <= slot.offset < start + CHUNK}
            if not set(inside) & fixed:
                return True
            if all(slot.size == size for slot in inside.values()) and (
                len(inside) < CHUNK // size or set(inside) - fixed
            ):
                return True
        return False

    @precondition(lambda self: self.open)
    @rule(choice=st.integers(0, 99), good=st.booleans())
    def finish(self, choice: int, *, good: bool) -> None:
        name = sorted(self.open)[choice % len(self.open)]
        reservation = self.open.pop(name)
        if good:
            self.ledger.commit(reservation)
            self.places[name] = reservation.slot
        else:
            self.ledger.abort(reservation)

    @rule(chosen=st.lists(st.integers(0, 25), max_size=6), holder=st.sampled_from("abc"), lasts=st.floats(0, 10))
    def lease(self, chosen: list[int], holder: str, lasts: float) -> None:
        held_by_it = sum(lease.holder == holder for lease in self.leases.values())
        deadline = self.now + lasts
        try:
            lease = self.ledger.lease([key(number) for number in chosen], holder=holder, deadline=deadline)
        except PinLimit:
            assert held_by_it == self.LEASES_MAX
            return
        assert held_by_it < self.LEASES_MAX
        wanted = [key(number) for number in chosen if key(number) in self.places]
        assert [one.info.key for one in lease.blocks] == wanted
        self.leases[lease.id] = ModelLease(holder, deadline, wanted, list(wanted))

    @precondition(lambda self: self.leases)
    @rule(choice=st.integers(0, 99), number=st.integers(0, 25))
    def extend(self, choice: int, number: int) -> None:
        lease_id = sorted(self.leases)[choice % len(self.leases)]
        self.ledger.extend(lease_id, key(number))
        if key(number) in self.places:
            self.leases[lease_id].keys.append(key(number))

    @precondition(lambda self: self.leases)
    @rule(choice=st.integers(0, 99), holder=st.sampled_from("abc"))
    def release(self, choice: int, holder: str) -> None:
        lease_id = sorted(self.leases)[choice % len(self.leases)]
        mine = self.leases[lease_id].holder == holder
        assert self.ledger.release(lease_id, holder=holder) == mine
        if mine:
            del self.leases[lease_id]

    @rule(holder=st.sampled_from("abc"))
    def release_holder(self, holder: str) -> None:
        mine = [lease_id for lease_id, lease in self.leases.items() if lease.holder == holder]
        assert self.ledger.release_holder(holder) == len(mine)
        for lease_id in mine:
            del self.leases[lease_id]

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        late = [lease_id for lease_id, lease in self.leases.items() if lease.deadline <= self.now]
        assert self.ledger.expire(self.now) == len(late)
        for lease_id in late:
            del self.leases[lease_id]
        assert self.ledger.next_deadline() > self.now

    @rule(number=st.integers(0, 25))
    def drop(self, number: int) -> None:
        droppable = key(number) in self.places and key(number) not in self.pinned()
        assert self.ledger.drop(key(number)) == droppable
        if droppable:
            del self.places[key(number)]

    @invariant()
    def the_books_agree(self) -> None:
        assert set(self.ledger.keys()) == set(self.places)
        assert len(self.ledger) == len(self.places)
        for name, slot in self.places.items():
            found = self.ledger.get(name)
            assert found is not None
            assert found.slot == slot
        standing = [*self.places.values(), *(r.slot for r in self.open.values())]
        figures = self.ledger.statistics()
        assert figures.used_bytes == sum(slot.size for slot in standing) <= figures.capacity_bytes == self.CAPACITY
        assert figures.blocks == len(self.places)
        assert figures.pinned_blocks == len(self.pinned())
        assert figures.leases == len(self.leases)
        assert figures.evictions == self.evictions
        assert set(self.ledger._key_at) == {slot.offset for slot in self.places.values()}
        assert set(self.ledger._leases_of) == {lease.holder for lease in self.leases.values()}

    @invariant()
    def no_two_slots_overlap(self) -> None:
        standing = sorted(
            (slot.offset, slot.offset + slot.size)
            for slot in (*self.places.values(), *(r.slot for r in self.open.values()))
        )
        for (_, end), (start, _) in pairwise(standing):
            assert end <= start
        assert not standing or standing[-1][1] <= self.CAPACITY

    @invariant()
    def pinned_blocks_are_here(self) -> None:
        assert self.pinned() <= set(self.ledger.keys())
        for lease_id, lease in self.leases.items():
            found = self.ledger.find_lease(lease_id, holder=lease.holder)
            assert isinstance(found, Lease)
            assert [one.info.key for one in found.blocks] == lease.named

    @invariant()
    def the_next_deadline_is_that_of_the_first_lease_to_end(self) -> None:
        assert self.ledger.next_deadline() == min((lease.deadline for lease in self.leases.values()), default=INF)


TestAnythingAtAll = Machine.TestCase
