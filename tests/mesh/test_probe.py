import itertools
from collections import Counter
from functools import partial
from random import Random

import pytest

from p2pkv.mesh.health import LocalHealth
from p2pkv.mesh.probe import Direct, Indirect, Prober, Silent


def make_prober(members: str = "", *, seed: int = 0, helpers: int = 2, health: LocalHealth | None = None) -> Prober:
    prober = Prober(
        period_s=1.0,
        timeout_s=0.25,
        helpers=helpers,
        sequence=itertools.count(1),
        random=Random(seed),
        health=health or LocalHealth(enabled=True),
    )
    prober.start(0.0)
    for member in members:
        prober.insert(member)
    return prober


def begin(prober: Prober) -> tuple[Direct, float]:
    """Let the first probe start; return it and the time."""
    at = prober.next_deadline()
    (step,) = prober.on_time(at)
    assert isinstance(step, Direct)
    return step, at


def test_the_first_probe_comes_within_a_period_and_not_in_step() -> None:
    starts = {make_prober("b", seed=seed).next_deadline() for seed in range(10)}
    assert len(starts) == 10
    assert all(0 <= at < 1 for at in starts)


def test_a_silent_member_is_probed_directly_then_indirectly_then_judged() -> None:
    prober = make_prober("bcd")
    probe, at = begin(prober)
    assert prober.next_deadline() == at + 0.25
    (step,) = prober.on_time(at + 0.25)
    assert isinstance(step, Indirect)
    assert (step.seq, step.target) == (probe.seq, probe.target)
    assert sorted((*step.helpers, step.target)) == ["b", "c", "d"]
    assert prober.next_deadline() == pytest.approx(at + 1.0)
    verdict, following = prober.on_time(prober.next_deadline())
    assert verdict == Silent(probe.target, asked=2, nacks=0)
    assert isinstance(following, Direct)


@pytest.mark.parametrize("after", [0.1, 0.9])
def test_an_answer_before_or_after_asking_helpers_saves_the_member(after: float) -> None:
    prober = make_prober("bcd")
    probe, at = begin(prober)
    if after > 0.25:
        prober.on_time(at + 0.25)
    assert prober.on_ack(probe.seq, probe.target)
    assert prober.next_deadline() == pytest.approx(at + 1.0)
    (step,) = prober.on_time(prober.next_deadline())
    assert isinstance(step, Direct)


def test_an_answer_to_another_probe_or_of_another_member_counts_for_nothing() -> None:
    prober = make_prober("bcd")
    probe, at = begin(prober)
    assert not prober.on_ack(probe.seq + 1, probe.target)
    assert not prober.on_ack(probe.seq, "mallory")
    assert isinstance(prober.on_time(at + 0.25)[0], Indirect)


def test_a_node_that_was_late_itself_still_asks_helpers_before_it_judges() -> None:
    prober = make_prober("bcd")
    _, at = begin(prober)
    (step,) = prober.on_time(at + 60.0)
    assert isinstance(step, Indirect)
    assert prober.next_deadline() == at + 60.75


def test_the_only_other_member_is_judged_without_helpers() -> None:
    prober = make_prober("b")
    _, at = begin(prober)
    assert prober.on_time(at + 0.25) == (Indirect(1, "b", ()),)
    assert prober.on_time(prober.next_deadline())[0] == Silent("b", asked=0, nacks=0)


def test_every_member_is_probed_once_per_round() -> None:
    prober = make_prober("bcdef", seed=1)
    at = prober.next_deadline()
    for _ in range(3):
        targets = []
        for _ in range(5):
            (step,) = prober.on_time(at)
            assert isinstance(step, Direct)
            targets.append(step.target)
            assert prober.on_ack(step.seq, step.target)
            at += 1.0
        assert sorted(targets) == list("bcdef")


def test_a_newcomer_may_come_at_any_place_of_the_round() -> None:
    places: Counter[int] = Counter()
    for seed in range(300):
        prober = make_prober("bcd", seed=seed)
        prober.insert("new")
        places[prober._order.index("new")] += 1
    assert sorted(places) == [0, 1, 2, 3]
    assert min(places.values()) > 50


def test_a_newcomer_does_not_make_anybody_be_probed_twice_in_a_round() -> None:
    for seed in range(50):
        prober = make_prober("bcdef", seed=seed)
        seen, at = [], prober.next_deadline()
        for i in range(5):
            (step,) = prober.on_time(at)
            assert isinstance(step, Direct)
            seen.append(step.target)
            prober.on_ack(step.seq, step.target)
            if i == 2:
                prober.insert("new")
            at += 1.0
        assert len(set(seen)) == 5


def test_members_that_come_and_go_within_a_round_do_not_make_others_be_skipped() -> None:
    for seed in range(50):
        prober = make_prober("bcdef", seed=seed)
        seen, at = [], prober.next_deadline()
        for i in range(6):
            steps = prober.on_time(at)
            for step in steps:
                assert isinstance(step, Direct)
                seen.append(step.target)
                prober.on_ack(step.seq, step.target)
            if i == 1:
                prober.remove(seen[0])
                prober.insert("new")
            at += 1.0
        assert set("bcdef") <= set(seen) | {seen[0]}


def test_a_member_removed_while_it_is_probed_is_not_judged() -> None:
    prober = make_prober("b")
    _, at = begin(prober)
    prober.remove("b")
    prober.remove("b")
    assert prober.on_time(at + 0.25) == ()
    assert prober.on_time(at + 1.0) == ()


def test_nobody_to_probe_is_no_reason_to_stop() -> None:
    prober = make_prober()
    at = prober.next_deadline()
    assert prober.on_time(at) == ()
    assert prober.next_deadline() == at + 1.0


def test_early_and_repeated_calls_do_nothing() -> None:
    prober = make_prober("bc")
    _, at = begin(prober)
    assert prober.on_time(at) == ()
    assert prober.on_time(at + 0.1) == ()


def test_a_nack_counts_once_and_only_of_a_helper_that_was_asked_for_this_probe() -> None:
    prober = make_prober("bcd")
    probe, at = begin(prober)
    prober.on_nack(probe.seq, probe.target, "c", at)
    (asked,) = prober.on_time(at + 0.25)
    assert isinstance(asked, Indirect)
    prober.on_nack(probe.seq, probe.target, asked.helpers[0], at + 0.6)
    prober.on_nack(probe.seq, probe.target, asked.helpers[0], at + 0.6)
    prober.on_nack(probe.seq, probe.target, "mallory", at + 0.6)
    prober.on_nack(probe.seq + 1, probe.target, asked.helpers[1], at + 0.6)
    assert prober.on_time(at + 1.0)[0] == Silent(probe.target, asked=2, nacks=1)


@pytest.mark.parametrize("stream_first", [True, False])
def test_a_probe_is_over_as_soon_as_all_helpers_and_two_streams_have_reported_failure(stream_first: bool) -> None:
    prober = make_prober("bcd")
    probe, at = begin(prober)
    knock_failed = partial(prober.on_knock_failed, probe.target, refused=False)
    assert knock_failed(at + 0.1) is None, "that was an earlier message: nothing went over the stream yet"
    (asked,) = prober.on_time(at + 0.25)
    assert isinstance(asked, Indirect)
    assert knock_failed(at + 0.26) == probe.seq, "the stream was an old one: another is worth a try"
    if stream_first:
        assert knock_failed(at + 0.3) is None
    for helper in asked.helpers:
        assert prober.next_deadline() == at + 1.0
        prober.on_nack(probe.seq, probe.target, helper, at + 0.5)
    if not stream_first:
        assert prober.next_deadline() == at + 1.0
        assert knock_failed(at + 0.5) is None
    assert prober.next_deadline() == at + 0.5
    assert prober.on_time(at + 0.5) == (Silent(probe.target, asked=2, nacks=2),)
    assert prober.next_deadline() == at + 1.0, "the next probe is no sooner for it"


def test_a_stream_that_fails_is_not_enough_where_there_is_no_helper() -> None:
    prober = make_prober("b")
    probe, at = begin(prober)
    prober.on_time(at + 0.25)
    prober.on_knock_failed(probe.target, at + 0.3, refused=False)
    prober.on_knock_failed(probe.target, at + 0.3, refused=False)
    assert prober.next_deadline() == at + 1.0


def test_a_machine_that_refuses_ends_the_probe_of_its_member_and_no_other() -> None:
    prober = make_prober("bcd")
    probe, at = begin(prober)
    assert prober.on_knock_failed(probe.target, at + 0.1, refused=True) is None
    assert prober.next_deadline() == at + 0.25, "a datagram is still waited for"
    prober.on_time(at + 0.25)
    prober.on_knock_failed("stranger", at + 0.3, refused=True)
    assert prober.next_deadline() == at + 1.0
    assert prober.on_knock_failed(probe.target, at + 0.3, refused=True) is None, "no other stream is worth a try"
    assert prober.on_time(at + 0.3) == (Silent(probe.target, asked=2, nacks=0, refused=True),)
    assert prober.next_deadline() == at + 1.0, "the next probe is no sooner for it"


def test_a_node_that_is_unwell_waits_longer_in_each_phase_and_between_probes() -> None:
    health = LocalHealth(enabled=True)
    for _ in range(3):
        health.on_refutation()
    prober = make_prober("bcd", health=health)
    _, at = begin(prober)
    assert prober.next_deadline() == pytest.approx(at + 4 * 0.25)
    prober.on_time(prober.next_deadline())
    assert prober.next_deadline() == pytest.approx(at + 4 * 1.0)


def test_an_answer_does_not_bring_the_next_probe_forward_for_a_node_that_is_unwell() -> None:
    health = LocalHealth(enabled=True)
    health.on_refutation()
    prober = make_prober("bcd", health=health)
    probe, at = begin(prober)
    prober.on_ack(probe.seq, probe.target)
    assert prober.next_deadline() == pytest.approx(at + 2.0)
