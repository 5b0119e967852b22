"""How fast the simulator is: many nodes meet, and then nothing happens for a while."""

import time
from dataclasses import dataclass
from random import Random
from typing import Final

from p2pkv.config import Config, HostConfig
from p2pkv.sim.checkers import disagreements
from p2pkv.sim.faults import Faults
from p2pkv.sim.world import World

MEET_S: Final = 30.0
"""By then a thousand nodes have met, and the news of that have been told; a hundred are done in a third of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What one run took. Seconds of the processor's time, unless said otherwise."""

    nodes: int
    seed: int
    minutes: float
    """Simulated, at rest."""
    meet_cpu_s: float
    """For the first 30 simulated seconds, in which each node tells each other what it holds."""
    meet_events: int
    rest_cpu_s: float
    rest_wall_s: float
    rest_events: int
    cpu_s_per_minute: float
    """Per simulated minute at rest."""
    events_per_cpu_s: float
    problems: list[str]
    trace_hash: str


def run_pace(*, nodes: int, seed: int, minutes: float) -> Pace:
    """Run; equal arguments give equal events and an equal trace, and what they take."""
    chance = Random(f"{seed}/pace")
    config = Config(host=HostConfig(capacity_bytes=2**20))
    world = World(nodes=nodes, seed=seed, config=config, faults=Faults())
    for number in range(nodes):
        world.start(number, chance.random() if number else 0.0)
    began = time.process_time()
    world.run(MEET_S)
    met, met_wall, met_events = time.process_time(), time.perf_counter(), world.events
    world.run(MEET_S + 60.0 * minutes)
    rest_cpu_s, rest_wall_s = time.process_time() - met, time.perf_counter() - met_wall
    return Pace(
        nodes=nodes,
        seed=seed,
        minutes=minutes,
        meet_cpu_s=round(met - began, 2),
        meet_events=met_events,
        rest_cpu_s=round(rest_cpu_s, 2),
        rest_wall_s=round(rest_wall_s, 2),
        rest_events=world.events - met_events,
        cpu_s_per_minute=round(rest_cpu_s / minutes, 3),
        events_per_cpu_s=round((world.events - met_events) / rest_cpu_s),
        problems=disagreements(world),
        trace_hash=world.trace_hash,
    )
