"""The experiment of the Lifeguard paper: what slow members do to the others, in plain SWIM and with each remedy.

In each cell of a grid some members are slow: their messages wait for a time, again and again, while their timers run.
Every variant of the protocol lives through every cell with the same seed. A dead verdict on a member that runs and is
not slow is false. Verdicts on the slow ones are counted apart, because the threshold experiment demands them: a member
that stalls has to be held for dead in time. Source: Dadgar, Phillips, Currey, "Lifeguard" (arXiv 1707.00788), section V-F, the interval experiment.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from random import Random
from statistics import median
from typing import Final

from p2pkv.config import Config, HostConfig
from p2pkv.errors import LocalUseError
from p2pkv.sim.faults import SECOND_US, Crash, Faults, Slow
from p2pkv.sim.variants import VARIANTS
from p2pkv.sim.world import Change, World

SLOW_SHARES: Final = (1 / 32, 1 / 8, 1 / 4)
"""Shares of the members that are slow, at least one member."""
BLOCKED_S: Final = (2.0, 8.0, 16.0, 32.0)
"""How long their messages wait at a time."""
CLEAR_S: Final = (0.064, 1.0, 8.0)
"""How long they do not, in between."""
SETTLE_S: Final = 15.0
"""When the slowness begins; everybody knows everybody by then."""
SLOW_FOR_S: Final = 120.0
CRASH_AT_S: Final = SETTLE_S + 60.0
"""In the middle of it one healthy member is killed: who never judges makes no mistake, and is of no use."""
END_S: Final = SETTLE_S + SLOW_FOR_S + 15.0
NODES: Final = 32
NODES_MIN: Final = 16
_DEAD: Final = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """One run to do: a variant, a seed, and a place in the grid."""

    variant: str
    nodes: int
    seed: int
    slow: int
    blocked_s: float
    clear_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run gave."""

    raised_fp: int = 0
    """Verdicts that a node came to by itself, on a member that runs and is not slow."""
    seen_fp: int = 0
    """Times that a healthy node held such a member for dead, by itself or by hearsay."""
    raised_on_slow: int = 0
    """Verdicts on the slow ones. Nobody can tell them from dead ones while they are silent; they are no mistake."""
    raised_on_slow_clear: int = 0
    """Those of them that came while the slow one's messages did not wait."""
    messages: int = 0
    bytes: int = 0
    crash_detection_s: float | None = None
    """From the crash until the first healthy node held the victim for dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """Sums over the grid, and their ratios to plain SWIM's; None where SWIM's sum is 0."""

    variant: str
    raised_fp: int
    raised_fp_ratio: float | None
    seen_fp: int
    seen_fp_ratio: float | None
    raised_on_slow: int
    raised_on_slow_clear: int
    raised_any: int
    """`raised_fp` and `raised_on_slow`: all verdicts on anybody whose process ran."""
    raised_any_ratio: float | None
    messages: int
    message_ratio: float
    bytes: int
    byte_ratio: float
    crashes: int
    crashes_detected: int
    crash_detection_p50_s: float | None
    crash_detection_max_s: float | None


def grid(nodes: int, seed: int) -> list[Cell]:
    """Return all runs of the experiment."""
    if nodes < NODES_MIN:
        raise LocalUseError(f"nodes is {nodes}, must be at least {NODES_MIN}: some are slow, and most are not")
    slow = [max(1, round(nodes * share)) for share in SLOW_SHARES]
    return [
        Cell(variant, nodes, seed + place, *values)
        for variant in VARIANTS
        for place, values in enumerate(product(slow, BLOCKED_S, CLEAR_S))
    ]


def run_cell(cell: Cell) -> Outcome:
    """Run one cell. Pure: an equal cell gives an equal outcome."""
    random = Random(f"{cell.seed}/lifeguard")
    order = sorted(range(cell.nodes), key=lambda _: random.random())
    slow, victim = frozenset(order[: cell.slow]), order[-1]
    watch = _Watch(cell, slow, victim)
    world = World(
        nodes=cell.nodes,
        seed=cell.seed,
        config=Config(host=HostConfig(capacity_bytes=2**20), mesh=VARIANTS[cell.variant]),
        faults=Faults(
            slow=(Slow(SETTLE_S, SETTLE_S + SLOW_FOR_S, slow, cell.blocked_s, cell.blocked_s + cell.clear_s),),
            crashes=(Crash(CRASH_AT_S, victim),),
        ),
        watch=watch,
    )
    for number in range(cell.nodes):
        world.start(number, random.random() if number else 0.0)
    world.run(SETTLE_S)
    before = world.traffic.snapshot()
    world.run(END_S)
    traffic = world.traffic
    return Outcome(
        raised_fp=watch.raised_fp,
        seen_fp=watch.seen_fp,
        raised_on_slow=watch.raised_on_slow,
        raised_on_slow_clear=watch.raised_on_slow_clear,
        messages=traffic.datagrams + traffic.stream_messages - before.datagrams - before.stream_messages,
        bytes=traffic.datagram_bytes + traffic.stream_bytes - before.datagram_bytes - before.stream_bytes,
        crash_detection_s=watch.detected_s,
    )


class _Watch:
    """Counts verdicts as they happen."""

    def __init__(self, cell: Cell, slow: frozenset[int], victim: int) -> None:
        self._cell = cell
        self._slow = slow
        self._victim = victim
        self.raised_fp = 0
        self.seen_fp = 0
        self.raised_on_slow = 0
        self.raised_on_slow_clear = 0
        self.detected_s: float | None = None

    def __call__(self, change: Change) -> None:
        if change.state != _DEAD:
            return
        healthy = change.observer not in self._slow
        if change.subject == self._victim and change.at_us >= CRASH_AT_S * SECOND_US:
            if healthy and self.detected_s is None:
                self.detected_s = change.at_us / SECOND_US - CRASH_AT_S
        elif change.subject in self._slow:
            into_s = (change.at_us / SECOND_US - SETTLE_S) % (self._cell.blocked_s + self._cell.clear_s)
            self.raised_on_slow += change.own
            self.raised_on_slow_clear += change.own and into_s >= self._cell.blocked_s
        else:
            self.raised_fp += change.own
            self.seen_fp += healthy


def run_lifeguard(
    cells: Iterable[Cell], *, jobs: int = 1, progress: Callable[[Cell], None] = lambda _: None
) -> list[VariantResult]:
    """Run the cells, `jobs` at a time, each in a process of its own; their order does not matter to the result."""
    cells = list(cells)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in VARIANTS}
    if jobs == 1:
        done = map(run_cell, cells)
        return _collect(cells, done, outcomes, progress)
    with ProcessPoolExecutor(jobs) as pool:
        return _collect(cells, pool.map(run_cell, cells), outcomes, progress)


def _collect(
    cells: list[Cell], done: Iterable[Outcome], outcomes: dict[str, list[Outcome]], progress: Callable[[Cell], None]
) -> list[VariantResult]:
    for cell, outcome in zip(cells, done, strict=True):
        outcomes[cell.variant].append(outcome)
        progress(cell)
    swim = outcomes["swim"]
    return [_sum_up(name, mine, swim) for name, mine in outcomes.items() if mine]


def _sum_up(variant: str, mine: list[Outcome], swim: list[Outcome]) -> VariantResult:
    def total(field: str, outcomes: list[Outcome]) -> int:
        return sum(getattr(outcome, field) for outcome in outcomes)

    def ratio(field: str) -> float | None:
        base = total(field, swim)
        return round(total(field, mine) / base, 5) if base else None

    any_swim = total("raised_fp", swim) + total("raised_on_slow", swim)
    detections = [o.crash_detection_s for o in mine if o.crash_detection_s is not None]
    return VariantResult(
        variant=variant,
        raised_fp=total("raised_fp", mine),
        raised_fp_ratio=ratio("raised_fp"),
        seen_fp=total("seen_fp", mine),
        seen_fp_ratio=ratio("seen_fp"),
        raised_on_slow=total("raised_on_slow", mine),
        raised_on_slow_clear=total("raised_on_slow_clear", mine),
        raised_any=total("raised_fp", mine) + total("raised_on_slow", mine),
        raised_any_ratio=round((total("raised_fp", mine) + total("raised_on_slow", mine)) / any_swim, 5)
        if any_swim
        else None,
        messages=total("messages", mine),
        message_ratio=ratio("messages") or 0.0,
        bytes=total("bytes", mine),
        byte_ratio=ratio("bytes") or 0.0,
        crashes=len(mine),
        crashes_detected=len(detections),
        crash_detection_p50_s=round(median(detections), 3) if detections else None,
        crash_detection_max_s=round(max(detections), 3) if detections else None,
    )
