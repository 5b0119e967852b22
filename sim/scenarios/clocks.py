"""Clocks that are not alike."""

from random import Random

from p2pkv.sim.faults import Crash, Faults
from p2pkv.sim.scenarios.processes import some
from p2pkv.sim.story import Story


def drifting_clocks(nodes: int, chance: Random) -> Story:
    """Every clock shows another time, and runs up to half a percent too fast or too slow; one node dies.

    No message carries a time of day, so nobody notices.
    """
    (victim,) = some(range(1, nodes), 1, chance)
    crashes = (Crash(25.0 + 10.0 * chance.random(), victim),)
    return Story(faults=Faults(drift_ppm=5000, clock_offset_s=100_000.0, crashes=crashes), settles_s=45.0)
