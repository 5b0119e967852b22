"""Checkers can fail: each is shown a world in which its promise is broken."""

from random import Random

import pytest

from p2pkv.config import Config, HostConfig
from p2pkv.sim.checkers import SHUNNED_S, Bounds, Checkers
from p2pkv.sim.claims import Claims
from p2pkv.sim.faults import Faults
from p2pkv.sim.prompts import Engines, Load, with_room
from p2pkv.sim.world import Change, World

CONFIG = with_room(Config(host=HostConfig(capacity_bytes=2**20)))


def settled(nodes: int = 5) -> World:
    made = World(nodes=nodes, seed=1, config=CONFIG, faults=Faults())
    for number in range(nodes):
        made.start(number, 0.1 * number)
    made.run(10.0)
    return made


def test_a_member_that_nobody_counts_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    world, checkers = settled(), Checkers(CONFIG, Bounds(settled_s=1e9))
    monkeypatch.setattr("p2pkv.sim.checkers.beliefs", lambda _: {n: {0, 1, 2, 3, 4} - {3} for n in range(5)})
    for second in range(10, 102):
        world.run(float(second))
        found = checkers.look(world, None, patience_s=0.0)
    assert found == [f"node-0003 runs and is reachable, and nobody has counted on it for {SHUNNED_S:g} s"]


def test_a_queue_that_outgrows_its_bound_is_found() -> None:
    world, checkers = settled(), Checkers(CONFIG, Bounds(settled_s=0.0))
    assert checkers.look(world, None, patience_s=0.0) == []
    world.network.streams.bytes_peak = 10**9
    assert "bytes on their way, limit" in checkers.look(world, None, patience_s=0.0)[0]


def test_deaths_of_the_living_are_counted_and_those_of_earlier_lives_are_not() -> None:
    world, checkers = settled(), Checkers(CONFIG, Bounds(settled_s=0.0, false_deaths_max=0))
    checkers.watch(world, Change(0, 1, 2, state=2, own=True, boot=0))
    assert checkers.look(world, None, patience_s=0.0) == []
    checkers.watch(world, Change(0, 1, 2, state=2, own=True, boot=1))
    assert "1 times a node held a running one for dead" in checkers.look(world, None, patience_s=0.0)[0]


def test_claims_beyond_false_positives_are_found() -> None:
    world = settled()
    node = dict(world.running())[0]
    liar = node.membership.alive()[0]
    for lies, keys in ((0.01, 300), (0.5, 300)):
        claims, chance = Claims(world, ratio=0.01), Random(1)
        for n in range(keys):
            chain = (n.to_bytes(32, "big"),)
            match = node.match(chain)
            holders = ((liar, 1),) * (chance.random() < lies)
            claims.check(0, chain, type(match)(0, 1, holders))
        assert bool(claims.excess()) == (lies > 0.1)


def test_what_engines_are_never_told_and_what_is_never_given_back_is_found() -> None:
    world = World(nodes=4, seed=1, config=CONFIG, faults=Faults())
    engines = Engines(world, Load(start_s=1.0, end_s=20.0), Random(1), ratio=0.01)
    for number in range(4):
        world.start(number, 0.0)
    world.on_acquired = lambda number, acquired: None
    world.run(30.0)
    assert "has waited since" in engines.overdue(0.0)[0]
    assert "still holds" in engines.leaks()[0]


def test_what_was_seen_is_a_change_of_belief() -> None:
    seen: list[Change] = []
    world = World(nodes=2, seed=1, config=CONFIG, faults=Faults(), watch=seen.append)
    for number in range(2):
        world.start(number, 0.0)
    world.run(5.0)
    assert {(change.observer, change.subject, change.state, change.boot) for change in seen} == {
        (0, 1, 0, 1),
        (1, 0, 0, 1),
    }
