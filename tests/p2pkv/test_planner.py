"""Which block from whom, or that recomputing is cheaper."""

from collections.abc import Sequence
from itertools import product
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.planner import PEERS_PER_PLAN_MAX, Plan, Run, Terms, _time_of_all, _times, plan

FAST = Terms("fast", 10, wait_s=0.001, block_s=0.0001)
SLOW = Terms("slow", 10, wait_s=0.001, block_s=0.01)
FAR = Terms("far", 10, wait_s=0.2, block_s=0.0001)


def deep(terms: Terms, depth: int, **changes: object) -> Terms:
    fields = {name: getattr(terms, name) for name in Terms.__slots__}
    return Terms(**{**fields, "depth": depth, **changes})


def runs(*terms: Terms, start: int = 0, stop: int = 10, prefill_block_s: float | None = None) -> tuple[Run, ...]:
    return plan(start=start, stop=stop, terms=terms, prefill_block_s=prefill_block_s).runs


def seconds(terms: Sequence[Terms], found: Plan) -> float:
    by_peer = {one.peer: one for one in terms}
    took = [by_peer[run.peer].wait_s + (run.stop - run.start) * by_peer[run.peer].block_s for run in found.runs]
    return max(took, default=0.0)


def test_one_peer_that_claims_everything_gives_everything() -> None:
    found = plan(start=0, stop=10, terms=[SLOW])
    assert found.runs == (Run("slow", 0, 10),)
    assert found.reason == "planned"
    assert found.fetch_s == pytest.approx(0.101)


def test_the_fastest_goes_first_and_a_deeper_one_goes_on() -> None:
    assert runs(SLOW, deep(FAST, 4)) == (Run("fast", 0, 4), Run("slow", 4, 10))


def test_of_two_as_fast_the_nearer_gives() -> None:
    assert runs(FAR, FAST) == (Run("fast", 0, 10),)


def test_two_links_bring_a_chain_in_half_the_time() -> None:
    found = plan(start=0, stop=10, terms=[SLOW, deep(SLOW, 10, peer="twin")])
    assert found.runs == (Run("slow", 0, 5), Run("twin", 5, 10))
    assert found.fetch_s == pytest.approx(0.051)


def test_two_peers_behind_one_link_bring_it_no_sooner() -> None:
    assert runs(deep(SLOW, 10, link="host"), deep(SLOW, 10, peer="twin", link="host")) == (Run("slow", 0, 10),)


def test_of_peers_that_are_as_fast_the_one_of_lower_rank_gives() -> None:
    assert runs(deep(FAST, 1, rank=(2, 0)), deep(FAST, 1, peer="near", rank=(0, 50)), stop=1) == (Run("near", 0, 1),)


def test_no_more_peers_are_asked_than_a_plan_may_have() -> None:
    many = [deep(SLOW, 100, peer=f"{i:02}") for i in range(20)]
    assert len(runs(*many, stop=100)) == PEERS_PER_PLAN_MAX


def test_a_run_that_is_hardly_worth_a_question_is_left_to_the_neighbour() -> None:
    twins = [FAST, deep(FAST, 10, peer="twin")]
    assert len(plan(start=0, stop=10, terms=twins).runs) == 2
    assert plan(start=0, stop=10, terms=twins, run_blocks_min=6).runs == (Run("fast", 0, 10),)
    slow = [SLOW, deep(SLOW, 10, peer="twin")]
    assert len(plan(start=0, stop=10, terms=slow, run_blocks_min=6).runs) == 2, "unless it takes much longer"


def test_a_claim_beyond_the_chain_counts_as_the_chain() -> None:
    assert runs(deep(FAST, 1000)) == (Run("fast", 0, 10),)


def test_what_is_here_already_is_not_fetched() -> None:
    assert runs(FAST, start=7) == (Run("fast", 7, 10),)
    assert plan(start=7, stop=10, terms=[deep(FAST, 7)]) == Plan((), "no peer claims the next block")


def test_a_chain_that_nobody_claims_whole_is_fetched_as_far_as_it_goes() -> None:
    found = plan(start=0, stop=10, terms=[deep(FAST, 6)])
    assert (found.runs, found.reason, found.stop) == ((Run("fast", 0, 6),), "no peer claims more", 6)


def test_without_claims_there_is_nothing_to_do() -> None:
    assert plan(start=0, stop=10, terms=[]) == Plan((), "no peer claims the next block")
    assert plan(start=0, stop=10, terms=[]).stop == 0


def test_a_fetch_slower_than_computing_is_not_planned() -> None:
    found = plan(start=0, stop=10, terms=[SLOW], prefill_block_s=0.005)
    assert (found.runs, found.reason, found.compute_s) == ((), "recomputing is cheaper", 0.05)
    assert runs(SLOW, FAST, prefill_block_s=0.005) == (Run("fast", 0, 10),)


def test_a_far_peer_pays_for_many_blocks_and_not_for_one() -> None:
    assert runs(FAR, prefill_block_s=0.05) == (Run("far", 0, 10),)
    assert runs(deep(FAR, 1), stop=1, prefill_block_s=0.05) == ()
    assert runs(FAR, start=9, prefill_block_s=0.05) == (), "nine that are here already do not make up for it"


def test_the_head_may_be_fetched_and_the_tail_computed() -> None:
    """What a fast peer has comes sooner than it is computed, and what only a slow one has does not."""
    found = plan(start=0, stop=10, terms=[deep(FAST, 4), SLOW], prefill_block_s=0.005)
    assert found.runs == (Run("fast", 0, 4),)
    assert found.reason == "recomputing the rest is cheaper"
    assert found.compute_s == pytest.approx(0.03)
    assert found.recompute_s == pytest.approx(0.05)


def test_a_fetch_exactly_as_slow_as_computing_is_not_worth_the_trouble() -> None:
    assert runs(Terms("b", 4, 0.0, 1.0), stop=4, prefill_block_s=1.0) == ()


def test_figures_that_round_each_other_away_make_a_plan_all_the_same() -> None:
    terms = [Terms("a", 3, wait_s=1.0, block_s=0.0625), Terms("b", 3, wait_s=1.0, block_s=2.2250738585072014e-308)]
    assert plan(start=0, stop=3, terms=terms, prefill_block_s=None).runs[-1].stop == 3


def test_without_figures_every_fetch_is_taken_to_pay() -> None:
    assert runs(deep(FAR, 1)) == (Run("far", 0, 1),)


def test_what_cannot_be_here_in_time_is_not_asked_for() -> None:
    found = plan(start=0, stop=10, terms=[SLOW], within_s=0.055)
    assert (found.runs, found.reason) == ((Run("slow", 0, 5),), "too late to fetch the rest")
    assert plan(start=0, stop=10, terms=[SLOW], within_s=0.005).reason == "too late to fetch"


def test_a_peer_whose_claims_were_wrong_gives_only_what_no_other_claims() -> None:
    doubted = deep(FAST, 10, peer="liar", trusted=False)
    assert runs(doubted, deep(SLOW, 6)) == (Run("slow", 0, 6), Run("liar", 6, 10))
    assert runs(doubted) == (Run("liar", 0, 10),)


# -- against all there is ---------------------------------------------------------------------------------------------

figures = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5, 10.0])
some_terms = st.lists(st.tuples(st.integers(0, 7), figures, figures), max_size=3).map(
    lambda found: [Terms(f"peer{i}", *one) for i, one in enumerate(found)]
)


def least_total_s(blocks: int, terms: Sequence[Terms], prefill_block_s: float | None) -> float:
    """Return the least time for a chain, trying every way to deal every number of blocks out."""
    most = max((min(one.depth, blocks) for one in terms), default=0)
    if prefill_block_s is None:
        counts, best = ([most] if most else []), (inf if most else 0.0)
    else:
        counts, best = list(range(1, most + 1)), blocks * prefill_block_s
    for count in counts:
        for dealt in product(terms, repeat=count):
            if all(one.depth > block for block, one in enumerate(dealt)):
                took = max(one.wait_s + dealt.count(one) * one.block_s for one in dealt)
                best = min(best, took + (blocks - count) * (prefill_block_s or 0.0))
    return best


@given(blocks=st.integers(1, 6), terms=some_terms, prefill_block_s=st.none() | figures)
def test_no_other_plan_is_better(blocks: int, terms: list[Terms], prefill_block_s: float | None) -> None:
    found = plan(start=0, stop=blocks, terms=terms, prefill_block_s=prefill_block_s)
    assert found.fetch_s + found.compute_s == pytest.approx(least_total_s(blocks, terms, prefill_block_s))


@given(
    terms=st.lists(
        st.builds(
            Terms,
            peer=st.uuids().map(str),
            depth=st.integers(0, 60),
            wait_s=st.floats(0, 1),
            block_s=st.floats(0, 0.1),
            link=st.sampled_from(["", "host"]),
            rank=st.tuples(st.integers(0, 3)),
            trusted=st.booleans(),
        ),
        max_size=8,
    ),
    start=st.integers(0, 12),
    more=st.integers(0, 50),
    prefill_block_s=st.none() | st.floats(0, 0.1),
    run_blocks_min=st.integers(1, 9),
    within_s=st.none() | st.floats(0, 2),
)
def test_a_plan_is_sound_and_never_worse_than_recomputing(
    terms: list[Terms],
    start: int,
    more: int,
    prefill_block_s: float | None,
    run_blocks_min: int,
    within_s: float | None,
) -> None:
    stop = start + more
    found = plan(
        start=start,
        stop=stop,
        terms=terms,
        prefill_block_s=prefill_block_s,
        run_blocks_min=run_blocks_min,
        within_s=within_s,
    )
    depths = {one.peer: one.depth for one in terms}
    position = start
    for run in found.runs:
        assert run.start == position
        assert position < run.stop <= min(depths[run.peer], stop)
        position = run.stop
    assert found.reason
    assert seconds(terms, found) <= found.fetch_s + 1e-9
    if within_s is not None:
        assert found.fetch_s <= within_s + 1e-9
    if prefill_block_s is not None:
        assert found.fetch_s + found.compute_s <= found.recompute_s + 1e-9
        assert found.compute_s == pytest.approx((stop - position) * prefill_block_s)
    elif within_s is None:
        assert position == max([start, *(min(one.depth, stop) for one in terms)])


@pytest.mark.parametrize("order", [1, -1])
def test_a_plan_does_not_depend_on_the_order_of_claims(order: int) -> None:
    assert runs(*[FAST, SLOW, FAR][::order]) == (Run("fast", 0, 10),)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1), st.floats(0.001, 0.1)), min_size=2, max_size=4).map(
        lambda found: [Terms(f"peer{i}", *one) for i, one in enumerate(sorted(found))]
    )
)
def test_when_all_is_here_is_known_without_looking_at_every_block(peers: list[Terms]) -> None:
    depths = [one.depth for one in peers]
    assert _time_of_all(peers, depths) == pytest.approx(_times(peers, depths)[-1])


def test_figures_that_round_each_other_away_say_when_all_is_here_all_the_same() -> None:
    far_apart = [Terms("a", 1, 0.0, 0.0625), Terms("b", 1, 1.0, 2.2e-313)]
    assert _time_of_all(far_apart, [1, 1]) == _times(far_apart, [1, 1])[-1]
