"""All of it."""

from random import Random

from p2pkv.sim.delays import Exponential
from p2pkv.sim.faults import Churn, Egress, Faults, Freeze, Partition, Restart, Slow
from p2pkv.sim.prompts import Load
from p2pkv.sim.scenarios.processes import some
from p2pkv.sim.story import Story


def everything_at_once(nodes: int, chance: Random) -> Story:
    """A bad minute: loss, a split, churn, a slow node, a frozen one and a node that is hardly heard, all under load.

    Nobody asks that nobody is held for dead wrongly in it. When it is over the mesh is whole again.
    """
    slow, frozen, faint, again = some(range(nodes), 4, chance)
    island = frozenset(some(range(nodes), nodes // 3, chance))
    faults = Faults(
        loss=0.05,
        duplication=0.02,
        reordering=0.05,
        delay=Exponential(0.0002, 0.005, 0.3),
        drift_ppm=500,
        clock_offset_s=1000.0,
        partitions=(Partition(30.0, 45.0, island),),
        egress=(Egress(20.0, 50.0, frozenset({faint}), loss=0.8),),
        restarts=(Restart(25.0, again, down_s=3.0, memory=True),),
        churn=(Churn(10.0, 45.0, per_minute=8.0, away_s=8.0),),
        slow=(Slow(15.0, 45.0, frozenset({slow}), blocked_s=6.0, period_s=8.0),),
        freezes=(Freeze(35.0, 50.0, frozenset({frozen})),),
    )
    load = Load(start_s=5.0, end_s=75.0, requests_per_s=0.08)
    return Story(faults=faults, load=load, settles_s=60.0, false_deaths_max=None)
