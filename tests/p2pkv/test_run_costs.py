"""What the object store costs, as it lately was, and when it is worth asking."""

from p2pkv.run_costs import FRESH_S, SHARE_ASSUMED, SHARE_LEAST, RunCosts

MIB = 2**20


def worth(costs: RunCosts, *, blocks: int = 100, prefill_s: float | None = 0.05, left_s: float = 10.0) -> bool:
    return costs.is_worth_asking(blocks, MIB, prefill_block_s=prefill_s, left_s=left_s, now=0.0)


def test_a_tail_is_asked_for_if_that_beats_computing_it() -> None:
    costs = RunCosts()
    assert worth(costs)
    assert not worth(costs, prefill_s=0.001)
    assert not worth(costs, blocks=1), "one block is not worth waiting in vain for"
    assert worth(costs, prefill_s=None), "an engine that says nothing waits"


def test_what_cannot_come_in_time_is_not_asked_for() -> None:
    costs = RunCosts()
    assert not worth(costs, prefill_s=None, left_s=0.03)
    assert worth(costs, prefill_s=None, left_s=0.1)
    assert not worth(costs, prefill_s=0.011, left_s=0.2), "so little comes by then that computing it takes no longer"


def test_a_store_that_has_nothing_is_asked_for_long_tails_alone_and_never_given_up() -> None:
    costs = RunCosts()
    for _ in range(100):
        costs.on_recalled(0, 0.05, 0.0)
    assert costs.share == SHARE_LEAST
    assert not worth(costs, blocks=10)
    assert worth(costs, blocks=100)
    for _ in range(10):
        costs.on_recalled(10 * MIB, 0.1, 0.0)
    assert worth(costs, blocks=10)


def test_figures_follow_what_is_seen_and_are_forgotten_when_they_are_old() -> None:
    costs = RunCosts()
    for _ in range(50):
        costs.on_recalled(0, 1.0, 0.0)
        costs.on_recalled(100 * MIB, 100.0, 0.0)
    assert 0.9 < costs.wait_s < 1.1
    assert 0.9 * MIB < costs.read_bytes_s < 1.1 * MIB
    assert not worth(costs)
    assert not costs.is_worth_writing(8, MIB, prefill_block_s=0.5, now=0.0)
    assert costs.is_worth_writing(8, MIB, prefill_block_s=5.0, now=0.0)
    assert costs.is_worth_writing(8, MIB, prefill_block_s=None, now=0.0)
    assert costs.is_worth_asking(100, MIB, prefill_block_s=0.05, left_s=10.0, now=FRESH_S + 1)
    assert costs.share == SHARE_ASSUMED


def test_figures_stay_figures_whatever_is_reported() -> None:
    costs = RunCosts()
    for took_s in (0.0, 1e-9, 1e9):
        for size in (0, 1, 2**40):
            costs.on_recalled(size, took_s, 0.0)
            assert costs.read_bytes_s > 0
            assert costs.wait_s >= 0
            worth(costs)
