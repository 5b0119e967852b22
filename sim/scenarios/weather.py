"""Networks that are bad everywhere and all the time."""

from random import Random

from p2pkv.sim.delays import Exponential, LogNormal
from p2pkv.sim.faults import Crash, Faults, Zone
from p2pkv.sim.scenarios.processes import some
from p2pkv.sim.story import Story


def lossy_network(nodes: int, chance: Random) -> Story:
    """A tenth of everything is lost, some of the rest comes twice or late, and one node dies in the middle of it.

    It has to be noticed all the same, and nobody else may be taken for dead.
    """
    (victim,) = some(range(1, nodes), 1, chance)
    faults = Faults(
        loss=0.1,
        duplication=0.05,
        reordering=0.1,
        reorder_s=0.2,
        delay=Exponential(0.0002, 0.002, 0.2),
        crashes=(Crash(25.0 + 10.0 * chance.random(), victim),),
    )
    return Story(faults=faults, settles_s=60.0)


def far_zones(nodes: int, chance: Random) -> Story:
    """Three zones, a millisecond within and thirty between them, with a long tail; one node dies.

    The profile is the one for a LAN: 30 ms is far less than a probe waits, and the tail seldom more.
    """
    (victim,) = some(range(1, nodes), 1, chance)
    zones = tuple(Zone(name, frozenset(range(place, nodes, 3))) for place, name in enumerate(("east", "west", "south")))
    faults = Faults(
        loss=0.01,
        delay=LogNormal(0.0005, 0.5, 0.02),
        zones=zones,
        zone_delay=LogNormal(0.03, 0.6, 0.4),
        crashes=(Crash(25.0 + 10.0 * chance.random(), victim),),
    )
    return Story(faults=faults, settles_s=45.0)
