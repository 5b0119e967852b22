"""How soon a crash is noticed: many small runs of one mesh, each with a seed, and so a phase, of its own."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
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
_SUSPECT, _DEAD = 1, 2


@dataclass(frozen=True, slots=True)
class Detection:
    """One crash, seconds from it; None if it did not happen within the run."""

    suspected_s: float | None
    """Until the first member that had not suspected the victim before did: somebody's turn to probe it, and the probe."""
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
    suspected_min_s: float | None
    """Until the first suspicion, where it was soonest: hardly more than a failed probe, for it began right after the crash."""
    suspected_mean_s: float | None
    suspicion_mean_s: float | None
    """From the first suspicion to the first verdict."""
    suspicion_max_s: float | None
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
    suspected_us: int | None = None
    detected: dict[int, int] = {}
    false_deaths = 0

    def watch(change: Change) -> None:
        nonlocal false_deaths, suspected_us
        if change.state == _SUSPECT and change.subject == victim and crash_us is not None and suspected_us is None:
            suspected_us = change.at_us
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
    suspected_s = None if suspected_us is None else (suspected_us - crash_us) / SECOND_US
    return Detection(suspected_s, min(times_s, default=None), last_s, false_deaths)


def run_detections(*, nodes: int, seed: int, runs: int, loss: float, jobs: int = 1) -> list[Detection]:
    """Do the runs, `jobs` at a time, each in a process of its own; that changes no result."""
    one = partial(_run_seed, nodes=nodes, loss=loss)
    seeds = range(seed, seed + runs)
    if jobs == 1:
        return list(map(one, seeds))
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(one, seeds))


def _run_seed(seed: int, *, nodes: int, loss: float) -> Detection:
    return run_detection(nodes=nodes, seed=seed, loss=loss)


def sum_up(detections: Sequence[Detection]) -> DetectionResult:
    """Return the figures over all runs."""
    first = sorted(found.first_s for found in detections if found.first_s is not None)
    suspected = [found.suspected_s for found in detections if found.suspected_s is not None]
    suspicions = [
        found.first_s - found.suspected_s
        for found in detections
        if found.first_s is not None and found.suspected_s is not None
    ]
    spread = [found.last_s - found.first_s for found in detections if found.first_s is not None and found.last_s]
    return DetectionResult(
        runs=len(detections),
        missed=sum(found.last_s is None for found in detections),
        suspected_min_s=round(min(suspected), 3) if suspected else None,
        suspected_mean_s=round(sum(suspected) / len(suspected), 3) if suspected else None,
        suspicion_mean_s=round(sum(suspicions) / len(suspicions), 3) if suspicions else None,
        suspicion_max_s=round(max(suspicions), 3) if suspicions else None,
        first_mean_s=round(sum(first) / len(first), 3) if first else None,
        first_p50_s=round(median(first), 3) if first else None,
        first_p99_s=round(first[min(len(first) - 1, int(0.99 * len(first)))], 3) if first else None,
        spread_p50_s=round(median(spread), 3) if spread else None,
        spread_max_s=round(max(spread), 3) if spread else None,
        false_deaths=sum(found.false_deaths for found in detections),
    )
