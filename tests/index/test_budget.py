"""The budget: no window of a second holds more than it says, wherever the window begins, and what fits is let go."""

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.index.budget import WINDOW_S, Budget

wishes = st.lists(st.tuples(st.floats(0, 0.4), st.integers(1, 120)), max_size=80)


@given(wishes, st.integers(120, 400))
def test_no_window_holds_more_than_the_budget(wanted: list[tuple[float, int]], bytes_s: int) -> None:
    budget, now, sent = Budget(bytes_s), 0.0, list[tuple[float, int]]()
    for pause_s, size in wanted:
        now += pause_s
        if size <= budget.room(now):
            budget.take(now, size)
            sent.append((now, size))
    for start, _ in sent:
        assert sum(size for at, size in sent if start <= at < start + WINDOW_S) <= bytes_s


@given(wishes)
def test_who_waits_until_there_is_room_is_let_through(wanted: list[tuple[float, int]]) -> None:
    budget, now = Budget(120), 0.0
    for pause_s, size in wanted:
        now += pause_s
        waits = 0
        while size > budget.room(now):
            assert budget.next_room_s() > now
            now = budget.next_room_s()
            waits += 1
        assert waits <= 25, "entries are gathered"
        budget.take(now, size)


def test_what_is_not_used_is_not_saved_up() -> None:
    budget = Budget(100)
    assert budget.room(1000.0) == 100
    budget.take(1000.0, 100)
    assert budget.room(1000.99) == 0
    assert budget.room(1001.0) == 100
