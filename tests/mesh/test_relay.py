import itertools

import pytest

from p2pkv.mesh.relay import Relays, nack_after_s


def make_relays(*, relays_max: int = 10) -> Relays:
    return Relays(keep_s=1.0, nack_s=0.4, sequence=itertools.count(100), relays_max=relays_max)


def ask(relays: Relays, now: float = 0.0, *, nack: bool = False) -> int | None:
    return relays.open(requester="b", requester_address="b:1", seq=7, target="c", nack=nack, now=now)


def test_an_answer_is_passed_on_once_under_the_requesters_number() -> None:
    relays = make_relays()
    assert ask(relays) == 100
    relay = relays.close(100, "c", 0.5)
    assert relay is not None
    assert (relay.requester, relay.requester_address, relay.seq, relay.target) == ("b", "b:1", 7, "c")
    assert relays.close(100, "c", 0.5) is None


def test_an_answer_of_somebody_else_or_too_late_is_not_passed_on() -> None:
    relays = make_relays()
    ask(relays)
    assert relays.close(100, "mallory", 0.5) is None
    assert relays.close(99, "c", 0.5) is None
    assert relays.close(100, "c", 1.0) is None


def test_no_more_relays_than_allowed_are_open_until_old_ones_run_out() -> None:
    relays = make_relays(relays_max=2)
    assert [ask(relays), ask(relays), ask(relays, 0.9)] == [100, 101, None]
    assert relays.refused == 1
    assert ask(relays, 1.0) == 102
    assert len(relays) == 1


def test_a_nack_is_due_once_and_a_later_answer_is_passed_on_all_the_same() -> None:
    relays = make_relays()
    ask(relays, nack=True)
    ask(relays, 0.1, nack=False)
    assert relays.next_deadline() == 0.4
    assert relays.due(0.3) == ()
    assert [relay.seq for relay in relays.due(0.4)] == [7]
    assert relays.due(0.9) == ()
    assert relays.next_deadline() == float("inf")
    assert relays.close(100, "c", 0.5) is not None


def test_whoever_answered_in_time_gets_no_nack() -> None:
    relays = make_relays()
    ask(relays, nack=True)
    relays.close(100, "c", 0.1)
    assert relays.due(0.9) == ()


def test_a_relay_that_ran_out_takes_its_nack_with_it() -> None:
    relays = make_relays()
    ask(relays, nack=True)
    ask(relays, 2.0, nack=True)
    assert relays.next_deadline() == 2.4


@pytest.mark.parametrize(("period_s", "timeout_s", "nack_s"), [(1.0, 0.5, 0.4), (5.0, 3.0, 1.6), (1.0, 0.2, 0.16)])
def test_a_nack_leaves_before_the_requester_gives_up(period_s: float, timeout_s: float, nack_s: float) -> None:
    assert nack_after_s(period_s=period_s, timeout_s=timeout_s) == pytest.approx(nack_s)
