"""A node remembers when its cores are due, and is never later than they are."""

import pytest

from p2pkv.node import Node
from p2pkv.sim.scenarios import SCENARIOS
from p2pkv.sim.story import run_story
from p2pkv.sim.world import World


def due_anew(node: Node) -> float:
    """Return what all cores say when each is asked."""
    node.touch()
    node.membership._schedule.touch()
    return node.next_deadline()


@pytest.mark.parametrize("name", ["everything-at-once", "block-traffic-under-churn", "split-and-heal"])
def test_no_deadline_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    arm = World._arm

    def checked(self: World, number: int, place: object) -> None:
        nonlocal asked
        node = self.node(number)
        assert node is not None
        remembered = node.next_deadline()
        arm(self, number, place)
        if asked % 5 == 0:  # asked anew after every message, nothing would be remembered
            assert remembered <= due_anew(node)
        asked += 1

    monkeypatch.setattr(World, "_arm", checked)
    run = run_story(SCENARIOS[name], name=name, nodes=6, seed=1)
    assert not run.problems
    assert asked > 1000
