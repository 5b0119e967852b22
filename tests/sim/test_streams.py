"""Simulated streams: order, what loss costs them, and how they break."""

from random import Random

import pytest

from p2pkv.sim.delays import Uniform
from p2pkv.sim.faults import SECOND_US, Faults, Partition
from p2pkv.sim.network import Network
from p2pkv.sim.streams import IDLE_US, OPENING_PATIENCE_US, PATIENCE_US, RETRY_US, SEGMENT_BYTES, Sent
from p2pkv.transport.base import STREAM_QUEUE_MAX

EXACT = Uniform(0.001, 0.001)


def network(faults: Faults) -> Network:
    return Network(faults, Random(1))


def send(over: Network, at_us: int, size: int = 100) -> Sent:
    sent = over.stream(0, 1, at_us, size)
    assert sent is not None
    return sent


def test_the_first_message_waits_for_the_stream_to_open_and_the_next_does_not() -> None:
    calm = network(Faults(delay=EXACT))
    assert send(calm, 0).at_us == 4000
    assert send(calm, 10_000).at_us == 11_000
    assert send(calm, 20_000 + IDLE_US).at_us == 24_000 + IDLE_US, "it was let go"


def test_messages_never_overtake() -> None:
    wide = network(Faults(delay=Uniform(0.001, 0.1), loss=0.1))
    arrivals = [send(wide, i).at_us for i in range(500)]
    assert arrivals == sorted(arrivals)


def test_a_lost_segment_is_sent_again_and_what_is_behind_it_waits() -> None:
    lossy = network(Faults(delay=EXACT, loss=0.05))
    send(lossy, 0)
    late = [send(lossy, SECOND_US * (1 + i)).at_us - SECOND_US * (1 + i) for i in range(400)]
    assert 10 < sum(wait == RETRY_US + 1000 for wait in late) < 30
    assert sum(wait == 1000 for wait in late) > 360
    assert lossy.streams.retransmissions > 10
    burst = network(Faults(delay=EXACT, loss=0.05))
    send(burst, 0)
    waits = [send(burst, SECOND_US + i).at_us for i in range(100)]
    first_late = next(i for i, at_us in enumerate(waits) if at_us >= SECOND_US + RETRY_US)
    assert all(at_us >= SECOND_US + RETRY_US for at_us in waits[first_late:])


def test_a_large_message_is_more_likely_to_wait() -> None:
    def late(size: int) -> int:
        lossy = network(Faults(delay=EXACT, loss=0.02))
        return sum(send(lossy, SECOND_US * i, size).at_us > SECOND_US * i + 100_000 for i in range(1, 500))

    assert late(20 * SEGMENT_BYTES) > 5 * late(SEGMENT_BYTES)


def test_nobody_behind_a_cut_answers_and_the_sender_is_told_after_its_patience() -> None:
    cut = network(Faults(delay=EXACT, partitions=(Partition(1.0, 30.0, frozenset({1})),)))
    opening = cut.stream(0, 2, 2 * SECOND_US, 10)
    assert opening is not None
    assert not opening.breaks, "they are on one side"
    assert send(cut, 2 * SECOND_US) == Sent(2 * SECOND_US + OPENING_PATIENCE_US, 0, breaks=True)
    assert cut.stream(0, 1, 3 * SECOND_US, 10) is None, "lost with the stream, and told of once"
    assert cut.streams.broken(0, 1, 0)
    assert send(cut, 40 * SECOND_US).generation == 1


def test_an_open_stream_outlives_a_short_cut_and_not_a_long_one() -> None:
    cut = network(Faults(delay=EXACT, partitions=(Partition(1.0, 2.0, frozenset({1})),)))
    before = send(cut, 0)
    over_it = send(cut, SECOND_US)
    assert not over_it.breaks
    assert 2 * SECOND_US < over_it.at_us < 3 * SECOND_US
    long = network(Faults(delay=EXACT, partitions=(Partition(1.0, 20.0, frozenset({1})),)))
    assert send(long, 0) == before
    assert send(long, SECOND_US) == Sent(SECOND_US + PATIENCE_US, 0, breaks=True)


def test_a_broken_stream_loses_what_is_on_its_way_and_nothing_later() -> None:
    calm = network(Faults())
    before = send(calm, 0)
    told = calm.streams.refuse(0, 1)
    assert not calm.streams.arrive(0, 1, before.generation, 100)
    assert calm.stream(0, 1, 10, 10) is None
    assert calm.streams.broken(0, 1, told)
    assert not calm.streams.broken(0, 1, told), "once"
    after = send(calm, 20)
    assert calm.streams.arrive(0, 1, after.generation, 10)


def test_a_stream_that_was_opened_to_nobody_is_refused_and_one_that_was_open_only_breaks() -> None:
    calm = network(Faults())
    first = send(calm, 0)
    assert calm.streams.arrive(0, 1, first.generation, 10)
    second = send(calm, SECOND_US)
    assert calm.streams.arrive(0, 1, second.generation, 10, listens=False)
    told = calm.streams.refuse(0, 1)
    assert not calm.streams.is_refused(0, 1), "the process that had opened its end is gone; a new stream will say more"
    assert calm.streams.broken(0, 1, told)
    anew = send(calm, 2 * SECOND_US)
    assert calm.streams.arrive(0, 1, anew.generation, 10, listens=False)
    calm.streams.refuse(0, 1)
    assert calm.streams.is_refused(0, 1)


def test_a_process_that_begins_anew_knows_no_stream_and_those_who_wrote_to_it_are_told() -> None:
    calm = network(Faults())
    mine, theirs = send(calm, 0), calm.stream(1, 0, 0, 10)
    assert theirs is not None
    idle = calm.stream(2, 1, 0, 10)
    assert idle is not None
    assert calm.streams.arrive(2, 1, idle.generation, 10)
    told = calm.streams.reset(1)
    assert [who for who, _ in told] == [0]
    assert not calm.streams.arrive(0, 1, mine.generation, 10)
    assert not calm.streams.arrive(1, 0, theirs.generation, 10)
    assert calm.streams.broken(0, 1, told[0][1])


def test_messages_on_their_way_are_bounded() -> None:
    calm = network(Faults())
    sent = [send(calm, 0) for _ in range(STREAM_QUEUE_MAX + 1)]
    assert [one.breaks for one in sent] == [False] * STREAM_QUEUE_MAX + [True]
    assert calm.streams.bytes_peak == 100 * STREAM_QUEUE_MAX
    assert calm.streams.overflows == 1


@pytest.mark.parametrize("loss", [0.2, 0.5])
def test_streams_get_through_what_datagrams_do_not(loss: float) -> None:
    lossy = network(Faults(delay=EXACT, loss=loss))
    broken = 0
    for i in range(300):
        sent = lossy.stream(0, 1, 30 * SECOND_US * i, 10)
        assert sent is not None
        if sent.breaks:
            broken += 1
            assert lossy.streams.broken(0, 1, sent.generation)
    assert broken < 300 * loss / 2
