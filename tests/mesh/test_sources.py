"""When sources of seeds are looked at again, and what is kept of what they gave."""

from itertools import pairwise
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.mesh.sources import ADDRESSES_MAX, ANSWER_S, PERIODS_S, RETRY_MAX_S, Sources

DNS, FILE = "dns://seeds:7710", "file:///peers"


def times(sources: Sources, count: int, *, alone: bool, fails: bool = False, start: float = 0.0) -> list[float]:
    found = []
    now = start
    for _ in range(count):
        now = max(now, sources.next_deadline(alone=alone))
        found.append(now)
        (source,) = sources.due(now, alone=alone)
        if fails:
            sources.on_failed(source, "why", now)
        else:
            sources.on_resolved(source, ("a:1",), now)
    return found


def test_without_sources_nothing_is_ever_due() -> None:
    sources = Sources((), retry_s=0.5)
    assert sources.next_deadline(alone=True) == inf
    assert sources.due(99.0, alone=True) == ()


def test_a_source_that_answers_is_looked_at_once_per_period_of_its_scheme() -> None:
    assert times(Sources((DNS,), retry_s=0.5), 3, alone=False) == [0.0, 30.0, 60.0]
    assert times(Sources((FILE,), retry_s=0.5), 3, alone=False) == [0.0, 2.0, 4.0]


def test_a_node_that_is_alone_looks_more_often_at_first() -> None:
    assert times(Sources((DNS,), retry_s=0.5), 8, alone=True) == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5]


def test_a_source_that_fails_is_tried_again_at_growing_intervals() -> None:
    found = times(Sources((DNS,), retry_s=0.5), 12, alone=False, fails=True)
    waits = [after - before for before, after in pairwise(found)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]
    assert waits[-1] == RETRY_MAX_S


def test_a_failure_keeps_what_was_given_before_and_says_when_and_why() -> None:
    sources = Sources((DNS,), retry_s=0.5)
    times(sources, 1, alone=False)
    sources.on_failed(DNS, "no answer", 31.0)
    state = sources.state(DNS)
    assert state is not None
    assert (state.addresses, state.resolved_at, state.failed_at, state.reason) == (("a:1",), 0.0, 31.0, "no answer")
    assert sources.addresses() == ("a:1",)


def test_an_answer_replaces_what_was_given_before() -> None:
    sources = Sources((DNS, FILE), retry_s=0.5)
    sources.on_resolved(DNS, ("a:1", "b:1", "a:1"), 0.0)
    sources.on_resolved(FILE, ("b:1", "c:1"), 0.0)
    assert sources.addresses() == ("a:1", "b:1", "c:1")
    sources.on_resolved(DNS, (), 1.0)
    assert sources.addresses() == ("b:1", "c:1")


def test_an_answer_that_never_comes_is_a_failure_in_the_end() -> None:
    sources = Sources((DNS,), retry_s=0.5)
    assert sources.due(0.0, alone=True) == (DNS,)
    assert sources.due(ANSWER_S - 1, alone=True) == ()
    assert sources.next_deadline(alone=True) == ANSWER_S
    assert sources.due(ANSWER_S, alone=True) == ()
    state = sources.state(DNS)
    assert state is not None
    assert state.reason == "no answer within 120 s"
    assert sources.due(ANSWER_S + 0.5, alone=True) == (DNS,)


def test_more_addresses_than_the_limit_are_left_out_and_complained_of() -> None:
    sources = Sources((DNS,), retry_s=0.5)
    sources.on_resolved(DNS, tuple(f"a:{i}" for i in range(1, 1000)), 0.0)
    state = sources.state(DNS)
    assert state is not None
    assert len(state.addresses) == ADDRESSES_MAX
    assert state.reason == "999 addresses, limit 128"
    assert state.failures == 0


def test_what_nobody_asked_for_is_ignored() -> None:
    sources = Sources((DNS,), retry_s=0.5)
    sources.on_resolved("dns://other:1", ("x:1",), 0.0)
    sources.on_failed("dns://other:1", "why", 0.0)
    assert sources.addresses() == ()
    assert sources.state("dns://other:1") is None


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 100)), max_size=40))
def test_whatever_happens_each_source_is_looked_at_again_and_never_in_a_tight_loop(
    story: list[tuple[bool, bool, float]],
) -> None:
    sources, now = Sources((DNS,), retry_s=0.5), 0.0
    for fails, alone, later_s in story:
        now += later_s
        for source in sources.due(now, alone=alone):
            if fails:
                sources.on_failed(source, "why", now)
            else:
                sources.on_resolved(source, ("a:1",), now)
            assert now + 0.5 <= sources.next_deadline(alone=True) <= sources.next_deadline(alone=False)
        assert sources.next_deadline(alone=False) <= now + max(RETRY_MAX_S, *PERIODS_S.values(), ANSWER_S)
