"""Networks that let some through and not others."""

from random import Random

from p2pkv.sim.faults import Egress, Faults, Partition
from p2pkv.sim.scenarios.processes import some
from p2pkv.sim.story import Story


def one_way_cut(nodes: int, chance: Random) -> Story:
    """What one node sends to one other is lost, all of it; the way back works, and so do all other ways.

    The two cannot probe each other. Their helpers can, so nobody dies.
    """
    mute, deaf = some(range(nodes), 2, chance)
    fault = Egress(15.0, 75.0, frozenset({mute}), targets=frozenset({deaf}))
    return Story(faults=Faults(egress=(fault,)), settles_s=15.0)


def split_and_heal(nodes: int, chance: Random) -> Story:
    """A switch fails, and the mesh is two for forty seconds; each half goes on and holds the other for dead.

    When the switch is back they find each other again without anybody's help: each node tries one of the dead a minute.
    """
    island = frozenset(some(range(nodes), nodes // 2, chance))
    return Story(
        faults=Faults(partitions=(Partition(15.0, 55.0, island),)),
        settles_s=40.0,
        false_deaths_max=None,  # the far half runs, and cannot be told from a dead one
    )
