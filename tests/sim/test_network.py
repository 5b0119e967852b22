"""The network alone: what it may do to messages and what it may not."""

from random import Random

import pytest

from p2pkv.errors import LocalUseError
from p2pkv.sim.delays import Exponential, LogNormal, Uniform
from p2pkv.sim.faults import (
    SECOND_US,
    Churn,
    Crash,
    Egress,
    Faults,
    Freeze,
    Leave,
    Partition,
    Restart,
    Slow,
    Zone,
    to_us,
)
from p2pkv.sim.network import Network


def network(faults: Faults, *, seed: int = 1) -> Network:
    return Network(faults, Random(seed))


def test_datagrams_are_lost_at_the_rate_asked_for() -> None:
    lossy = network(Faults(loss=0.2))
    arrived = sum(len(lossy.datagram(0, 1, 0)) for _ in range(5000))
    assert 3850 < arrived < 4150


def test_delays_stay_in_their_range_and_let_datagrams_overtake() -> None:
    wide = network(Faults(delay=Uniform(0.001, 0.1)))
    arrivals = [at for i in range(200) for at in wide.datagram(0, 1, i)]
    times = [at - i for i, at in enumerate(arrivals)]
    assert len(times) == 200
    assert 1000 <= min(times) < max(times) <= 100_000
    assert arrivals != sorted(arrivals)


def quantiles(delay: Uniform | Exponential | LogNormal) -> list[float]:
    draw = delay.sampler(Random(1))
    drawn = sorted(draw() for _ in range(20_000))
    return [drawn[0] / SECOND_US, *(drawn[int(q * len(drawn))] / SECOND_US for q in (0.5, 0.99)), drawn[-1] / SECOND_US]


def test_distributions_have_their_quantiles_and_keep_to_their_bounds() -> None:
    least, median, late, most = quantiles(Exponential(0.010, 0.020, 0.090))
    assert least >= 0.010
    assert median == pytest.approx(0.010 + 0.020 * 0.6931, rel=0.03)
    assert (late, most) == (pytest.approx(0.090), 0.090)
    least, median, late, most = quantiles(LogNormal(0.010, 0.5, 0.040))
    assert least > 0
    assert median == pytest.approx(0.010, rel=0.03)
    assert late == pytest.approx(0.032, rel=0.05)
    assert most == 0.040


def test_zones_are_far_from_one_another_and_near_in_themselves() -> None:
    zones = (Zone("a", frozenset({0, 1})), Zone("b", frozenset({2})))
    far = network(Faults(zones=zones, zone_delay=Uniform(0.05, 0.06)))
    (near_us,), (far_us,), (outside_us,) = far.datagram(0, 1, 0), far.datagram(1, 2, 0), far.datagram(2, 3, 0)
    assert near_us <= 2000
    assert min(far_us, outside_us) >= 50_000


def test_some_datagrams_arrive_twice_and_some_late() -> None:
    odd = network(Faults(duplication=0.3, reordering=0.2, reorder_s=1.0))
    arrivals = [odd.datagram(0, 1, 0) for _ in range(2000)]
    assert 500 < sum(len(one) == 2 for one in arrivals) < 700
    assert 320 < sum(one[0] > 2000 for one in arrivals) < 480
    assert max(at for one in arrivals for at in one) <= SECOND_US + 2000


def test_a_partition_cuts_both_ways_between_its_sides_and_only_in_its_time() -> None:
    split = network(Faults(partitions=(Partition(1.0, 2.0, frozenset({0, 1})),)))
    assert not split.reaches(0, 2, SECOND_US)
    assert not split.reaches(2, 0, 2 * SECOND_US - 1)
    assert split.reaches(0, 1, SECOND_US)
    assert split.reaches(2, 3, SECOND_US)
    assert split.reaches(0, 2, SECOND_US - 1)
    assert split.reaches(0, 2, 2 * SECOND_US)
    assert split.datagram(0, 2, SECOND_US) == ()


def test_the_last_fault_is_the_last_to_end() -> None:
    assert Faults().last_s == 0
    assert Faults(partitions=(Partition(1, 9, frozenset()),), crashes=(Crash(5, 0),)).last_s == 9


@pytest.mark.parametrize("loss", [-0.1, 1.0])
def test_impossible_loss_is_refused(loss: float) -> None:
    with pytest.raises(LocalUseError, match="loss is"):
        Faults(loss=loss)


def test_delays_out_of_order_are_refused() -> None:
    with pytest.raises(LocalUseError, match="must be positive and ordered"):
        Uniform(0.2, 0.1)
    with pytest.raises(LocalUseError, match="must be positive and ordered"):
        Exponential(0.2, 0.1, 0.1)
    with pytest.raises(LocalUseError, match="must be ordered"):
        LogNormal(0.2, 0.1, 0.1)


def test_faults_that_make_no_sense_are_refused() -> None:
    for wrong in ({"duplication": 1.0}, {"reordering": -0.1}, {"drift_ppm": 1e6}, {"reorder_s": 0.0}):
        with pytest.raises(LocalUseError):
            Faults(**wrong)
    with pytest.raises(LocalUseError, match="must be positive"):
        Restart(1.0, 0, down_s=0)
    with pytest.raises(LocalUseError, match="must be some"):
        Churn(2.0, 1.0, 60)


def test_egress_loss_is_one_way_and_only_in_its_time_and_to_its_targets() -> None:
    lossy = network(Faults(egress=(Egress(1.0, 2.0, frozenset({0}), 0.8, frozenset({1})),)))
    arrived = [
        sum(len(lossy.datagram(a, b, now_us)) for _ in range(500))
        for a, b, now_us in ((0, 1, SECOND_US), (1, 0, SECOND_US), (0, 2, SECOND_US), (0, 1, 0), (0, 1, 2 * SECOND_US))
    ]
    assert 60 < arrived[0] < 140
    assert arrived[1:] == [500] * 4
    assert lossy.connects(0, 1, SECOND_US), "streams send again"


def test_a_cut_one_way_keeps_datagrams_from_passing_that_way_and_streams_from_living_at_all() -> None:
    cut = network(Faults(egress=(Egress(1.0, 2.0, frozenset({0})),)))
    assert cut.datagram(0, 1, SECOND_US) == ()
    assert len(cut.datagram(1, 0, SECOND_US)) == 1
    assert not cut.connects(1, 0, SECOND_US)


def test_blocks_come_in_every_period_and_end_with_the_fault() -> None:
    slow = Slow(10.0, 21.0, frozenset({0}), blocked_s=4.0, period_s=5.0)
    assert [slow.until_us(to_us(at)) / SECOND_US for at in (9.9, 10.0, 13.5, 14.0, 15.0, 20.5, 21.0)] == [
        *(9.9, 14.0, 14.0, 14.0, 19.0),
        *(21.0, 21.0),
    ]


@pytest.mark.parametrize("loss", [0.0, 1.1])
def test_impossible_egress_loss_is_refused(loss: float) -> None:
    with pytest.raises(LocalUseError, match="egress loss is"):
        Egress(0.0, 1.0, frozenset(), loss)


def test_a_block_longer_than_its_period_is_refused() -> None:
    with pytest.raises(LocalUseError, match="must be positive and fit"):
        Slow(0.0, 1.0, frozenset(), blocked_s=3.0, period_s=2.0)


def test_every_kind_of_fault_has_an_end() -> None:
    faults = Faults(slow=(Slow(0, 5, frozenset(), 1, 2),), freezes=(Freeze(0, 6, frozenset()),))
    assert faults.last_s == 6
    assert Faults(egress=(Egress(0, 7, frozenset()),)).last_s == 7
    assert Faults(leaves=(Leave(8, 1),)).last_s == 8
    assert Faults(restarts=(Restart(8, 1, down_s=3),)).last_s == 11
    assert Faults(churn=(Churn(1, 20, per_minute=6, away_s=4),)).last_s == 24
