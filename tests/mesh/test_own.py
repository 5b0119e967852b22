import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.mesh.announcements import Described
from p2pkv.mesh.members import MemberState, merge
from p2pkv.mesh.own import INCARNATION_MAX, Answer, OwnRecord
from p2pkv.transport.wire import MemberRecord

ME = MemberRecord(id="me", boot=5, incarnation=3, state=0, name="me", address="me:1")


def said(**changes: object) -> MemberRecord:
    return msgspec.structs.replace(ME, **changes)


@pytest.mark.parametrize("state", [MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT])
def test_a_false_word_about_us_is_refuted_by_a_higher_incarnation(state: MemberState) -> None:
    own = OwnRecord(ME)
    assert own.hear(said(state=int(state), incarnation=4)) is Answer.REFUTE
    assert (own.record.incarnation, own.record.state) == (5, MemberState.ALIVE)


def test_what_we_said_or_what_is_outdated_needs_no_answer() -> None:
    own = OwnRecord(ME)
    assert own.hear(ME) is Answer.NOTHING
    assert own.hear(said(incarnation=2, state=2)) is Answer.NOTHING
    assert own.hear(said(boot=4, incarnation=99, state=2, address="old:1")) is Answer.NOTHING
    assert own.record == ME


@pytest.mark.parametrize(
    "changes", [{"boot": 6}, {"address": "other:1"}, {"incarnation": INCARNATION_MAX}, {"boot": 6, "state": 2}]
)
def test_what_only_another_process_of_our_id_can_have_said_is_not_answered(changes: dict[str, object]) -> None:
    own = OwnRecord(ME)
    assert own.hear(said(**changes)) is Answer.DUPLICATE
    assert own.record == ME


@given(st.integers(0, INCARNATION_MAX), st.integers(0, 3))
def test_after_any_word_about_this_life_ours_prevails_or_is_a_duplicate(incarnation: int, state: int) -> None:
    own, word = OwnRecord(ME), said(incarnation=incarnation, state=state)
    answer = own.hear(word)
    assert answer is Answer.DUPLICATE or merge(own.record, word) == own.record
    assert own.record.incarnation <= INCARNATION_MAX


def test_an_offer_is_news_only_if_it_differs() -> None:
    own = OwnRecord(ME)
    assert own.describe(Described(100, (), ()))
    assert not own.describe(Described(100, (), ()))
    assert (own.record.offered_bytes, own.record.incarnation) == (100, 4)


def test_a_goodbye_prevails_over_a_refutation_under_way() -> None:
    own = OwnRecord(ME)
    own.hear(said(state=1))
    refutation = own.record
    own.leave()
    assert own.left
    assert merge(own.record, refutation) == own.record
