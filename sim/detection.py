"""How soon a crash is noticed: many small runs of one mesh, each with a seed, and so a phase, of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Final

from p2pkv.config import Config, HostConfig
from p2pkv.sim.faults import SECOND_US, Faults
from p2pkv.sim.meeting import is_one_mesh
from p2pkv.sim.world import FIRST, Change, World

CRASH_AT_S: Final = 10.0
"""Everybody knows everybody by then, and what had to be told has been, unless much is lost."""
MEET_S: Final = 180.0
"""How long to wait for that at most. Half of all lost, streams included, 100 nodes take less than half of it."""
NOTICED_WITHIN_S: Final = 40.0
_DEAD: Final = 2


@dataclass(frozen=True, slots=True)
class Detection:
    """One crash, seconds from it; None if it did not happen within the run."""

    first_s: float | None
    """Until the first member held the victim for dead."""
    last_s: float | None
    """Until the last one did."""
    false_deaths: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionResult:
    """Over all runs. None where a run missed its crash."""

    runs: int
    missed: int
    """Runs in which somebody did not notice."""
    first_mean_s: float | None
    first_p50_s: float | None
    first_p99_s: float | None
    spread_p50_s: float | None
    """From the first to the last member."""
    spread_max_s: float | None
    false_deaths: int


def run_detection(*, nodes: int, seed: int, loss: float) -> Detection:
    """Run one mesh through one crash. Pure: equal arguments give an equal result."""
    random = Random(f"{seed}/detection")
    victim = random.randrange(FIRST + 1, nodes)
    crash_us: int | None = None
    detected: dict[int, int] = {}
    false_deaths = 0

    def watch(change: Change) -> None:
        nonlocal false_deaths
        if change.state != _DEAD:
            return
        if change.subject == victim and crash_us is not None:
            detected.setdefault(change.observer, change.at_us)
        else:
            false_deaths += 1

    world = World(
        nodes=nodes,
        seed=seed,
        config=Config(host=HostConfig(capacity_bytes=2**20)),
        faults=Faults(loss=loss),
        watch=watch,
    )
    for number in range(nodes):
        world.start(number, random.random() if number else 0.0)
    now_s = CRASH_AT_S
    world.run(now_s)
    while now_s < MEET_S and not is_one_mesh(world):
        now_s += 1.0
        world.run(now_s)
    crash_us = world.now_us
    world.crash(victim, now_s)
    end_s = now_s + NOTICED_WITHIN_S
    while now_s < end_s and len(detected) < nodes - 1:  # the rest of the run would show nothing more
        now_s += 1.0
        world.run(now_s)
    times_s = [(at_us - crash_us) / SECOND_US for at_us in detected.values()]
    last_s = max(times_s) if len(times_s) == nodes - 1 else None
    return Detection(min(times_s, default=None), last_s, false_deaths)


def sum_up(detections: Sequence[Detection]) -> DetectionResult:
    """Return the figures over all runs."""
    first = sorted(found.first_s for found in detections if found.first_s is not None)
    spread = [found.last_s - found.first_s for found in detections if found.first_s is not None and found.last_s]
    return DetectionResult(
        runs=len(detections),
        missed=sum(found.last_s is None for found in detections),
        first_mean_s=round(sum(first) / len(first), 3) if first else None,
        first_p50_s=round(median(first), 3) if first else None,
        first_p99_s=round(first[min(len(first) - 1, int(0.99 * len(first)))], 3) if first else None,
        spread_p50_s=round(median(spread), 3) if spread else None,
        spread_max_s=round(max(spread), 3) if spread else None,
        false_deaths=sum(found.false_deaths for found in detections),
    )
