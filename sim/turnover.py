"""What it costs a mesh that nodes come and go: beliefs that are behind, deaths that are none, and traffic.

Each rate is a run of its own with the same seed. The mesh forms, then nodes end and come back for some minutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from p2pkv.config import Config, HostConfig
from p2pkv.mesh.members import MemberState
from p2pkv.sim.checkers import beliefs
from p2pkv.sim.clock import SECOND_US, to_us
from p2pkv.sim.faults import Churn, Faults
from p2pkv.sim.quantiles import quantile
from p2pkv.sim.world import Change, World

RATES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Ends of processes a minute, over the whole mesh."""
SETTLE_S: Final = 15.0
AWAY_S: Final = 30.0
"""Long enough for a crash to be noticed before the node is back."""
AFTER_S: Final = 45.0
"""How long the run goes on when the last has come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnoverRow:
    """One rate. Times in seconds; None where nothing happened to be measured."""

    per_minute: float
    """What was asked for. At high rates fewer end, as no node ends anew before it has been back for `AWAY_S`."""
    ended_per_minute: float
    crashes: int
    leaves: int
    noticed: int
    """Crashes that somebody held for a death before the node was back."""
    detection_p50_s: float | None
    """From a crash until the first member held the node for dead."""
    detection_p99_s: float | None
    return_p50_s: float | None
    """From the start of a process until a member counted on its new life, over all members."""
    return_p99_s: float | None
    false_deaths: int
    """Times that a member held another for dead whose process, in that very life, ran."""
    stale_share: float
    """Mean share of beliefs about who is there that are wrong, over the time of the churn."""
    settled_after_s: float | None
    """From the last return until everybody agreed."""
    datagrams_per_node_s: float
    bytes_per_node_s: float
    """Of datagrams and streams."""
    trace_hash: str


def run_turnover(rate: float, *, nodes: int, seed: int, minutes: float) -> TurnoverRow:
    """Run one rate. Pure: equal arguments give an equal result."""
    end_s = SETTLE_S + 60.0 * minutes
    churn = (Churn(SETTLE_S, end_s, per_minute=rate, away_s=AWAY_S),) if rate else ()
    watch = _Watch()
    world = World(
        nodes=nodes,
        seed=seed,
        config=Config(host=HostConfig(capacity_bytes=2**20)),
        faults=Faults(churn=churn),
        watch=lambda change: watch.take(world, change),
    )
    chance = Random(f"{seed}/turnover")
    for number in range(nodes):
        world.start(number, chance.random() if number else 0.0)
    world.run(SETTLE_S)
    before, stale, beliefs_asked, node_seconds = world.traffic.snapshot(), 0, 0, 0
    settled_s: float | None = None
    last_s = max([gone.until_s for gone in world.absences], default=end_s)
    second = SETTLE_S
    while second < last_s + AFTER_S:
        second += 1.0
        world.run(second)
        wrong, asked = _stale(world)
        if second <= end_s:
            stale, beliefs_asked = stale + wrong, beliefs_asked + asked
        node_seconds += len(world.running())
        settled_s = (settled_s or second) if not wrong else None
    traffic = world.traffic
    sent = traffic.datagram_bytes + traffic.stream_bytes - before.datagram_bytes - before.stream_bytes
    crashes = [gone for gone in world.absences if not gone.leaves]
    firsts = [at - gone.from_s for gone in crashes if (at := watch.first(gone.node, gone.from_s, gone.until_s))]
    return TurnoverRow(
        per_minute=rate,
        ended_per_minute=round(len(world.absences) / minutes, 2),
        crashes=len(crashes),
        leaves=len(world.absences) - len(crashes),
        noticed=len(firsts),
        detection_p50_s=quantile(firsts, 0.5),
        detection_p99_s=quantile(firsts, 0.99),
        return_p50_s=quantile(watch.returns_s, 0.5),
        return_p99_s=quantile(watch.returns_s, 0.99),
        false_deaths=watch.false_deaths,
        stale_share=round(stale / beliefs_asked, 6),
        settled_after_s=None if settled_s is None else round(max(0.0, settled_s - last_s), 3),
        datagrams_per_node_s=round((traffic.datagrams - before.datagrams) / node_seconds, 3),
        bytes_per_node_s=round(sent / node_seconds, 1),
        trace_hash=world.trace_hash,
    )


def run_turnovers(*, nodes: int, seed: int, minutes: float, rates: Sequence[float] = RATES) -> list[TurnoverRow]:
    """Run all rates, the lowest first."""
    return [run_turnover(rate, nodes=nodes, seed=seed, minutes=minutes) for rate in rates]


class _Watch:
    """Remembers verdicts, and when new lives were seen."""

    def __init__(self) -> None:
        self._deaths_s: dict[int, list[float]] = {}
        self._seen: set[tuple[int, int, int, int]] = set()
        self.returns_s: list[float] = []
        self.false_deaths = 0

    def take(self, world: World, change: Change) -> None:
        at_s = change.at_us / SECOND_US
        if change.state == MemberState.DEAD:
            self._deaths_s.setdefault(change.subject, []).append(at_s)
            self.false_deaths += world.is_running(change.subject) and world.boot(change.subject) == change.boot
        elif change.state == MemberState.ALIVE and change.boot > 1:
            # An observer that has restarted itself since learns of old lives, which are no returns.
            life = (change.observer, world.boot(change.observer), change.subject, change.boot)
            started_s = world.started_us(change.subject) / SECOND_US
            was_there = world.started_us(change.observer) < to_us(started_s)
            if life not in self._seen and was_there:
                self._seen.add(life)
                self.returns_s.append(at_s - started_s)

    def first(self, node: int, from_s: float, until_s: float) -> float | None:
        """Return when `node` was first held for dead in a time."""
        return next((at for at in self._deaths_s.get(node, ()) if from_s <= at < until_s), None)


def _stale(world: World) -> tuple[int, int]:
    """Return how many beliefs about who is there are wrong, of how many."""
    believed = beliefs(world)
    running = set(believed)
    return sum(len(mine ^ running) for mine in believed.values()), len(believed) * (world.size - 1)
