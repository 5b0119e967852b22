"""What is learnt of a link, and when a peer is left alone."""

import pytest

from p2pkv.links import LinkEstimate, Links

MIB = 2**20
COOLDOWN_S = 1.0


@pytest.fixture
def links() -> Links:
    return Links(assumed_bandwidth_bytes_s=1e9, cooldown_s=COOLDOWN_S)


def test_an_unknown_link_is_assumed_to_be_as_fast_as_configured(links: Links) -> None:
    assert links.estimate("b") == LinkEstimate(1e9, 0.001)
    assert links.usable("b", 0.0)
    assert links.cold(0.0) == ()


def test_measurements_move_the_estimate_and_several_settle_it(links: Links) -> None:
    links.on_transfer("b", 100 * MIB, 1.0)
    once = links.estimate("b").bandwidth_bytes_s
    assert 100 * MIB < once < 1e9
    for _ in range(20):
        links.on_transfer("b", 100 * MIB, 1.0)
    assert links.estimate("b").bandwidth_bytes_s == pytest.approx(100 * MIB, rel=0.01)


def test_one_slow_transfer_does_not_banish_a_fast_peer(links: Links) -> None:
    links.on_transfer("b", 100 * MIB, 100.0)
    assert links.estimate("b").bandwidth_bytes_s > 0.6e9


@pytest.mark.parametrize(("moved_bytes", "seconds"), [(MIB - 1, 10.0), (100 * MIB, 0.0), (100 * MIB, -1.0)])
def test_what_measures_nothing_leaves_the_bandwidth_alone(links: Links, moved_bytes: int, seconds: float) -> None:
    """Small transfers measure the round trip, and clocks may stand still."""
    links.on_transfer("b", moved_bytes, seconds)
    assert links.estimate("b").bandwidth_bytes_s == 1e9


def test_a_megabyte_is_enough_to_measure_by(links: Links) -> None:
    links.on_transfer("b", MIB, 1.0)
    assert links.estimate("b").bandwidth_bytes_s == pytest.approx(1e9 + 0.3 * (MIB - 1e9))


def test_round_trips_move_their_estimate(links: Links) -> None:
    for _ in range(30):
        links.on_answer("b", 0.5)
    assert links.estimate("b").round_trip_s == pytest.approx(0.5, rel=0.01)
    assert links.estimate("c").round_trip_s == 0.001


def test_a_peer_that_failed_is_left_alone_for_the_cooldown(links: Links) -> None:
    links.on_failure("b", 10.0)
    assert not links.usable("b", 10.0)
    assert not links.usable("b", 10.999)
    assert links.cold(10.5) == ("b",)
    assert links.usable("b", 11.0)
    assert links.cold(11.0) == ()
    assert links.usable("c", 10.0)


def test_each_further_failure_doubles_the_cooldown_up_to_thirty_two_times(links: Links) -> None:
    pauses = []
    for now in range(0, 800, 100):
        links.on_failure("b", float(now))
        pauses.append(next(s for s in range(1, 100) if links.usable("b", now + s)))
    assert pauses == [1, 2, 4, 8, 16, 32, 32, 32]


def test_a_transfer_that_goes_well_forgives_everything(links: Links) -> None:
    for _ in range(4):
        links.on_failure("b", 0.0)
    links.on_transfer("b", 1, 1.0)
    assert links.usable("b", 0.0)
    links.on_failure("b", 0.0)
    assert links.usable("b", COOLDOWN_S)


def test_a_peer_that_left_is_forgotten(links: Links) -> None:
    links.on_failure("b", 0.0)
    links.on_transfer("c", 100 * MIB, 1.0)
    links.forget("b")
    links.forget("c")
    links.forget("never there")
    assert links.usable("b", 0.0)
    assert links.estimate("c") == LinkEstimate(1e9, 0.001)
