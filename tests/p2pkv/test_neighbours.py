"""Whose arena is mapped, and when that is tried again."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.neighbours import NEIGHBOURS_MAX, RETRY_S, MapArena, Neighbours


@pytest.fixture
def core() -> Neighbours:
    return Neighbours(own_id="me", host_id="here")


def meet(core: Neighbours, peer: str, *, host_id: str = "here", boot: int = 1, usable: bool = True) -> list[str]:
    return [effect.peer for effect in core.on_member(peer, host_id=host_id, boot=boot, usable=usable)]


def test_a_member_on_this_machine_is_tried_once_and_again_after_a_restart(core: Neighbours) -> None:
    assert meet(core, "b") == ["b"]
    assert meet(core, "b") == []
    assert not core.is_mapped("b")
    core.on_mapped("b")
    assert core.is_mapped("b")
    assert meet(core, "b", boot=2) == ["b"]
    assert not core.is_mapped("b")


def test_others_are_not_tried(core: Neighbours) -> None:
    assert meet(core, "me") == []
    assert meet(core, "far", host_id="there") == []
    assert meet(core, "unknown", host_id="") == []
    assert meet(core, "dead", usable=False) == []
    assert meet(Neighbours(own_id="me", host_id=""), "b", host_id="") == []


def test_a_member_that_died_is_not_read_from_any_more(core: Neighbours) -> None:
    meet(core, "b")
    core.on_mapped("b")
    assert meet(core, "b", usable=False) == []
    assert not core.is_mapped("b")
    core.on_unmapped("b", 0.0)
    core.on_mapped("b")
    assert not core.is_mapped("b")
    assert core.next_deadline() == inf


def test_what_was_tried_in_vain_is_tried_ever_more_rarely(core: Neighbours) -> None:
    meet(core, "b")
    now, waits = 0.0, []
    for _ in range(10):
        core.on_unmapped("b", now)
        assert core.on_time(core.next_deadline() - 0.001) == ()
        waits.append(core.next_deadline() - now)
        now = core.next_deadline()
        assert core.on_time(now) == (MapArena("b"),)
        assert core.next_deadline() == inf
    assert waits[:3] == [RETRY_S, 2 * RETRY_S, 4 * RETRY_S]
    assert waits[-1] == waits[-2] == 64 * RETRY_S
    core.on_mapped("b")
    core.on_unmapped("b", now)
    assert core.next_deadline() == now + RETRY_S


def test_so_many_arenas_are_mapped_and_no_more(core: Neighbours) -> None:
    assert sum(len(meet(core, f"n{i}")) for i in range(NEIGHBOURS_MAX + 5)) == NEIGHBOURS_MAX
    assert core.refused == 5
    meet(core, "n0", usable=False)
    assert meet(core, "late") == ["late"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["up", "down", "mapped", "unmapped"]))))
def test_only_what_was_reported_as_mapped_since_it_came_is_mapped(events: list[tuple[str, str]]) -> None:
    core = Neighbours(own_id="me", host_id="here")
    present: dict[str, bool] = {}
    for now, (peer, what) in enumerate(events):
        match what:
            case "up":
                meet(core, peer)
                present.setdefault(peer, False)
            case "down":
                meet(core, peer, usable=False)
                present.pop(peer, None)
            case "mapped":
                core.on_mapped(peer)
                present.update({peer: True} if peer in present else {})
            case _:
                core.on_unmapped(peer, float(now))
                present.update({peer: False} if peer in present else {})
    assert {peer for peer in "abc" if core.is_mapped(peer)} == {peer for peer, mapped in present.items() if mapped}
