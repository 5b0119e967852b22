import pytest

from p2pkv.mesh.suspicion import Suspects, confirmations_wanted, log_scale, remaining_s, timeout_min_s, timeout_s


@pytest.mark.parametrize(
    ("confirmations", "elapsed_s", "remaining"),
    [(0, 0.0, 30.0), (1, 2.0, 14.0), (2, 3.0, 4.810), (3, 4.0, -2.0), (4, 5.0, -3.0), (5, 10.0, -8.0)],
)
def test_what_remains_matches_memberlist(confirmations: int, elapsed_s: float, remaining: float) -> None:
    # memberlist cuts to milliseconds, we do not.
    left = remaining_s(confirmations, elapsed_s, wanted=3, min_s=2.0, max_s=30.0)
    assert left == pytest.approx(remaining, abs=1e-3)


@pytest.mark.parametrize(("members", "scale_ms"), [(5, 1000), (50, 1698), (100, 2000), (500, 2698), (1000, 3000)])
def test_time_grows_with_the_logarithm_of_the_mesh_as_in_memberlist(members: int, scale_ms: int) -> None:
    assert int(log_scale(members) * 1000) == scale_ms
    assert timeout_min_s(mult=4, members=members, period_s=0.5) == pytest.approx(2 * scale_ms / 1000, abs=2e-3)


def test_a_mesh_of_nobody_has_a_scale_too() -> None:
    assert log_scale(0) == 1.0


def test_confirmations_that_cannot_come_are_not_waited_for() -> None:
    assert confirmations_wanted(mult=4, members=4) == 2
    assert confirmations_wanted(mult=4, members=3) == 0
    assert confirmations_wanted(mult=1, members=9) == 0
    assert timeout_s(0, wanted=0, min_s=2.0, max_s=30.0) == 2.0


def test_a_suspect_is_due_at_its_deadline_and_not_before() -> None:
    suspects = Suspects()
    assert suspects.next_deadline() == float("inf")
    suspects.suspect("a", by="x", now=0.0, min_s=5.0)
    suspects.suspect("b", by="x", now=0.0, min_s=4.0)
    assert suspects.next_deadline() == 4.0
    assert suspects.due(3.9) == ()
    assert suspects.due(4.0) == ("b",)


def test_a_cleared_suspect_is_never_due() -> None:
    suspects = Suspects()
    suspects.suspect("a", by="x", now=0.0, min_s=5.0)
    suspects.clear("a")
    suspects.clear("a")
    assert len(suspects) == 0
    assert suspects.due(9.0) == ()


def test_postponing_moves_every_deadline() -> None:
    suspects = Suspects()
    suspects.suspect("a", by="x", now=0.0, min_s=5.0)
    suspects.postpone(2.5, now=6.0)
    assert suspects.due(7.0) == ()
    assert suspects.due(7.5) == ("a",)


def test_of_a_stall_a_suspicion_is_given_back_only_what_it_lived_through() -> None:
    """What arrived meanwhile is heard first, so it may be younger than the stall."""
    suspects = Suspects()
    suspects.suspect("a", by=frozenset("x"), now=119.0, min_s=5.0)
    suspects.suspect("b", by=frozenset("x"), now=120.0, min_s=5.0, max_s=30.0, wanted=3, asks=True)
    suspects.postpone(100.0, now=120.0)
    assert suspects.due(124.9) == ()
    assert suspects.due(125.0) == ("a",)
    assert suspects.overdue(125.0) == ("b",)
    assert suspects.due(150.0) == ("a", "b")


def confirmed(*accusers: str, by: str = "x", wanted: int = 3) -> tuple[Suspects, list[bool]]:
    suspects = Suspects()
    suspects.suspect("a", by=frozenset(by), now=0.0, min_s=2.0, max_s=30.0, wanted=wanted)
    return suspects, [suspects.confirm("a", frozenset(accuser)) for accuser in accusers]


def test_each_confirmation_by_another_member_brings_the_end_nearer() -> None:
    deadlines = [confirmed(*accusers)[0].next_deadline() for accusers in ("", "b", "bc", "bcd")]
    assert deadlines == pytest.approx([30.0, 16.0, 7.810, 2.0], abs=1e-3)


def test_the_same_member_twice_confirms_nothing() -> None:
    suspects, news = confirmed("b", "b", "x", "")
    assert news == [True, False, False, False]
    assert suspects.next_deadline() == pytest.approx(16.0)


def test_more_confirmations_than_wanted_are_no_news() -> None:
    assert confirmed("b", "c", "d", "e")[1] == [True, True, True, False]
    assert confirmed("b", wanted=0)[1] == [False]


def test_a_suspicion_from_nobody_in_particular_is_confirmed_by_the_second_who_is_known() -> None:
    suspects, news = confirmed("b", by="")
    assert (news, suspects.next_deadline()) == ([True], 30.0)
    suspects.confirm("a", frozenset("c"))
    assert suspects.next_deadline() == pytest.approx(16.0)


def test_a_late_confirmation_may_end_a_suspicion_at_once() -> None:
    suspects, _ = confirmed("b", "c")
    assert suspects.due(7.0) == ()
    suspects.confirm("a", frozenset("d"))
    assert suspects.due(7.0) == ("a",)


def test_who_is_not_suspected_cannot_be_confirmed() -> None:
    assert not Suspects().confirm("a", frozenset("b"))


def test_a_suspicion_that_outlasts_the_shortest_is_overdue_again_and_again_until_it_is_cleared() -> None:
    suspects = Suspects()
    suspects.suspect("a", by=frozenset("x"), now=0.0, min_s=2.0, max_s=30.0, wanted=3, asks=True)
    suspects.suspect("b", by=frozenset("x"), now=0.0, min_s=2.0, max_s=30.0, wanted=3)
    assert suspects.next_deadline() == 2.0
    assert [suspects.overdue(at) for at in (1.9, 2.0, 2.9, 3.0)] == [(), ("a",), (), ("a",)]
    suspects.postpone(1.5, now=3.5)
    assert [suspects.overdue(at) for at in (5.4, 5.5)] == [(), ("a",)]
    suspects.clear("a")
    assert suspects.overdue(9.0) == ()
