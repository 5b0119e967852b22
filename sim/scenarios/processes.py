"""Processes that end, and perhaps begin again."""

from random import Random

from p2pkv.sim.faults import Churn, Crash, Faults, Leave, Restart
from p2pkv.sim.prompts import Load
from p2pkv.sim.story import Story


def quiet(nodes: int, chance: Random) -> Story:  # noqa: ARG001 - every story is told the same way
    """Nothing goes wrong. The mesh forms within seconds of its deployment, and then nobody doubts anybody."""
    return Story(settles_s=10.0)


def crash(nodes: int, chance: Random) -> Story:
    """An eighth of the nodes lose power in the same second, and one more says goodbye a little later.

    The others have to notice every one of them, and may not take anybody with them.
    """
    victims = some(range(1, nodes), 1 + nodes // 8, chance)
    at_s = 20.0 + 10.0 * chance.random()
    crashes = tuple(Crash(at_s + chance.random(), node) for node in victims[1:])
    return Story(faults=Faults(crashes=crashes, leaves=(Leave(at_s + 5.0, victims[0]),)), settles_s=45.0)


def restart_without_memory(nodes: int, chance: Random) -> Story:
    """A node restarts and has forgotten everything but its name: it is the same member in a new life, and empty.

    What the others remember of its earlier life, that it is alive and what it holds, must not stand in its way. It may
    be back before anybody has missed it.
    """
    load = Load(start_s=5.0, end_s=75.0, requests_per_s=0.05)
    return Story(faults=Faults(restarts=_restarts(nodes, chance, memory=False)), load=load, settles_s=25.0)


def restart_with_memory(nodes: int, chance: Random) -> Story:
    """The same, but the node finds its blocks where it left them, and the others hear that it has them again."""
    load = Load(start_s=5.0, end_s=75.0, requests_per_s=0.05)
    return Story(faults=Faults(restarts=_restarts(nodes, chance, memory=True)), load=load, settles_s=25.0)


def churn(nodes: int, chance: Random) -> Story:  # noqa: ARG001 - the churn draws for itself
    """Nodes come and go, one every four seconds: most die, some say goodbye, and all are back within seconds."""
    faults = Faults(churn=(Churn(10.0, 70.0, per_minute=15.0, away_s=8.0),))
    return Story(faults=faults, settles_s=30.0)


def _restarts(nodes: int, chance: Random, *, memory: bool) -> tuple[Restart, ...]:
    one, other = some(range(nodes), 2, chance)
    soon = Restart(20.0 + chance.random(), one, down_s=0.2 + chance.random(), memory=memory)
    return (soon, Restart(30.0 + chance.random(), other, down_s=20.0, memory=memory))


def some(items: range, count: int, chance: Random) -> list[int]:
    """Return `count` different ones of `items`."""
    return sorted(items, key=lambda _: chance.random())[:count]
