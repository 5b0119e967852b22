"""Which block from whom, or that recomputing is cheaper."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.links import LinkEstimate
from p2pkv.planner import Cost, Plan, Run, plan

GBIT = 125e6
LINKS = {
    "fast": LinkEstimate(100 * GBIT, 0.001),
    "slow": LinkEstimate(1 * GBIT, 0.001),
    "far": LinkEstimate(100 * GBIT, 0.2),
}


def planned(claims: dict[str, int], *, start: int = 0, stop: int = 10, cost: Cost | None = None) -> Plan:
    return plan(start=start, stop=stop, claims=claims, link=LINKS.__getitem__, cost=cost)


def test_one_peer_that_claims_everything_gives_everything() -> None:
    assert planned({"slow": 10}) == Plan((Run("slow", 0, 10),), "planned")


def test_the_fastest_goes_first_and_a_deeper_one_goes_on() -> None:
    assert planned({"slow": 10, "fast": 4}) == Plan((Run("fast", 0, 4), Run("slow", 4, 10)), "planned")


def test_of_two_as_fast_the_nearer_gives() -> None:
    assert planned({"far": 10, "fast": 10}).runs == (Run("fast", 0, 10),)


def test_a_claim_beyond_the_chain_counts_as_the_chain() -> None:
    assert planned({"fast": 1000}) == Plan((Run("fast", 0, 10),), "planned")


def test_what_is_here_already_is_not_fetched() -> None:
    assert planned({"fast": 10}, start=7).runs == (Run("fast", 7, 10),)
    assert planned({"fast": 7}, start=7) == Plan((), "no peer claims the next block")


def test_a_chain_that_nobody_claims_whole_is_fetched_as_far_as_it_goes() -> None:
    fetched = planned({"fast": 6})
    assert fetched == Plan((Run("fast", 0, 6),), "no peer claims more")
    assert fetched.stop == 6


def test_without_claims_there_is_nothing_to_do() -> None:
    assert planned({}) == Plan((), "no peer claims the next block")
    assert planned({}).stop == 0


def test_a_fetch_slower_than_computing_is_not_planned() -> None:
    megabyte_blocks = Cost(block_bytes=10**6, prefill_block_s=0.001)
    assert planned({"slow": 10}, cost=megabyte_blocks) == Plan((), "recomputing is cheaper")
    assert planned({"slow": 10, "fast": 10}, cost=megabyte_blocks).runs == (Run("fast", 0, 10),)


def test_a_far_peer_pays_for_many_blocks_and_not_for_one() -> None:
    cost = Cost(block_bytes=1000, prefill_block_s=0.05)
    assert planned({"far": 10}, cost=cost).runs == (Run("far", 0, 10),)
    assert planned({"far": 1}, cost=cost) == Plan((), "recomputing is cheaper")


def test_only_what_would_be_fetched_is_weighed() -> None:
    """Nine blocks that are here already must not make up for one that does not pay."""
    cost = Cost(block_bytes=1000, prefill_block_s=0.05)
    assert planned({"far": 10}, start=9, cost=cost) == Plan((), "recomputing is cheaper")
    assert planned({"far": 10}, start=5, cost=cost).runs == (Run("far", 5, 10),)


def test_a_fetch_exactly_as_slow_as_computing_is_not_worth_the_trouble() -> None:
    links = {"b": LinkEstimate(1024.0, 0.0)}
    cost = Cost(block_bytes=1024, prefill_block_s=1.0)
    assert plan(start=0, stop=4, claims={"b": 4}, link=links.__getitem__, cost=cost).runs == ()


def test_without_figures_every_fetch_is_taken_to_pay() -> None:
    assert planned({"far": 1}).runs == (Run("far", 0, 1),)


@given(
    claims=st.dictionaries(st.sampled_from([*LINKS]), st.integers(0, 20)),
    start=st.integers(0, 12),
    more=st.integers(0, 12),
    cost=st.none() | st.builds(Cost, block_bytes=st.integers(1, 10**8), prefill_block_s=st.floats(0, 1)),
)
def test_runs_join_without_a_gap_and_never_exceed_a_claim(
    claims: dict[str, int], start: int, more: int, cost: Cost | None
) -> None:
    stop = start + more
    found = plan(start=start, stop=stop, claims=claims, link=LINKS.__getitem__, cost=cost)
    position = start
    for run in found.runs:
        assert run.start == position
        assert position < run.stop <= min(claims[run.peer], stop)
        position = run.stop
    assert len({run.peer for run in found.runs}) == len(found.runs)
    assert found.stop == (position if found.runs else 0)
    assert found.reason
    if cost is None:
        assert position == max(start, min(stop, max(claims.values(), default=0)))


@pytest.mark.parametrize("claims", [{"fast": 5, "slow": 5}, {"slow": 5, "fast": 5}])
def test_a_plan_does_not_depend_on_the_order_of_claims(claims: dict[str, int]) -> None:
    assert planned(claims).runs == (Run("fast", 0, 5),)
