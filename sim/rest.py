"""The scenario about doing nothing: what a mesh costs in which nothing happens, lists compared included."""

from dataclasses import asdict, dataclass
from random import Random
from typing import Final

from p2pkv.errors import LocalUseError
from p2pkv.sim.checkers import disagreements
from p2pkv.sim.faults import Crash, Faults
from p2pkv.sim.meeting import mesh_config, start_all
from p2pkv.sim.overheads import ASSUMED, Overheads
from p2pkv.sim.world import FIRST, World

CRASH_AT_S: Final = 15.0
SETTLE_S: Final = 300.0
"""Newcomers compare lists often at first; by then they do so once per period, and the dead have been told to all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestOptions:
    """What to run. Together with the revision of the code it is the run."""

    nodes: int = 128
    seed: int = 1
    dead: int = 0
    """Members killed early on, that the others still look for."""
    loss: float = 0.0
    duration_s: float = 360.0
    """How long is measured: at a thousand members lists are compared once in 180 s."""
    overheads: Overheads = ASSUMED

    def __post_init__(self) -> None:
        if self.nodes - self.dead < 2:  # noqa: PLR2004 - one node alone has nobody to talk to
            raise LocalUseError(f"{self.dead} of {self.nodes} nodes are killed, two must remain")

    def command(self) -> str:
        """Return the command that replays the run."""
        return (
            f"p2pkv sim rest --nodes {self.nodes} --seed {self.seed} --dead {self.dead} --loss {self.loss:g} "
            f"--duration {self.duration_s:g}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RestResult:
    """What came out."""

    nodes: int
    seed: int
    trace_hash: str
    problems: list[str]
    datagrams_per_node_s: float
    stream_messages_per_node_s: float
    datagram_bytes_per_node_s: float
    stream_bytes_per_node_s: float
    bytes_per_node_s: float
    """Sent by each node, overheads included."""
    events: int


def run_rest(options: RestOptions) -> RestResult:
    """Run the scenario. Pure: the same options give the same result, whatever else the process does."""
    random = Random(f"{options.seed}/rest")
    others = range(FIRST + 1, options.nodes)
    victims = sorted(others, key=lambda _: random.random())[: options.dead]
    world = World(
        nodes=options.nodes,
        seed=options.seed,
        config=mesh_config(),
        faults=Faults(loss=options.loss, crashes=tuple(Crash(CRASH_AT_S, victim) for victim in victims)),
    )
    start_all(world, random)
    world.run(SETTLE_S)
    before = world.traffic.snapshot()
    world.run(SETTLE_S + options.duration_s)
    load = options.overheads.load(before, world.traffic, node_seconds=len(world.running()) * options.duration_s)
    return RestResult(
        nodes=options.nodes,
        seed=options.seed,
        trace_hash=world.trace_hash,
        problems=disagreements(world),
        events=world.events,
        **asdict(load),
    )
