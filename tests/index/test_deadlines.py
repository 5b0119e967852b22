"""Deadlines against the plain dict they stand for."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from p2pkv.index.deadlines import Deadlines

steps = st.lists(
    st.tuples(st.sampled_from(["set", "drop", "take"]), st.sampled_from("abcd"), st.integers(0, 9)), max_size=40
)


@given(steps)
def test_they_are_a_dict_of_times(history: list[tuple[str, str, int]]) -> None:
    deadlines, plain = Deadlines(), dict[str, float]()
    for verb, peer, time in history:
        match verb:
            case "set":
                deadlines.set(peer, time)
                plain[peer] = time
            case "drop":
                deadlines.drop(peer)
                plain.pop(peer, None)
            case _:
                due = [name for name, at in plain.items() if at <= time]
                assert deadlines.take(time) == due
                for name in due:
                    del plain[name]
        assert deadlines.earliest() <= min(plain.values(), default=inf)
        assert [name in deadlines for name in "abcd"] == [name in plain for name in "abcd"]
    deadlines.take(-1)
    if not plain:
        assert deadlines.earliest() == inf


def test_waking_at_the_earliest_always_gets_on() -> None:
    deadlines = Deadlines()
    for i, peer in enumerate("abcd"):
        deadlines.set(peer, float(i))
    deadlines.drop("a")
    wakes, taken = [], list[str]()
    while deadlines.earliest() < inf:
        wakes.append(deadlines.earliest())
        taken += deadlines.take(wakes[-1])
    assert taken == ["b", "c", "d"]
    assert wakes == [0.0, 1.0, 2.0, 3.0]
