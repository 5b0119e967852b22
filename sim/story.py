"""What a scenario is: a story told in faults, load and promises, and how a seed becomes one run of it."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from random import Random
from typing import Final, TypeAlias

from p2pkv.config import Config, HostConfig
from p2pkv.errors import LocalUseError
from p2pkv.sim.checkers import Bounds, Checkers
from p2pkv.sim.clock import SECOND_US
from p2pkv.sim.faults import Faults
from p2pkv.sim.prompts import Engines, Load, with_room
from p2pkv.sim.world import World

START_WITHIN_S: Final = 1.0
"""All nodes start within this time, as after a deployment."""
NODES_MIN: Final = 4
LEASES_END_S: Final = 40.0
"""After the last prompt everything is given back within this time: an engine's patience, and the longest lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What happens in a run, and what must hold."""

    faults: Faults = field(default_factory=Faults)
    load: Load | None = None
    duration_s: float = 120.0
    settles_s: float = 20.0
    """From the last fault, or the start, until all agree, at most; and they agree until the end."""
    false_deaths_max: int | None = 0
    """How often a node may hold a member for dead that runs and is never slow or frozen; None: that is not judged."""


Scenario: TypeAlias = Callable[[int, Random], Story]
"""(how many nodes, chance) -> what happens to them. Its docstring tells the story."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came out. Times are seconds of the simulated clock."""

    scenario: str
    nodes: int
    seed: int
    trace_hash: str
    problems: list[str]
    """What must not be; empty in a good run."""
    ended_s: float
    """When the run was over: at the first problem."""
    settled_after_s: float | None
    """From the last fault, or the start, until all agreed; None if they did not."""
    false_deaths: int
    datagrams: int
    stream_bytes: int
    stream_bytes_peak: int
    """Most that was on its way over one stream."""
    events: int
    """Inputs that nodes were given."""
    prompts: int
    blocks_local: int
    blocks_remote: int
    blocks_computed: int
    claims_asked: int
    """Answers of filters about blocks that the peer never had."""
    claims_wrong: int

    def command(self) -> str:
        """Return the command that replays the run."""
        return f"p2pkv sim run {self.scenario} --nodes {self.nodes} --seed {self.seed}"


def run_story(scenario: Scenario, *, name: str, nodes: int, seed: int) -> Run:
    """Run one scenario with one seed, under all checkers. Pure: equal arguments give an equal result.

    Raises:
        LocalUseError: too few nodes for a story.
    """
    if nodes < NODES_MIN:
        raise LocalUseError(f"nodes is {nodes}, must be at least {NODES_MIN}: some fail and some find out")
    chance = Random(f"{seed}/{name}")
    story = scenario(nodes, chance)
    config = Config(host=HostConfig(capacity_bytes=2**20))
    if story.load is not None:
        config = with_room(config)
    begins_s = max(START_WITHIN_S, story.faults.last_s)
    stalled = [fault.nodes for fault in story.faults.slow] + [fault.nodes for fault in story.faults.freezes]
    bounds = Bounds(
        settled_s=begins_s + story.settles_s,
        false_deaths_max=story.false_deaths_max,
        doubtful=frozenset[int]().union(*stalled),
    )
    checkers = Checkers(config, bounds)
    world = World(
        nodes=nodes,
        seed=seed,
        config=config,
        faults=story.faults,
        watch=lambda change: checkers.watch(world, change),
    )
    engines = None
    if story.load is not None:
        engines = Engines(world, story.load, chance, ratio=config.summary.false_positive_ratio)
    for number in range(nodes):
        world.start(number, chance.random() * START_WITHIN_S if number else 0.0)
    problems = _watch_over(world, story, checkers, engines)
    agreed_s = checkers.agreed_s
    served = engines.served if engines is not None else None
    return Run(
        scenario=name,
        nodes=nodes,
        seed=seed,
        trace_hash=world.trace_hash,
        problems=problems,
        ended_s=world.now_us / SECOND_US,
        settled_after_s=None if agreed_s is None else round(max(0.0, agreed_s - begins_s), 3),
        false_deaths=checkers.false_deaths,
        datagrams=world.traffic.datagrams,
        stream_bytes=world.traffic.stream_bytes,
        stream_bytes_peak=world.network.streams.bytes_peak,
        events=world.events,
        prompts=served.prompts if served else 0,
        blocks_local=served.local if served else 0,
        blocks_remote=served.remote if served else 0,
        blocks_computed=served.computed if served else 0,
        claims_asked=engines.claims.asked if engines else 0,
        claims_wrong=engines.claims.wrong if engines else 0,
    )


def _watch_over(world: World, story: Story, checkers: Checkers, engines: Engines | None) -> list[str]:
    """Run to the end or to the first problem; an assertion of ours that fails is one, too."""
    patience_s = 1.0 + max((freeze.end_s - freeze.start_s for freeze in story.faults.freezes), default=0.0)
    second = 0.0
    while second < story.duration_s:
        second = min(second + 1.0, story.duration_s)
        try:
            world.run(second)
            found = checkers.look(world, engines, patience_s=patience_s)
        except AssertionError as exc:
            found = [_broken(exc)]
        if found:
            return [f"at {world.now_us / SECOND_US:.6f} s: {one}" for one in found]
    if engines is not None and story.load is not None and story.load.end_s + LEASES_END_S <= story.duration_s:
        return engines.leaks()
    return []


def _broken(error: AssertionError) -> str:
    """Return where an invariant of ours did not hold; the message alone is often empty."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"broken invariant in {where.name}, line {where.lineno} of {PurePath(where.filename).name}: {error}"


def named(*scenarios: Scenario) -> Mapping[str, Scenario]:
    """Return scenarios by the names they have on the command line."""
    return {scenario.__name__.replace("_", "-"): scenario for scenario in scenarios}
