"""Two tables compared by digest: nothing is told where they are equal, and whatever differs is found and mended."""

from typing import TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.effects import SendStream
from p2pkv.mesh.comparison import Comparison
from p2pkv.mesh.members import MemberState, MemberTable, is_usable
from p2pkv.mesh.own import OwnRecord
from p2pkv.transport.wire import (
    MESSAGE_BYTES_MAX,
    RECORDS_PER_PUSH_MAX,
    ListDifference,
    ListDigest,
    MemberRecord,
    PushPull,
    encode,
)

ALIVE, SUSPECT, DEAD, LEFT = MemberState
M = TypeVar("M")


def record(member: str, *, incarnation: int = 0, state: int = ALIVE, name: str = "") -> MemberRecord:
    return MemberRecord(id=member, boot=1, incarnation=incarnation, state=state, name=name, address=f"{member}:1")


class Side:
    """A node's table with its half of a comparison, which merges as membership does, without doubts."""

    def __init__(self, name: str, listed: list[MemberRecord]) -> None:
        self.own = OwnRecord(record(name))
        self.table = MemberTable(reap_s=3600.0)
        for one in listed:
            self.take(one)
        self.comparison = Comparison(self.own, self.table)

    def take(self, one: MemberRecord) -> None:
        if one.id != self.own.record.id:
            self.table.take(one, 0.0)

    def usable(self) -> dict[str, MemberRecord]:
        return {one.id: one for one in (self.own.record, *self.table.usable())}

    def ask(self) -> ListDigest:
        message = self.comparison.ask("b:1").message
        assert isinstance(message, ListDigest)
        return message


def compare(a: Side, b: Side) -> tuple[list[ListDifference], list[PushPull]]:
    """Have `a` ask `b`; return the answers, and what `a` returned for them."""
    digest = a.ask()
    b.take(digest.own)
    answers, returned = [], []
    for answer in messages(b.comparison.answer(digest), ListDifference):
        answers.append(answer)
        for one in answer.records:
            a.take(one)
        for better in messages(a.comparison.complete(answer), PushPull):
            assert not better.reply
            returned.append(better)
            for one in better.records:
                b.take(one)
    return answers, returned


def messages(effects: list[SendStream] | None, kind: type[M]) -> list[M]:
    assert effects is not None
    found = []
    for effect in effects:
        assert isinstance(effect.message, kind)
        assert len(encode(effect.message)) <= MESSAGE_BYTES_MAX
        found.append(effect.message)
    return found


members = st.sampled_from([f"n{i}" for i in range(12)])
beliefs = st.builds(record, members, incarnation=st.integers(0, 2), state=st.integers(0, 3), name=st.just("x"))
tables = st.lists(beliefs, max_size=14)


@given(tables)
def test_who_believes_the_same_is_told_nothing(listed: list[MemberRecord]) -> None:
    a, b = Side("a", [*listed, record("b")]), Side("b", [*listed, record("a")])
    assert compare(a, b) == ([], [])


@given(tables, tables)
def test_after_a_comparison_both_count_on_the_same_members_in_the_same_records(
    one: list[MemberRecord], two: list[MemberRecord]
) -> None:
    a, b = Side("a", one), Side("b", two)
    compare(a, b)
    assert a.usable() == b.usable()
    assert compare(a, b) == ([], [])


@given(tables, beliefs)
def test_any_single_difference_about_whom_one_counts_on_is_found(listed: list[MemberRecord], odd: MemberRecord) -> None:
    a, b = Side("a", [*listed, record("b"), odd]), Side("b", [*listed, record("a")])
    answers, _ = compare(a, b)
    differs = a.usable() != Side("b", [*listed, record("a")]).usable()
    assert bool(answers) == differs


def test_of_a_thousand_members_one_difference_costs_one_bucket_each_way() -> None:
    listed = [record(f"n{i}") for i in range(1000)]
    a = Side("a", [*listed, record("b")])
    b = Side("b", [*listed, record("a"), record("n7", incarnation=1)])
    (answer,), returned = compare(a, b)
    assert record("n7", incarnation=1) in answer.records
    assert len(answer.records) < 12  # its own, and a bucket of two on average
    assert returned == []
    assert len(encode(a.ask())) < 5000


def test_what_the_asker_knows_better_is_returned_and_no_more() -> None:
    listed = [record(f"n{i}") for i in range(100)]
    a = Side("a", [*listed, record("b"), record("n7", incarnation=1), record("n8", state=DEAD), record("new")])
    b = Side("b", [*listed, record("a")])
    _, (better,) = compare(a, b)
    assert {one.id for one in better.records} == {"a", "n7", "n8", "new"}


def test_whoever_holds_the_asker_for_dead_says_so() -> None:
    b = Side("b", [record("a", state=DEAD)])
    (answer,) = messages(b.comparison.answer(Side("a", [record("b")]).ask()), ListDifference)
    assert record("a", state=DEAD) in answer.records


def test_of_the_dead_that_only_one_side_remembers_nothing_is_said_while_all_else_is_equal() -> None:
    a, b = Side("a", [record("b")]), Side("b", [record("a"), record("gone", state=DEAD)])
    assert compare(a, b) == ([], [])


@given(st.integers(0, 600), st.integers(0, 110))
def test_a_large_difference_travels_whole_in_messages_within_the_limits(count: int, name_length: int) -> None:
    b = Side("b", [record(f"n{i}", name="é" * name_length) for i in range(count)])
    answers = messages(b.comparison.answer(Side("a", []).ask()), ListDifference)
    assert all(answer.records[0] == b.own.record for answer in answers)
    assert all(len(answer.records) <= RECORDS_PER_PUSH_MAX for answer in answers)
    told = [one for answer in answers for one in answer.records[1:]]
    assert sorted(one.id for one in told) == sorted(one.id for one in b.table.records())


def test_a_bucket_too_large_for_one_message_is_cut_and_nothing_is_returned_for_it() -> None:
    a, b = Side("a", []), Side("b", [record(f"n{i}") for i in range(400)])  # a knows nobody: one bucket
    answers, returned = compare(a, b)
    assert [(answer.bucket_count, answer.differing) for answer in answers] == [(1, b"")] * 4
    assert returned == []
    assert a.usable() == b.usable()


@pytest.mark.parametrize("hashes", [bytes(12), bytes(24), bytes(7)])
def test_a_digest_that_is_no_digest_is_not_answered(hashes: bytes) -> None:
    assert Side("b", []).comparison.answer(ListDigest(own=record("a"), buckets=hashes)) is None


def test_an_answer_about_no_number_of_buckets_is_not_answered() -> None:
    message = ListDifference(records=(record("b"),), bucket_count=3, differing=b"\x07")
    assert Side("a", []).comparison.complete(message) is None


def test_a_suspicion_is_a_difference() -> None:
    a, b = Side("a", [record("b"), record("n", state=SUSPECT)]), Side("b", [record("a"), record("n")])
    compare(a, b)
    known = b.table.get("n")
    assert known is not None
    assert known.state == SUSPECT
    assert is_usable(known)
    assert msgspec.structs.replace(known, state=int(ALIVE)) == record("n")
