"""Nodes that are there, and do not do what they should in time."""

from random import Random

from p2pkv.sim.faults import Faults, Freeze, Slow
from p2pkv.sim.scenarios.processes import some
from p2pkv.sim.story import Story


def slow_node(nodes: int, chance: Random) -> Story:
    """The network card of one node starves, again and again, while its timers run and it judges what it cannot hear.

    That is the anomaly of the Lifeguard paper, and what moving large blocks does to small datagrams. The slow one may
    be held for dead while it is silent; nobody else may be.
    """
    (slow,) = some(range(nodes), 1, chance)
    blocked_s = 2.0 + 10.0 * chance.random()
    fault = Slow(15.0, 75.0, frozenset({slow}), blocked_s=blocked_s, period_s=blocked_s + 0.5 + 4.0 * chance.random())
    return Story(faults=Faults(slow=(fault,)), settles_s=25.0)


def frozen_node(nodes: int, chance: Random) -> Story:
    """A process stands still for half a minute, timers and all, as in a debugger or a virtual machine that moves.

    It is rightly held for dead. When it goes on it reads first, and so it kills nobody for its own absence.
    """
    (frozen,) = some(range(nodes), 1, chance)
    start_s = 15.0 + 5.0 * chance.random()
    return Story(faults=Faults(freezes=(Freeze(start_s, start_s + 30.0, frozenset({frozen})),)), settles_s=25.0)
