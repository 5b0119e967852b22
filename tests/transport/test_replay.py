"""The window against replay, compared with a plain set, and the table of senders."""

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.transport.replay import WINDOW, ReplayWindow, Senders

STEPS = st.lists(
    st.one_of(st.integers(-40, 40), st.integers(-WINDOW - 40, WINDOW + 40), st.integers(-3 * WINDOW, 5 * WINDOW)),
    max_size=60,
)


@given(st.integers(1, 2**47), STEPS)
def test_the_window_takes_each_number_once_and_none_that_is_too_old(first: int, steps: list[int]) -> None:
    window, seen, highest = ReplayWindow(first), {first}, first
    for step in steps:
        number = highest + step
        # What an unbounded memory would say, but for those below the first and those behind the window.
        expected = number > first and number not in seen and number > highest - WINDOW
        assert window.is_new(number) == expected
        if expected:
            window.take(number)
            seen.add(number)
            highest = max(highest, number)


def test_reordering_within_the_window_loses_nothing() -> None:
    window = ReplayWindow(10)
    window.take(10 + WINDOW)
    for number in range(11, 10 + WINDOW):
        assert window.is_new(number)
        window.take(number)
        assert not window.is_new(number)
    assert not window.is_new(10)


def test_an_earlier_run_and_another_process_of_the_same_run_are_told_apart() -> None:
    senders: Senders[str] = Senders()
    assert senders.judge(b"a", 5, b"salt", 7) == "ok"
    senders.take(b"a", 5, b"salt", 7, "cipher")
    assert senders.judge(b"a", 5, b"salt", 7) == "replay"
    assert senders.judge(b"a", 5, b"salt", 6) == "replay"
    assert senders.judge(b"a", 5, b"salt", 8) == "ok"
    assert senders.judge(b"a", 5, b"other", 8) == "duplicate"
    assert senders.judge(b"a", 4, b"older", 99) == "old_boot"
    assert senders.judge(b"a", 6, b"newer", 1) == "ok"
    senders.take(b"a", 6, b"newer", 1, "next")
    assert senders.judge(b"a", 5, b"salt", 9) == "old_boot"
    assert (senders.kept(b"a", 5, b"salt"), senders.kept(b"a", 6, b"newer")) == (None, "next")


def test_judging_changes_nothing() -> None:
    senders: Senders[str] = Senders()
    for number in range(50):
        assert senders.judge(b"a", 2**50, b"forged", number) == "ok"
    assert len(senders) == 0


def test_a_boot_known_from_a_member_record_shuts_out_earlier_runs_at_once() -> None:
    senders: Senders[str] = Senders()
    senders.expect(b"a", 9)
    assert senders.judge(b"a", 8, b"salt", 1) == "old_boot"
    assert senders.judge(b"a", 9, b"salt", 1) == "ok"
    senders.take(b"a", 9, b"salt", 1, "cipher")
    senders.expect(b"a", 9)
    senders.expect(b"a", 3)
    assert senders.judge(b"a", 9, b"salt", 1) == "replay"
    assert senders.kept(b"a", 9, b"salt") == "cipher"
    senders.expect(b"a", 10)
    assert senders.judge(b"a", 9, b"salt", 2) == "old_boot"


def test_the_table_is_bounded_and_forgets_who_was_heard_least_lately() -> None:
    senders: Senders[str] = Senders(senders_max=3)
    for name in (b"a", b"b", b"c"):
        senders.take(name, 1, b"s", 1, "")
    senders.take(b"a", 1, b"s", 2, "")
    senders.expect(b"d", 1)
    assert (len(senders), senders.forgotten) == (3, 1)
    assert senders.judge(b"a", 1, b"s", 2) == "replay"
    assert senders.judge(b"b", 1, b"s", 1) == "ok"
