import itertools

from p2pkv.mesh.relay import Relays


def make_relays(*, relays_max: int = 10) -> Relays:
    return Relays(keep_s=1.0, sequence=itertools.count(100), relays_max=relays_max)


def ask(relays: Relays, now: float = 0.0) -> int | None:
    return relays.open(requester="b", requester_address="b:1", seq=7, target="c", now=now)


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
