"""The number of connections follows what is faster, costs little where nothing is, and forgets what it need not know."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from p2pkv.transport.shares import RUN_BYTES
from p2pkv.transport.widths import MEASURED_BYTES_MIN, PAUSE_MAX, Widths

PULL_BYTES = 64 * 2**20
MOST = 8


def one_flow_limited(width: int, *, link: float = 4e9, flow: float = 1e9) -> float:
    """Bytes per second where each connection has a limit of its own below that of the link."""
    return min(link, width * flow)


def pulled(
    widths: Widths,
    rate: Callable[[int], float],
    pulls: int,
    *,
    noise: float = 0.0,
    seed: int = 1,
    pull_bytes: int = PULL_BYTES,
) -> list[int]:
    """Pull so often; return how many connections each pull used."""
    random, used = Random(seed), []
    for _ in range(pulls):
        width = widths.choose("p", pull_bytes)
        used.append(width)
        speed = rate(width) * (1 + random.uniform(-noise, noise))
        widths.measured("p", width, pull_bytes, pull_bytes / speed)
    return used


@pytest.mark.parametrize("flows", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_as_many_are_used_as_fill_the_link_and_no_more(flows: int, seed: int) -> None:
    widths = Widths(MOST)
    used = pulled(widths, lambda width: one_flow_limited(width, link=flows * 1e9), 200, noise=0.04, seed=seed)
    assert widths.settled("p") == flows
    assert used[0] == 1
    assert max(used) <= min(MOST, 2 * flows)


def test_where_nothing_is_gained_trials_become_rare() -> None:
    widths = Widths(MOST)
    used = pulled(widths, lambda _: 1e9, 4000)
    assert widths.settled("p") == 1
    assert 1 - used.count(1) / len(used) < 0.02
    more = [i for i, width in enumerate(used) if width > 1]
    assert more, "it was tried"
    assert max(after - before for before, after in pairwise(more)) <= PAUSE_MAX + 4


def test_more_that_are_slower_are_given_up() -> None:
    widths = Widths(MOST)
    pulled(widths, one_flow_limited, 100)
    assert widths.settled("p") == 4
    pulled(widths, lambda width: 4e9 / width, 1500)
    assert widths.settled("p") == 1


def test_a_link_that_becomes_wider_is_noticed() -> None:
    widths = Widths(MOST)
    pulled(widths, lambda _: 1e9, 300)
    assert widths.settled("p") == 1
    pulled(widths, one_flow_limited, 1500)
    assert widths.settled("p") == 4


def test_small_pulls_use_few_and_bring_about_no_trial() -> None:
    widths = Widths(MOST)
    assert set(pulled(widths, one_flow_limited, 100, pull_bytes=MEASURED_BYTES_MIN - 1)) == {1}
    pulled(widths, one_flow_limited, 100)
    assert widths.choose("p", 4 * RUN_BYTES) == 4
    assert widths.choose("p", 2 * RUN_BYTES) == 2
    assert widths.choose("p", 1) == 1
    assert widths.choose("p", 0) == 1


def test_a_trial_is_not_of_more_than_a_pull_has_work_for() -> None:
    widths = Widths(16)
    used = pulled(widths, lambda width: width * 1e9, 1000, pull_bytes=5 * RUN_BYTES)
    assert max(used) == 5
    assert widths.settled("p") == 5


def test_a_trial_that_cannot_be_made_is_put_off() -> None:
    """Because threads are scarce, say: fewer connections were used than were chosen."""
    widths = Widths(MOST)
    for _ in range(200):
        widths.choose("p", PULL_BYTES)
        widths.measured("p", 1, PULL_BYTES, 1.0)
    assert widths.settled("p") == 1
    pulled(widths, one_flow_limited, 100)
    assert widths.settled("p") == 4


def test_a_fixed_number_is_never_changed() -> None:
    assert set(pulled(Widths(3, least=3), one_flow_limited, 100)) == {3}
    assert set(pulled(Widths(1), one_flow_limited, 100)) == {1}


def test_the_peer_not_pulled_from_for_longest_is_forgotten() -> None:
    widths = Widths(MOST, peers_max=2)
    pulled(widths, one_flow_limited, 100)
    widths.measured("q", 1, PULL_BYTES, 1.0)
    assert widths.settled("p") == 4
    widths.measured("r", 1, PULL_BYTES, 1.0)
    assert widths.settled("p") == 1
