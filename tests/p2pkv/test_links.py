"""What is learnt of a link, and when a peer is left alone."""

from itertools import count

import pytest

from p2pkv.links import LinkEstimate, Links
from p2pkv.nearness import Nearness, nearness
from p2pkv.transport.wire import MemberRecord

MIB = 2**20
COOLDOWN_S = 1.0


@pytest.fixture
def links() -> Links:
    return Links(assumed_bandwidth_bytes_s=1e9, cooldown_s=COOLDOWN_S)


def moved(links: Links, peer: str, moved_bytes: int, seconds: float, now: float = 0.0) -> None:
    """Have a transfer that went well end at `now`."""
    links.on_started(peer, now - seconds)
    links.on_ended(peer, moved_bytes, now, well=True)


def bandwidth(links: Links, peer: str, now: float = 0.0) -> float:
    return links.estimate(peer, now).bandwidth_bytes_s


def test_an_unknown_link_is_assumed_to_be_as_fast_as_configured(links: Links) -> None:
    assert links.estimate("b", 0.0) == LinkEstimate(1e9, 0.001)
    assert links.usable("b", 0.0)
    assert links.cold(0.0) == ()
    assert links.late_answer_s("b") is None


def test_measurements_move_the_estimate_and_several_settle_it(links: Links) -> None:
    moved(links, "b", 100 * MIB, 1.0)
    assert 100 * MIB < bandwidth(links, "b") < 1e9
    for _ in range(20):
        moved(links, "b", 100 * MIB, 1.0)
    assert bandwidth(links, "b") == pytest.approx(100 * MIB, rel=0.01)


def test_one_slow_transfer_does_not_banish_a_fast_peer(links: Links) -> None:
    moved(links, "b", 100 * MIB, 100.0)
    assert bandwidth(links, "b") > 0.6e9


@pytest.mark.parametrize(("moved_bytes", "seconds"), [(MIB - 1, 10.0), (100 * MIB, 0.0), (100 * MIB, -1.0)])
def test_what_measures_nothing_leaves_the_bandwidth_alone(links: Links, moved_bytes: int, seconds: float) -> None:
    """Small transfers measure the round trip, and clocks may stand still."""
    moved(links, "b", moved_bytes, seconds)
    assert bandwidth(links, "b") == 1e9


def test_a_megabyte_is_enough_to_measure_by(links: Links) -> None:
    moved(links, "b", MIB, 1.0)
    assert bandwidth(links, "b") == pytest.approx(1e9 + 0.3 * (MIB - 1e9))


def test_transfers_side_by_side_are_measured_together(links: Links) -> None:
    """Each alone got a third of the link; the link is as fast as all of them."""
    for _ in range(20):
        for _ in range(3):
            links.on_started("b", 0.0)
        for _ in range(3):
            links.on_ended("b", 100 * MIB, 1.0, well=True)
    assert bandwidth(links, "b") == pytest.approx(300 * MIB, rel=0.01)


def test_transfers_that_never_cease_to_overlap_are_measured_all_the_same(links: Links) -> None:
    links.on_started("b", 0.0)
    for second in range(1, 120):
        links.on_started("b", float(second))
        links.on_ended("b", 50 * MIB, second + 0.5, well=True)
    assert bandwidth(links, "b", 119.5) == pytest.approx(50 * MIB, rel=0.1)


def test_a_link_nothing_was_measured_on_is_like_the_others_of_its_nearness() -> None:
    near = {"host": Nearness.HOST, "host2": Nearness.HOST, "far": Nearness.FAR}
    links = Links(assumed_bandwidth_bytes_s=1e9, cooldown_s=COOLDOWN_S, nearness=near.__getitem__)
    for _ in range(20):
        moved(links, "host", 8000 * MIB, 1.0)
    assert bandwidth(links, "host2") == pytest.approx(8000 * MIB, rel=0.01)
    assert bandwidth(links, "far") == 1e9
    assert links.estimate("host2", 0.0).round_trip_s < links.estimate("far", 0.0).round_trip_s


def test_what_was_measured_long_ago_is_forgotten_so_that_a_peer_gets_another_chance(links: Links) -> None:
    for _ in range(30):
        moved(links, "b", MIB, 1.0, 100.0)
    assert bandwidth(links, "b", 130.0) == bandwidth(links, "b", 100.0) < 2 * MIB
    assert bandwidth(links, "b", 160.0) == pytest.approx(0.25e9, rel=0.02), (
        "half of it is forgotten, and half of what links alike made one expect"
    )
    assert bandwidth(links, "b", 1000.0) == pytest.approx(1e9, rel=0.001)


def test_round_trips_move_their_estimate(links: Links) -> None:
    for _ in range(30):
        links.on_answer("b", 0.5, 0.0)
    assert links.estimate("b", 0.0).round_trip_s == pytest.approx(0.5, rel=0.01)


def test_an_answer_is_late_behind_nearly_all_before_it(links: Links) -> None:
    for milliseconds in range(1, 101):
        links.on_answer("b", milliseconds / 1000, 0.0)
    assert links.late_answer_s("b") == pytest.approx(0.097), "of the last 64"
    links.on_answer("c", 1.0, 0.0)
    late_s = links.late_answer_s("c")
    assert late_s is not None
    assert late_s < 0.2, "of one that is hardly known, what is known of all"


def test_a_peer_that_failed_is_left_alone_for_the_cooldown(links: Links) -> None:
    links.on_failure("b", 10.0)
    assert not links.usable("b", 10.0)
    assert not links.usable("b", 10.999)
    assert links.cold(10.5) == ("b",)
    assert links.state("b", 10.5) == "open"
    assert links.usable("b", 11.0)
    assert links.cold(11.0) == ()
    assert links.usable("c", 10.0)


def test_each_further_failure_doubles_the_cooldown_up_to_thirty_two_times(links: Links) -> None:
    pauses = []
    for now in range(0, 800, 100):
        links.on_failure("b", float(now))
        pauses.append(next(s for s in count(1) if links.usable("b", now + s)))
    assert pauses == [1, 2, 4, 8, 16, 32, 32, 32]


def test_what_fails_while_the_peer_is_left_alone_fails_of_the_same_cause(links: Links) -> None:
    for _ in range(5):
        links.on_failure("b", 0.0)
    assert links.usable("b", COOLDOWN_S)


def test_behind_the_cooldown_one_question_at_a_time_finds_out(links: Links) -> None:
    links.on_failure("b", 0.0)
    assert links.state("b", 1.0) == "half-open"
    assert links.usable("b", 1.0)
    links.on_asked("b", 1.0, patience_s=2.0)
    assert not links.usable("b", 1.5), "one is under way"
    links.on_inconclusive("b")
    assert links.usable("b", 1.6), "it said nothing, the next one may"
    links.on_asked("b", 1.6, patience_s=2.0)
    assert links.usable("b", 3.6), "one that was lost does not shut the peer out for ever"
    links.on_asked("b", 3.6, patience_s=2.0)
    links.on_failure("b", 3.7)
    assert not links.usable("b", 3.7 + COOLDOWN_S), "twice as long now"
    links.on_asked("b", 10.0, patience_s=2.0)
    links.on_success("b", 10.1)
    assert links.state("b", 10.1) == "closed"
    links.on_asked("b", 10.2, patience_s=2.0)
    assert links.usable("b", 10.3), "of a good peer anything may be asked"


def test_a_peer_that_is_busy_is_left_alone_as_long_as_it_asked_and_is_not_blamed(links: Links) -> None:
    links.on_busy("b", 5.0, 0.0)
    assert not links.usable("b", 4.9)
    assert links.busy_s("b", 4.0) == 1.0
    assert links.state("b", 4.0) == "closed"
    assert links.usable("b", 5.0)


def test_a_transfer_that_goes_well_forgives_everything(links: Links) -> None:
    for now in range(4):
        links.on_failure("b", 100.0 * now)
    links.on_success("b", 300.0)
    assert links.usable("b", 300.0)
    links.on_failure("b", 301.0)
    assert links.usable("b", 301.0 + COOLDOWN_S)


def test_a_peer_that_left_is_forgotten(links: Links) -> None:
    links.on_failure("b", 0.0)
    links.forget("b")
    links.forget("never there")
    assert links.usable("b", 0.0)
    links.on_ended("b", MIB, 1.0, well=True)
    assert links.cold(0.0) == ()


def test_how_near_a_peer_stands_is_what_both_say_of_themselves() -> None:
    def record(**facts: str) -> MemberRecord:
        return MemberRecord(id="x", boot=1, incarnation=0, state=0, name="x", address="x:1", **facts)

    me = record(host_id="h", zone="z", rack="r")
    assert nearness(me, record(host_id="h", zone="z", rack="r")) is Nearness.HOST
    assert nearness(me, record(host_id="i", zone="z", rack="r")) is Nearness.RACK
    assert nearness(me, record(host_id="i", zone="z", rack="s")) is Nearness.ZONE
    assert nearness(me, record(host_id="i", zone="y", rack="r")) is Nearness.FAR
    assert nearness(record(), record()) is Nearness.ZONE, "where nothing is said all are alike"
