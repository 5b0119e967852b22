import itertools
from functools import reduce

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.mesh.members import MemberState, MemberTable, is_usable, merge, rank, record_bytes
from p2pkv.transport.wire import MemberRecord, PushPull, encode

few = st.integers(0, 2)
text = st.sampled_from(["", "a", "b"])
records = st.builds(
    MemberRecord,
    id=st.just("m"),
    boot=few,
    incarnation=few,
    state=st.integers(0, 3),
    name=text,
    address=text,
    host_id=text,
    zone=text,
    offered_bytes=few,
    rack=text,
    also_at=st.sampled_from([(), ("a",), ("b",)]),
    tier_bytes=st.sampled_from([(), (1,), (0, 1)]),
    protocol_min=few,
    protocol_max=few,
    weights=st.sampled_from([(), ("w=1",), ("w=2",)]),
)


def record(member: str = "m", *, boot: int = 1, incarnation: int = 0, state: int = 0) -> MemberRecord:
    return MemberRecord(id=member, boot=boot, incarnation=incarnation, state=state, name=member, address=f"{member}:1")


@given(records, records)
def test_merging_is_commutative(one: MemberRecord, other: MemberRecord) -> None:
    assert merge(one, other) == merge(other, one)


@given(records, records, records)
def test_merging_is_associative(one: MemberRecord, other: MemberRecord, third: MemberRecord) -> None:
    assert merge(merge(one, other), third) == merge(one, merge(other, third))


@given(records)
def test_merging_is_idempotent(one: MemberRecord) -> None:
    assert merge(one, one) == one


@given(records, records)
def test_records_of_equal_rank_are_equal(one: MemberRecord, other: MemberRecord) -> None:
    assert (rank(one) == rank(other)) == (one == other)


@given(st.lists(records, min_size=1, max_size=6), st.randoms())
def test_a_table_ends_up_the_same_in_whatever_order_it_hears(heard: list[MemberRecord], random: object) -> None:
    tables = [MemberTable(reap_s=10.0) for _ in range(2)]
    shuffled = sorted(heard * 2, key=lambda _: random.random())  # type: ignore[attr-defined]
    for table, order in zip(tables, (heard, shuffled), strict=True):
        for item in order:
            table.take(item, 0.0)
    assert tables[0].records() == tables[1].records() == (reduce(merge, heard),)


def test_boot_outranks_incarnation_outranks_state() -> None:
    assert merge(record(boot=2), record(boot=1, incarnation=9, state=MemberState.LEFT)).boot == 2
    assert merge(record(incarnation=1), record(state=MemberState.DEAD)).incarnation == 1
    for low, high in itertools.pairwise(MemberState):
        assert merge(record(state=low), record(state=high)).state == high


def test_a_suspect_is_usable_and_the_gone_are_not() -> None:
    assert [is_usable(record(state=state)) for state in MemberState] == [True, True, False, False]


def test_a_record_takes_as_many_bytes_as_it_adds_to_a_message() -> None:
    one, two = PushPull(records=(record(),), reply=False), PushPull(records=(record(), record("x" * 60)), reply=False)
    assert len(encode(two)) - len(encode(one)) == record_bytes(record("x" * 60))


def test_a_change_says_what_was_before() -> None:
    table = MemberTable(reap_s=10.0)
    first = table.take(record(), 0.0)
    assert first is not None
    assert first.before is None
    second = table.take(record(state=MemberState.SUSPECT), 0.0)
    assert second is not None
    assert second.before == record()
    assert table.take(record(), 0.0) is None


def test_the_usable_are_kept_apart_from_the_gone() -> None:
    table = MemberTable(reap_s=10.0)
    for member, state in zip("abcd", MemberState, strict=True):
        table.take(record(member, state=state), 0.0)
    assert [item.id for item in table.usable()] == ["a", "b"]
    assert [item.id for item in table.dead()] == ["c"]
    assert table.mesh_size() == 3


def test_the_dead_whose_address_a_living_member_has_are_not_worth_a_try() -> None:
    """Nobody else can be there. With one restart after the other they would crowd out those that were only cut off."""
    table = MemberTable(reap_s=10.0)
    table.take(record("cut off", state=2), 0.0)
    table.take(record("earlier life", state=2), 0.0)
    assert [item.id for item in table.dead()] == ["cut off", "earlier life"]
    table.take(msgspec.structs.replace(record("restarted"), address="earlier life:1"), 1.0)
    assert [item.id for item in table.dead()] == ["cut off"]


def test_the_gone_are_reaped_and_do_not_come_back_by_hearsay() -> None:
    table = MemberTable(reap_s=10.0)
    table.take(record(state=MemberState.DEAD), 5.0)
    table.reap(14.9)
    assert table.get("m") is not None
    assert table.next_deadline() == 15.0
    table.reap(15.0)
    assert table.get("m") is None
    assert table.take(record(state=MemberState.DEAD), 16.0) is None
    assert table.take(record(), 16.0) is None
    assert table.take(record(incarnation=1), 16.0) is not None


def test_what_was_reaped_is_forgotten_after_as_long_again() -> None:
    table = MemberTable(reap_s=10.0)
    table.take(record(state=MemberState.DEAD), 5.0)
    table.reap(15.0)
    table.reap(25.0)
    assert table.next_deadline() == float("inf")
    assert table.take(record(), 26.0) is not None


def test_a_member_that_revives_is_not_reaped() -> None:
    table = MemberTable(reap_s=10.0)
    table.take(record(state=MemberState.DEAD), 0.0)
    table.take(record(incarnation=1), 1.0)
    table.reap(100.0)
    assert table.get("m") == record(incarnation=1)


def test_a_full_table_refuses_strangers_but_makes_room_at_the_cost_of_the_longest_gone() -> None:
    table = MemberTable(reap_s=10.0, members_max=2)
    table.take(record("a"), 0.0)
    table.take(record("b"), 0.0)
    assert table.take(record("c"), 0.0) is None
    assert table.refused == 1
    table.take(record("a", state=MemberState.LEFT), 1.0)
    assert table.take(record("c"), 2.0) is not None
    assert [item.id for item in table.records()] == ["b", "c"]
