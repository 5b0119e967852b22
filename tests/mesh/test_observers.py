"""Who observes whom, and probes out of turn: that they step as the prober does, side by side, and are bounded."""

from itertools import count
from statistics import mean

from p2pkv.mesh.health import LocalHealth
from p2pkv.mesh.observers import Observations, is_observer
from p2pkv.mesh.probe import Direct, Indirect, Silent


def observations(*, at_most: int = 8, health: LocalHealth | None = None) -> Observations:
    return Observations(
        period_s=1.0,
        timeout_s=0.4,
        sequence=count(1),
        health=health or LocalHealth(enabled=False),
        observations_max=at_most,
    )


def test_in_a_small_mesh_everybody_observes_everybody() -> None:
    assert all(is_observer(f"n{me}", "x", members=11, count=10) for me in range(10))


def test_in_a_large_mesh_about_as_many_as_asked_for_observe_one_member_and_others_another() -> None:
    watchers = [
        {me for me in range(1000) if me != who and is_observer(f"n{me}", f"n{who}", members=1000, count=10)}
        for who in range(100)
    ]
    assert 9 < mean(map(len, watchers)) < 11
    assert min(map(len, watchers)) >= 2
    assert len({frozenset(one) for one in watchers}) == 100


def test_nobody_observes_where_that_is_switched_off() -> None:
    assert not is_observer("a", "b", members=2, count=0)


def test_a_suspect_is_pinged_at_once_then_over_the_stream_and_then_found_silent() -> None:
    watch = observations()
    watch.begin("a")
    assert watch.next_deadline() <= 5.0
    assert watch.on_time(5.0) == (Direct(1, "a"),)
    assert watch.next_deadline() == 5.4
    assert watch.on_time(5.4) == (Indirect(1, "a", helpers=()),)
    assert watch.on_time(5.9) == ()
    assert watch.on_time(6.0) == (Silent("a", asked=0, nacks=0),)
    assert (len(watch), watch.next_deadline()) == (0, float("inf"))


def test_an_answer_ends_it_and_one_to_another_question_does_not() -> None:
    watch = observations()
    watch.begin("a")
    watch.on_time(0.0)
    assert [watch.on_ack(2, "a"), watch.on_ack(1, "b"), watch.on_ack(1, "a"), watch.on_ack(1, "a")] == [
        False,
        False,
        True,
        False,
    ]
    assert watch.on_time(9.0) == ()


def test_several_suspects_are_observed_side_by_side_each_once_and_no_more_than_the_bound() -> None:
    watch = observations(at_most=2)
    for member in "aabc":
        watch.begin(member)
    assert watch.refused == 1
    assert [step.target for step in watch.on_time(0.0)] == ["a", "b"]
    watch.cancel("a")
    watch.begin("c")
    assert [step.target for step in watch.on_time(0.1)] == ["c"]


def test_an_unwell_observer_waits_longer_before_it_blames_the_suspect() -> None:
    health = LocalHealth(enabled=True)
    health.on_refutation()
    watch = observations(health=health)
    watch.begin("a")
    watch.on_time(0.0)
    assert watch.next_deadline() == 0.8
