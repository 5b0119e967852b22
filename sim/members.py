"""The scenario about membership: N nodes meet through the first, one of them is killed, the rest find out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from p2pkv.config import Config, HostConfig
from p2pkv.errors import LocalUseError
from p2pkv.sim.checkers import disagreements
from p2pkv.sim.faults import SECOND_US, Crash, Faults
from p2pkv.sim.world import FIRST, Change, World, id_of

NODES_MIN: Final = 3
DURATION_MIN_S: Final = 30.0
START_WITHIN_S: Final = 1.0
"""All nodes start within this time, as after a deployment."""
_USABLE: Final = (0, 1)
_DEAD: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersOptions:
    """What to run. Together with the revision of the code it is the run."""

    nodes: int = 50
    seed: int = 1
    loss: float = 0.0
    duration_s: float = 60.0

    def __post_init__(self) -> None:
        if self.nodes < NODES_MIN:
            raise LocalUseError(f"nodes is {self.nodes}, must be at least {NODES_MIN}: one dies and two find out")
        if self.duration_s < DURATION_MIN_S:
            raise LocalUseError(
                f"duration is {self.duration_s} s, must be at least {DURATION_MIN_S:g}: it ends settled"
            )

    def command(self) -> str:
        """Return the command that replays the run."""
        return (
            f"p2pkv sim members --nodes {self.nodes} --seed {self.seed} --loss {self.loss:g} "
            f"--duration {self.duration_s:g}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersResult:
    """What came out. Times are seconds of the simulated clock; None means it did not happen."""

    seed: int
    trace_hash: str
    problems: list[str]
    """What must not be, see checkers.py; empty in a good run."""
    full_membership_s: float | None
    """From the last start until everybody knew everybody."""
    crashed: str
    first_detection_s: float | None
    """From the crash until the first node held the victim for dead."""
    last_detection_s: float | None
    """From the crash until the last node did."""
    false_deaths: int
    """How often a node held a running one for dead."""
    datagrams_per_node_s: float
    datagram_bytes_per_node_s: float
    stream_bytes_per_node_s: float
    events: int
    """Inputs that nodes were given."""


@dataclass(slots=True)
class _Observations:
    """Listens to changes of belief, and remembers what the result needs: one entry per pair at most."""

    victim: int
    crash_us: int
    pairs_wanted: int
    present: set[tuple[int, int]] = field(default_factory=set)
    full_us: int | None = None
    detected_us: dict[int, int] = field(default_factory=dict)
    false_deaths: int = 0

    def __call__(self, change: Change) -> None:
        pair = (change.observer, change.subject)
        if change.observer == change.subject:
            return
        if change.state in _USABLE:
            self.present.add(pair)
        else:
            self.present.discard(pair)
        if self.full_us is None and len(self.present) == self.pairs_wanted:
            self.full_us = change.at_us
        if change.state == _DEAD:
            if change.subject == self.victim and change.at_us >= self.crash_us:
                self.detected_us.setdefault(change.observer, change.at_us)
            else:
                self.false_deaths += 1


def run_members(options: MembersOptions, *, also: Callable[[Change], None] | None = None) -> MembersResult:
    """Run the scenario. Pure: the same options give the same result, whatever else the process does.

    `also` is called with every change of belief, for whoever wants to draw them.
    """
    random = Random(f"{options.seed}/scenario")
    victim = random.randrange(FIRST + 1, options.nodes)
    crash_s = options.duration_s / 3
    starts_s = [0.0, *sorted(random.uniform(0, START_WITHIN_S) for _ in range(options.nodes - 1))]
    observations = _Observations(victim, round(crash_s * SECOND_US), options.nodes * (options.nodes - 1))

    def watch(change: Change) -> None:
        observations(change)
        if also is not None:
            also(change)

    world = World(
        nodes=options.nodes,
        seed=options.seed,
        config=Config(host=HostConfig(capacity_bytes=2**20)),
        faults=Faults(loss=options.loss, crashes=(Crash(crash_s, victim),)),
        watch=watch,
    )
    for number, at_s in enumerate(starts_s):
        world.start(number, at_s)
    world.run(options.duration_s)
    return _result(options, world, observations, last_start_s=starts_s[-1])


def _result(
    options: MembersOptions, world: World, observations: _Observations, *, last_start_s: float
) -> MembersResult:
    detected = [(at_us - observations.crash_us) / SECOND_US for at_us in observations.detected_us.values()]
    everybody = len(detected) == options.nodes - 1
    node_seconds = options.nodes * options.duration_s - (options.duration_s - observations.crash_us / SECOND_US)
    full_us = observations.full_us
    problems = disagreements(world)
    if full_us is None:
        problems.append("there was no moment at which everybody knew everybody")
    return MembersResult(
        seed=options.seed,
        trace_hash=world.trace_hash,
        problems=problems,
        full_membership_s=None if full_us is None else round(full_us / SECOND_US - last_start_s, 6),
        crashed=id_of(observations.victim),
        first_detection_s=min(detected, default=None),
        last_detection_s=max(detected) if everybody else None,
        false_deaths=observations.false_deaths,
        datagrams_per_node_s=round(world.traffic.datagrams / node_seconds, 3),
        datagram_bytes_per_node_s=round(world.traffic.datagram_bytes / node_seconds, 1),
        stream_bytes_per_node_s=round(world.traffic.stream_bytes / node_seconds, 1),
        events=world.events,
    )
