"""Many members killed at one moment: how soon each is noticed by the first of the others, and by all of them."""

from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Final

from p2pkv.config import Config, HostConfig
from p2pkv.errors import LocalUseError
from p2pkv.mesh.members import MemberState
from p2pkv.sim.faults import SECOND_US, Crash, Faults
from p2pkv.sim.threshold import quantile
from p2pkv.sim.world import FIRST, Change, World

SETTLE_S: Final = 20.0
"""When they are killed; a thousand members know each other by then."""
END_S: Final = SETTLE_S + 180.0
_STEP_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashesResult:
    """Over all victims, seconds from the crash. None where none was noticed."""

    crashes: int
    missed: int
    """Victims that not every survivor held for dead when the run ended."""
    first_p50_s: float | None
    """Until the first survivor held a victim for dead."""
    first_p99_s: float | None
    full_p50_s: float | None
    """Until all survivors did."""
    full_p99_s: float | None
    full_max_s: float | None
    false_deaths: int


def run_crashes(*, nodes: int, crashes: int, seed: int, loss: float) -> CrashesResult:
    """Run one mesh through the crashes. Pure: equal arguments give an equal result."""
    if not 0 < crashes <= nodes - 2:
        raise LocalUseError(f"crashes is {crashes}, must be at least 1 and leave two of {nodes} nodes")
    random = Random(f"{seed}/crashes")
    order = sorted(range(FIRST + 1, nodes), key=lambda _: random.random())
    noticed: dict[int, dict[int, float]] = {victim: {} for victim in sorted(order[:crashes])}
    survivors = nodes - crashes
    false_deaths = 0

    def watch(change: Change) -> None:
        nonlocal false_deaths
        if change.state != MemberState.DEAD:
            return
        at_s = change.at_us / SECOND_US - SETTLE_S
        if change.subject in noticed and at_s >= 0:
            noticed[change.subject].setdefault(change.observer, at_s)
        else:
            false_deaths += 1

    world = World(
        nodes=nodes,
        seed=seed,
        config=Config(host=HostConfig(capacity_bytes=2**20)),
        faults=Faults(loss=loss, crashes=tuple(Crash(SETTLE_S, victim) for victim in noticed)),
        watch=watch,
    )
    for number in range(nodes):
        world.start(number, random.random() if number else 0.0)
    now_s = SETTLE_S
    while now_s < END_S and any(len(by) < survivors for by in noticed.values()):
        now_s += _STEP_S  # the rest of the run would show nothing more
        world.run(now_s)
    first = sorted(min(by.values()) for by in noticed.values() if by)
    full = sorted(max(by.values()) for by in noticed.values() if len(by) == survivors)
    return CrashesResult(
        crashes=crashes,
        missed=crashes - len(full),
        first_p50_s=round(median(first), 3) if first else None,
        first_p99_s=quantile(first, 0.99),
        full_p50_s=round(median(full), 3) if full else None,
        full_p99_s=quantile(full, 0.99),
        full_max_s=round(full[-1], 3) if full else None,
        false_deaths=false_deaths,
    )
