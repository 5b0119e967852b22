from p2pkv.mesh.placement import SLOTS
from p2pkv.mesh.ring_view import GATHER_S, REST_S, RingView
from p2pkv.transport.wire import MemberRecord


def member(name: str, state: int = 0, incarnation: int = 0, zone: str = "") -> MemberRecord:
    return MemberRecord(name, 1, incarnation, state, name, f"{name}:1", zone=zone, offered_bytes=2**30)


class Watched:
    def __init__(self) -> None:
        self.members = [member("a"), member("b"), member("c")]
        self.view = RingView(lambda: self.members)


def test_the_first_ring_is_due_at_once_and_has_all_slots_new() -> None:
    watched = Watched()
    assert watched.view.due() == 0.0
    built = watched.view.build(5.0)
    assert built is not None
    assert built == (watched.view.ring, None)
    assert watched.view.due() == float("inf")


def test_news_that_come_together_make_one_ring_and_many_a_ring_per_second() -> None:
    watched, built = Watched(), 0
    watched.view.build(0.0)
    now = 10.0
    while now < 20.0:
        watched.members.append(member(f"new-{now}"))
        watched.view.changed(now)
        now += 0.02
        if now >= watched.view.due():
            assert watched.view.build(now) is not None
            built += 1
    assert built <= (20.0 - 10.0) / REST_S + 1
    assert watched.view.due() < 20.0 + REST_S


def test_a_change_after_a_quiet_time_waits_only_for_what_comes_with_it() -> None:
    watched = Watched()
    watched.view.build(0.0)
    watched.members.append(member("d"))
    watched.view.changed(100.0)
    assert watched.view.due() == 100.0 + GATHER_S
    built = watched.view.build(100.0 + GATHER_S)
    assert built is not None
    ring, changed = built
    assert "d" in ring.members
    assert changed is not None
    assert 0 < len(changed) < SLOTS


def test_what_the_ring_does_not_look_at_makes_no_ring() -> None:
    watched = Watched()
    watched.view.build(0.0)
    ring = watched.view.ring
    watched.members[1] = member("b", state=1, incarnation=7)  # suspected, which is not the end
    watched.view.changed(1.0)
    assert watched.view.build(2.0) is None
    assert watched.view.ring is ring
    watched.members[1] = member("b", zone="elsewhere")
    watched.view.changed(3.0)
    assert watched.view.build(4.0) is not None
