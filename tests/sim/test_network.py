"""The network alone: what it may do to messages and what it may not."""

from random import Random

import pytest

from p2pkv.errors import LocalUseError
from p2pkv.sim.faults import SECOND_US, Crash, Egress, Faults, Freeze, Partition, Slow, to_us
from p2pkv.sim.network import TIMEOUT_US, Network


def network(faults: Faults, *, seed: int = 1, running: bool = True) -> Network:
    return Network(faults, Random(seed), is_running=lambda _: running)


def test_datagrams_are_lost_at_the_rate_asked_for() -> None:
    lossy = network(Faults(loss=0.2))
    arrived = sum(lossy.datagram(0, 1, 0) is not None for _ in range(5000))
    assert 3850 < arrived < 4150


def test_delays_stay_in_their_range_and_let_datagrams_overtake() -> None:
    wide = network(Faults(delay_min_s=0.001, delay_max_s=0.1))
    arrivals = [wide.datagram(0, 1, i) for i in range(200)]
    times = [at - i for i, at in enumerate(arrivals) if at is not None]
    assert len(times) == 200
    assert 1000 <= min(times) < max(times) <= 100_000
    assert arrivals != sorted(at for at in arrivals if at is not None)


def test_stream_messages_never_overtake() -> None:
    wide = network(Faults(delay_min_s=0.001, delay_max_s=0.1))
    arrivals = [wide.stream(0, 1, i)[0] for i in range(200)]
    assert arrivals == sorted(arrivals)


def test_streams_do_not_lose_what_datagrams_do() -> None:
    lossy = network(Faults(loss=0.9))
    generations = {lossy.stream(0, 1, i)[1] for i in range(100)}
    assert all(lossy.stream_delivers(0, 1, generation) for generation in generations)


def test_a_broken_stream_loses_what_is_on_its_way_and_nothing_later() -> None:
    calm = network(Faults())
    _, before = calm.stream(0, 1, 0)
    assert calm.break_stream(0, 1, 10) == 10 + TIMEOUT_US
    _, after = calm.stream(0, 1, 20)
    assert not calm.stream_delivers(0, 1, before)
    assert calm.stream_delivers(0, 1, after)


def test_a_machine_without_the_process_refuses_at_once() -> None:
    calm = network(Faults(), running=False)
    calm.stream(0, 1, 0)
    assert calm.break_stream(0, 1, 10) < 10 + to_us(0.01)


def test_a_partition_cuts_both_ways_between_its_sides_and_only_in_its_time() -> None:
    split = network(Faults(partitions=(Partition(1.0, 2.0, frozenset({0, 1})),)))
    assert not split.reaches(0, 2, SECOND_US)
    assert not split.reaches(2, 0, 2 * SECOND_US - 1)
    assert split.reaches(0, 1, SECOND_US)
    assert split.reaches(2, 3, SECOND_US)
    assert split.reaches(0, 2, SECOND_US - 1)
    assert split.reaches(0, 2, 2 * SECOND_US)
    assert split.datagram(0, 2, SECOND_US) is None


def test_the_last_fault_is_the_last_to_end() -> None:
    assert Faults().last_s == 0
    assert Faults(partitions=(Partition(1, 9, frozenset()),), crashes=(Crash(5, 0),)).last_s == 9


@pytest.mark.parametrize("loss", [-0.1, 1.0])
def test_impossible_loss_is_refused(loss: float) -> None:
    with pytest.raises(LocalUseError, match="loss is"):
        Faults(loss=loss)


def test_delays_out_of_order_are_refused() -> None:
    with pytest.raises(LocalUseError, match="must be positive and ordered"):
        Faults(delay_min_s=0.2, delay_max_s=0.1)


def test_egress_loss_is_one_way_and_only_in_its_time_and_to_its_targets() -> None:
    lossy = network(Faults(egress=(Egress(1.0, 2.0, frozenset({0}), 0.8, frozenset({1})),)))
    arrived = [
        sum(lossy.datagram(a, b, now_us) is not None for _ in range(500))
        for a, b, now_us in ((0, 1, SECOND_US), (1, 0, SECOND_US), (0, 2, SECOND_US), (0, 1, 0), (0, 1, 2 * SECOND_US))
    ]
    assert 60 < arrived[0] < 140
    assert arrived[1:] == [500] * 4
    assert lossy.connects(0, 1, SECOND_US), "streams send again"


def test_a_cut_one_way_keeps_datagrams_from_passing_that_way_and_streams_from_living_at_all() -> None:
    cut = network(Faults(egress=(Egress(1.0, 2.0, frozenset({0})),)))
    assert cut.datagram(0, 1, SECOND_US) is None
    assert cut.datagram(1, 0, SECOND_US) is not None
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
