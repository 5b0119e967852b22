"""What others have published of their own gossip, measured on this one: the figures of chitchat's performance tests.

Source: `chitchat-test`'s and `chitchat`'s tests (Quickwit): a dead node is noticed within 10 s at 20, 40 and 100 nodes, and
within 15 s at 100 with half of all datagrams dropped; a node sends at most 15, 25, 50 and 120 kB/s at 10, 20, 40 and
100 nodes, and at most 50 messages per second; and nobody of ten is held for dead in 30 s at half of all dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Final

from p2pkv.sim.detection import run_detection
from p2pkv.sim.faults import Faults
from p2pkv.sim.meeting import mesh_config, start_all
from p2pkv.sim.overheads import Overheads
from p2pkv.sim.world import Change, World

DETECTION_LIMITS: Final = ((20, 0.0, 10.0), (40, 0.0, 10.0), (100, 0.0, 10.0), (100, 0.5, 15.0))
"""(nodes, loss, seconds)."""
LOAD_LIMITS_KB: Final = ((10, 15.0), (20, 25.0), (40, 50.0), (100, 120.0))
"""(nodes, kB per node and second)."""
MESSAGES_LIMIT: Final = 50.0
"""Per node and second."""
QUIET_NODES: Final = 10
QUIET_LOSS: Final = 0.5
QUIET_S: Final = 30.0
_LOAD_S: Final = 60.0
_DEAD: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One figure: its median over the runs, and the worst."""

    figure: str
    nodes: int
    loss: float
    unit: str
    median: float
    worst: float
    limit: float
    held: bool
    """Whether the median is below the limit; of false deaths, whether there was none in any run."""
    runs: int
    within: int
    """Runs below the limit. Chitchat's tests are one run each, so they hold as often as this is of `runs`."""


def run_anchors(*, seed: int, runs: int, progress: Callable[[Anchor], None] = lambda _: None) -> list[Anchor]:
    """Return all figures, each over `runs` runs with seeds of their own. Pure."""
    seeds = range(seed, seed + runs)
    anchors: list[Anchor] = []

    def add(figure: str, nodes: int, loss: float, unit: str, values: Sequence[float], limit: float) -> None:
        middle, worst = median(values), max(values)
        held = worst == 0 if limit == 0 else middle < limit
        within = sum(value < limit or value == limit == 0 for value in values)
        anchor = Anchor(
            figure=figure,
            nodes=nodes,
            loss=loss,
            unit=unit,
            median=round(middle, 3),
            worst=round(worst, 3),
            limit=limit,
            held=held,
            runs=len(values),
            within=within,
        )
        anchors.append(anchor)
        progress(anchor)

    for nodes, loss, limit_s in DETECTION_LIMITS:
        found = [run_detection(nodes=nodes, seed=one, loss=loss) for one in seeds]
        add("dead noticed by all", nodes, loss, "s", [one.last_s or float("inf") for one in found], limit_s)
    for nodes, limit_kb in LOAD_LIMITS_KB:
        loads = [_load(nodes, one) for one in seeds]
        add("sent", nodes, 0.0, "kB per node and second", [load[0] for load in loads], limit_kb)
        add("sent", nodes, 0.0, "messages per node and second", [load[1] for load in loads], MESSAGES_LIMIT)
    deaths = [float(_false_deaths(one)) for one in seeds]
    add(f"false deaths in {QUIET_S:g} s", QUIET_NODES, QUIET_LOSS, "", deaths, 0)
    return anchors


def _load(nodes: int, seed: int) -> tuple[float, float]:
    """Return the kB and the messages that each node sends per second in the first minute, joining included."""
    world = World(nodes=nodes, seed=seed, config=mesh_config(), faults=Faults())
    start_all(world, Random(f"{seed}/anchors"))
    before = world.traffic.snapshot()
    world.run(_LOAD_S)
    load = Overheads().load(before, world.traffic, node_seconds=nodes * _LOAD_S)
    return load.bytes_per_node_s / 1000, load.datagrams_per_node_s + load.stream_messages_per_node_s


def _false_deaths(seed: int) -> int:
    """Return how often somebody was held for dead, of whom nobody died."""
    deaths = 0

    def watch(change: Change) -> None:
        nonlocal deaths
        deaths += change.state == _DEAD

    world = World(nodes=QUIET_NODES, seed=seed, config=mesh_config(), faults=Faults(loss=QUIET_LOSS), watch=watch)
    start_all(world, Random(f"{seed}/anchors"))
    world.run(QUIET_S)
    return deaths
