"""The threshold experiment of the Lifeguard paper: members stall once, for longer than any suspicion needs.

Some members of 128 stop hearing and being heard at one moment and for 32.8 s, while their timers run. A stalled member
is as good as dead to the others, and the question is how soon the first of them says so, and the last. Source: Dadgar,
Phillips, Currey, "Lifeguard" (arXiv 1707.00788), sections V-D and V-E; the paper runs it with a suspicion multiplier of 5.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Final

import msgspec

from p2pkv.config import Config, HostConfig
from p2pkv.errors import LocalUseError
from p2pkv.mesh.members import MemberState
from p2pkv.sim.faults import SECOND_US, Faults, Slow
from p2pkv.sim.variants import VARIANTS
from p2pkv.sim.world import FIRST, Change, World

COMPARED: Final = ("swim", "lifeguard", "observers")
SUSPICION_MULT: Final = 5.0
"""The paper's alpha here. The defaults have 4, as memberlist on a LAN, which gives 2 s less."""
STALLED: Final = (1, 4, 8, 12, 16, 20, 24, 28, 32)
"""How many members stall at once, one run each; of 128 as in the paper, and scaled with the mesh."""
NODES: Final = 128
STALL_S: Final = 32.768
SETTLE_S: Final = 15.0
END_S: Final = SETTLE_S + STALL_S + 10.0
NODES_MIN: Final = 16


@dataclass(frozen=True, slots=True)
class Stall:
    """One run to do."""

    variant: str
    nodes: int
    seed: int
    stalled: int


@dataclass(frozen=True, slots=True)
class Stalled:
    """What one run gave; seconds from the beginning of the stall, one entry per stalled member that was noticed."""

    first_s: tuple[float, ...]
    """Until the first healthy member held it for dead."""
    last_s: tuple[float, ...]
    """Until all of them did."""
    missed: int
    """Stalled members that not every healthy one noticed before the stall was over."""
    false_deaths: int
    """How often anybody held a healthy member for dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdResult:
    """Over all stalled members of all runs. None where nobody was noticed."""

    variant: str
    stalled: int
    missed: int
    first_p50_s: float | None
    first_p99_s: float | None
    first_p999_s: float | None
    full_p50_s: float | None
    full_p99_s: float | None
    false_deaths: int


def stalls(nodes: int, seed: int, runs: int) -> list[Stall]:
    """Return all runs of the experiment: `runs` seeds for each number of stalled members and each variant."""
    if nodes < NODES_MIN:
        raise LocalUseError(f"nodes is {nodes}, must be at least {NODES_MIN}: a quarter of them stall")
    counts = sorted({max(1, count * nodes // NODES) for count in STALLED})
    return [Stall(variant, nodes, seed + run, count) for variant in COMPARED for count in counts for run in range(runs)]


def run_stall(stall: Stall) -> Stalled:
    """Run one stall. Pure: an equal stall gives an equal outcome."""
    random = Random(f"{stall.seed}/threshold")
    order = sorted(range(FIRST + 1, stall.nodes), key=lambda _: random.random())
    stalled = frozenset(order[: stall.stalled])
    noticed: dict[int, dict[int, float]] = {number: {} for number in sorted(stalled)}
    false_deaths = 0

    def watch(change: Change) -> None:
        nonlocal false_deaths
        if change.state != MemberState.DEAD:
            return
        since_s = change.at_us / SECOND_US - SETTLE_S
        if change.subject not in stalled:
            false_deaths += 1
        elif change.observer not in stalled and 0 <= since_s <= STALL_S:
            noticed[change.subject].setdefault(change.observer, since_s)

    mesh = msgspec.structs.replace(VARIANTS[stall.variant], suspicion_mult=SUSPICION_MULT)
    world = World(
        nodes=stall.nodes,
        seed=stall.seed,
        config=Config(host=HostConfig(capacity_bytes=2**20), mesh=mesh),
        faults=Faults(slow=(Slow(SETTLE_S, SETTLE_S + STALL_S, stalled, STALL_S, STALL_S),)),
        watch=watch,
    )
    for number in range(stall.nodes):
        world.start(number, random.random() if number else 0.0)
    world.run(END_S)
    healthy = stall.nodes - stall.stalled
    return Stalled(
        first_s=tuple(min(by.values()) for by in noticed.values() if by),
        last_s=tuple(max(by.values()) for by in noticed.values() if len(by) == healthy),
        missed=sum(len(by) < healthy for by in noticed.values()),
        false_deaths=false_deaths,
    )


def run_threshold(
    runs: Iterable[Stall], *, jobs: int = 1, progress: Callable[[Stall], None] = lambda _: None
) -> list[ThresholdResult]:
    """Do the runs, `jobs` at a time, each in a process of its own; their order does not matter to the result."""
    runs = list(runs)
    outcomes: dict[str, list[Stalled]] = {}

    def collect(done: Iterable[Stalled]) -> None:
        for stall, outcome in zip(runs, done, strict=True):
            outcomes.setdefault(stall.variant, []).append(outcome)
            progress(stall)

    if jobs == 1:
        collect(map(run_stall, runs))
    else:
        with ProcessPoolExecutor(jobs) as pool:
            collect(pool.map(run_stall, runs))
    return [sum_up(variant, mine) for variant, mine in outcomes.items()]


def sum_up(variant: str, outcomes: Iterable[Stalled]) -> ThresholdResult:
    """Return the figures over all stalled members."""
    outcomes = list(outcomes)
    first = sorted(time_s for outcome in outcomes for time_s in outcome.first_s)
    last = sorted(time_s for outcome in outcomes for time_s in outcome.last_s)
    missed = sum(outcome.missed for outcome in outcomes)
    return ThresholdResult(
        variant=variant,
        stalled=len(last) + missed,
        missed=missed,
        first_p50_s=round(median(first), 3) if first else None,
        first_p99_s=quantile(first, 0.99),
        first_p999_s=quantile(first, 0.999),
        full_p50_s=round(median(last), 3) if last else None,
        full_p99_s=quantile(last, 0.99),
        false_deaths=sum(outcome.false_deaths for outcome in outcomes),
    )


def quantile(ordered: list[float], share: float) -> float | None:
    """Return the value below which `share` of them lie, rounded to milliseconds; None of none."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None
