import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.mesh.members import RECORD_BYTES_MAX, MemberState, record_bytes
from p2pkv.mesh.push_pull import doubt_death, member_list, push_pull_scale
from p2pkv.transport.wire import MESSAGE_BYTES_MAX, RECORDS_PER_PUSH_MAX, MemberRecord, encode


def record(member: str, *, name: str = "", state: int = 0) -> MemberRecord:
    return MemberRecord(id=member, boot=2**53, incarnation=0, state=state, name=name, address="a:1")


@pytest.mark.parametrize(("members", "scale"), [(1, 1), (32, 1), (33, 2), (64, 2), (65, 3), (128, 3)])
def test_the_scale_matches_memberlist(members: int, scale: int) -> None:
    assert push_pull_scale(members) == scale


@given(st.integers(0, 300), st.integers(0, 115))
def test_a_list_travels_whole_in_messages_within_the_limits(count: int, name_length: int) -> None:
    own = record("me", name="é" * name_length)
    others = [record(f"{i}", name="é" * name_length) for i in range(count)]
    messages = member_list(own, others, reply=True)
    assert all(message.records[0] == own for message in messages)
    assert list(itertools.chain.from_iterable(message.records[1:] for message in messages)) == others
    assert all(len(message.records) <= RECORDS_PER_PUSH_MAX for message in messages)
    assert all(len(encode(message)) <= MESSAGE_BYTES_MAX for message in messages)
    assert [message.reply for message in messages] == [False] * (len(messages) - 1) + [True]


def test_the_largest_records_make_more_messages_not_larger_ones() -> None:
    name = "é" * 128
    big = MemberRecord(id="x" * 64, boot=2**53, incarnation=2**53, state=3, name=name, address="a" * 100, zone="z" * 45)
    assert RECORD_BYTES_MAX - 30 < record_bytes(big) <= RECORD_BYTES_MAX
    messages = member_list(big, [big] * 200, reply=False)
    assert all(len(encode(message)) <= MESSAGE_BYTES_MAX for message in messages)


def test_a_listed_death_is_only_a_suspicion_of_a_member_we_count_on() -> None:
    dead = record("b", state=MemberState.DEAD)
    suspect = record("b", state=MemberState.SUSPECT)
    assert doubt_death(dead, record("b")) == suspect
    assert doubt_death(dead, suspect) == suspect
    assert doubt_death(dead, dead) == dead
    assert doubt_death(dead, None) == dead
    left = record("b", state=MemberState.LEFT)
    assert doubt_death(left, record("b")) == left
