from p2pkv.load import MEMORY_S, LoadGauge


def loads(gauge: LoadGauge, seconds: range, bytes_s: int) -> list[int]:
    found = []
    for second in seconds:
        gauge.sent(bytes_s)
        found.append(gauge.percent(float(second)))
    return found


def test_a_node_that_serves_nothing_has_none() -> None:
    assert loads(LoadGauge(capacity_bytes_s=1000), range(5), 0) == [0] * 5


def test_a_steady_rate_is_its_share_of_the_link() -> None:
    rising = loads(LoadGauge(capacity_bytes_s=1000), range(60), 250)
    assert rising == sorted(rising)
    assert rising[-1] == 25


def test_a_short_burst_is_forgotten_after_a_few_times_the_memory() -> None:
    gauge = LoadGauge(capacity_bytes_s=1000)
    burst = loads(gauge, range(2), 1000)
    assert 0 < burst[-1] < 40
    assert loads(gauge, range(2, 2 + 5 * int(MEMORY_S)), 0)[-1] == 0


def test_more_than_the_link_can_do_is_a_hundred_and_a_clock_that_stands_still_changes_nothing() -> None:
    gauge = LoadGauge(capacity_bytes_s=1000)
    assert loads(gauge, range(60), 10**9)[-1] == 100
    assert gauge.percent(59.0) == 100
