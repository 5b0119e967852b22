from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.mesh.gossip import GossipQueue, retransmit_limit
from p2pkv.mesh.members import record_bytes
from p2pkv.transport.wire import MemberRecord


def record(member: str, *, incarnation: int = 0, name: str = "") -> MemberRecord:
    return MemberRecord(id=member, boot=1, incarnation=incarnation, state=0, name=name, address="a:1")


def take(queue: GossipQueue, *, members: int = 9, bytes_max: int = 1000, count_max: int = 64) -> list[str]:
    return [item.id for item in queue.take(members=members, bytes_max=bytes_max, count_max=count_max)]


@pytest.mark.parametrize(("members", "limit"), [(0, 0), (1, 3), (99, 6), (100, 9)])
def test_the_limit_matches_memberlist(members: int, limit: int) -> None:
    assert retransmit_limit(3, members) == limit


def test_an_update_is_let_go_after_its_last_packet() -> None:
    queue = GossipQueue(mult=2)
    queue.put(record("a"))
    assert [take(queue, members=99) for _ in range(5)] == [["a"]] * 4 + [[]]
    assert len(queue) == 0


def test_fewest_sent_goes_first_and_newest_among_equals() -> None:
    queue = GossipQueue(mult=4)
    queue.put(record("old"))
    assert take(queue) == ["old"]
    queue.put(record("a"))
    queue.put(record("b"))
    assert take(queue, count_max=1) == ["b"]
    assert take(queue, count_max=1) == ["a"]
    assert take(queue, count_max=3) == ["a", "b", "old"]


def test_a_newer_update_replaces_the_older_and_starts_anew() -> None:
    queue = GossipQueue(mult=1)
    queue.put(record("a"))
    queue.put(record("a", incarnation=1))
    assert queue.take(members=9, bytes_max=1000, count_max=64) == (record("a", incarnation=1),)


def test_an_older_update_does_not_replace_a_newer() -> None:
    queue = GossipQueue(mult=1)
    queue.put(record("a", incarnation=1))
    queue.put(record("a"))
    assert queue.take(members=9, bytes_max=1000, count_max=64) == (record("a", incarnation=1),)


def test_what_is_in_the_packet_already_is_skipped_and_not_counted() -> None:
    queue = GossipQueue(mult=1)
    queue.put(record("a"))
    assert queue.take(members=9, bytes_max=1000, count_max=64, skip={"a"}) == ()
    assert take(queue) == ["a"]


def test_a_full_queue_lets_go_of_what_was_sent_most() -> None:
    queue = GossipQueue(mult=4, updates_max=2)
    queue.put(record("sent"))
    take(queue)
    queue.put(record("b"))
    queue.put(record("c"))
    assert queue.dropped == 1
    assert sorted(take(queue)) == ["b", "c"]


operations = st.lists(
    st.one_of(
        st.builds(
            record,
            st.sampled_from("abcdef"),
            incarnation=st.integers(0, 5),
            name=st.text(alphabet="xé", max_size=100),
        ),
        st.integers(0, 400),
    ),
    max_size=60,
)


@given(operations)
def test_no_packet_is_overfilled_and_no_update_travels_beside_or_after_a_newer_one(
    steps: list[MemberRecord | int],
) -> None:
    queue = GossipQueue(mult=2)
    newest: dict[str, int] = {}
    sent: Counter[MemberRecord] = Counter()
    for step in steps:
        if isinstance(step, MemberRecord):
            if step.incarnation > newest.get(step.id, -1):  # as the member table sees to
                queue.put(step)
                newest[step.id] = step.incarnation
            continue
        updates = queue.take(members=9, bytes_max=step, count_max=3)
        assert sum(map(record_bytes, updates)) <= step
        assert len(updates) <= 3
        assert len({update.id for update in updates}) == len(updates)
        assert all(update.incarnation == newest[update.id] for update in updates)
        sent.update(updates)
    assert max(sent.values(), default=0) <= 2
    assert len(queue) <= len(newest)


@given(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1), st.integers(60, 300))
def test_everything_queued_is_sent_exactly_as_often_as_the_limit_says(members: list[str], bytes_max: int) -> None:
    queue = GossipQueue(mult=3)
    for member in members:
        queue.put(record(member))
    sent: Counter[str] = Counter()
    while queue:
        updates = take(queue, members=9, bytes_max=bytes_max)
        assert updates, "an update that fits a packet is never stuck"
        before = [sent[member] for member in updates]
        assert before == sorted(before), "fewest-sent first"
        sent.update(updates)
    assert sent == dict.fromkeys(members, 3)
