"""When lists are compared: rarely at rest, soon and several times after something was learnt."""

from random import Random

import pytest

from p2pkv.mesh.pace import EAGER_COMPARISONS, SETTLED_COMPARISONS, SOON_S, Pace
from p2pkv.mesh.push_pull import push_pull_scale


def make_pace(seed: int = 0) -> Pace:
    pace = Pace(period_s=30.0, random=Random(seed))
    pace.start(0.0)
    return pace


def waits(pace: Pace, count: int, *, members: int = 2) -> list[float]:
    """Let it run from deadline to deadline, and return the times in between."""
    found, now = [], pace.next_deadline()
    for _ in range(count):
        assert not pace.due(now - 0.001, members=members)
        assert pace.due(now, members=members)
        found.append(pace.next_deadline() - now)
        now = pace.next_deadline()
    return found


def test_the_first_is_within_a_period_and_spread_over_it() -> None:
    firsts = [make_pace(seed).next_deadline() for seed in range(200)]
    assert 0 <= min(firsts) < 3
    assert 27 < max(firsts) <= 30


@pytest.mark.parametrize("members", [2, 32, 128, 1000])
def test_at_rest_there_is_one_per_period_and_fewer_in_larger_meshes(members: int) -> None:
    period_s = 30.0 * push_pull_scale(members)
    found = waits(make_pace(), 400, members=members)[10:]
    assert min(found) >= 0.5 * period_s
    assert max(found) <= 1.5 * period_s
    assert sum(found) / len(found) == pytest.approx(period_s, rel=0.05)


def test_after_news_there_are_some_at_once_and_then_ever_fewer() -> None:
    pace = make_pace()
    pace.soon(5.0)
    assert pace.next_deadline() <= 5.0 + 1.5 * SOON_S
    found = waits(pace, EAGER_COMPARISONS + 7)
    nominal = [SOON_S] * (EAGER_COMPARISONS + 1) + [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert all(0.5 * wait_s <= got <= 1.5 * wait_s for got, wait_s in zip(found, nominal, strict=True))


def test_news_never_puts_a_comparison_off() -> None:
    pace = make_pace()
    for tenth in range(100):
        before = pace.next_deadline()
        pace.soon(tenth / 10)
        assert pace.next_deadline() <= before


def test_it_is_settled_after_comparisons_in_vain_and_no_longer_when_one_has_told_something() -> None:
    pace = Pace(period_s=30.0, random=Random(0))
    pace.start(0.0)
    pace.soon(0.0)
    for _ in range(SETTLED_COMPARISONS):
        assert not pace.is_settled
        assert pace.due(pace.next_deadline(), members=10)
    assert pace.is_settled
    pace.soon(pace.next_deadline())
    assert not pace.is_settled
