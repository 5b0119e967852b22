"""The scenario about coming together again: a mesh is cut in two for long enough to give each other up, and mended."""

from dataclasses import dataclass
from random import Random
from typing import Final

from p2pkv.errors import LocalUseError
from p2pkv.sim.checkers import disagreements
from p2pkv.sim.faults import Crash, Egress, Faults, Partition, to_us
from p2pkv.sim.meeting import is_one_mesh, mesh_config, run_until_one_mesh, start_all, views
from p2pkv.sim.overheads import ASSUMED, Overheads
from p2pkv.sim.world import FIRST, Change, World

CUT_AT_S: Final = 20.0
WATCHED_S: Final = 120.0
"""How long after the repair the mesh may take before the run gives up."""
_DEAD: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HealOptions:
    """What to run. Together with the revision of the code it is the run."""

    nodes: int = 200
    seed: int = 1
    island: int = 0
    """Members cut off together with the first node, which is everybody's seed, it included; 0 means half of all."""
    apart_s: float = 90.0
    reap_s: float = 3600.0
    """After how long the dead are dropped from the list: below `apart_s` the sides have dropped each other."""
    dead: int = 0
    """Members killed before the cut. Both sides look for them too, in vain."""
    one_way: bool = False
    """Whether only what the island sends is lost, and not what it is sent."""
    loss: float = 0.0
    overheads: Overheads = ASSUMED

    def __post_init__(self) -> None:
        if not 0 <= self.island < self.nodes - self.dead:
            raise LocalUseError(f"island is {self.island}, must be less than the nodes that live")
        if self.nodes - self.dead < 2:  # noqa: PLR2004 - one node cannot be cut in two
            raise LocalUseError(f"{self.dead} of {self.nodes} nodes are killed, two must remain")

    def command(self) -> str:
        """Return the command that replays the run."""
        text = (
            f"p2pkv sim heal --nodes {self.nodes} --seed {self.seed} --island {self.island} "
            f"--apart {self.apart_s:g} --reap {self.reap_s:g} --dead {self.dead} --loss {self.loss:g}"
        )
        return f"{text} --one-way" if self.one_way else text


@dataclass(frozen=True, slots=True, kw_only=True)
class HealResult:
    """What came out. Times are seconds of the simulated clock; None means it did not happen."""

    nodes: int
    seed: int
    trace_hash: str
    problems: list[str]
    members_seen_at_repair_min: int
    members_seen_at_repair_max: int
    """How many members a node counted on when the cut was mended, the least and the most over all nodes."""
    healed_s: float | None
    """From the repair until every node counted on all of them."""
    deaths_after_repair: int
    """How often a node held one that ran for dead from the repair on: the sides have to be believed alive, and stay so."""
    heal_bytes_per_node: float
    """Sent from the repair until then, by each node on average."""
    apart_bytes_per_node_s: float
    """Sent in the last quarter of the cut, by each node and second: what it costs to look for those who are gone."""
    events: int


def run_heal(options: HealOptions) -> HealResult:
    """Run the scenario. Pure: the same options give the same result, whatever else the process does."""
    random = Random(f"{options.seed}/partition")
    living = options.nodes - options.dead
    # The first node is in the island; the killed ones have the highest numbers, and either side misses them.
    order = sorted(range(FIRST + 1, living), key=lambda _: random.random())
    island = frozenset([FIRST, *order[: (options.island or living // 2) - 1]])
    repair_s = CUT_AT_S + options.apart_s
    cut = (
        Faults(loss=options.loss, egress=(Egress(CUT_AT_S, repair_s, island),))
        if options.one_way
        else Faults(loss=options.loss, partitions=(Partition(CUT_AT_S, repair_s, island),))
    )
    crashes = tuple(Crash(CUT_AT_S / 2, number) for number in range(living, options.nodes))
    deaths = 0

    def watch(change: Change) -> None:
        nonlocal deaths
        if change.state == _DEAD and change.at_us >= to_us(repair_s) and change.subject < living:
            deaths += 1

    world = World(
        nodes=options.nodes,
        seed=options.seed,
        config=mesh_config(reap_s=options.reap_s),
        faults=Faults(loss=cut.loss, egress=cut.egress, partitions=cut.partitions, crashes=crashes),
        watch=watch,
    )
    start_all(world, random)
    world.run(CUT_AT_S + 0.75 * options.apart_s)
    quarter = world.traffic.snapshot()
    world.run(repair_s)
    apart, seen = world.traffic.snapshot(), views(world)
    healed_at_s = run_until_one_mesh(world, start_s=repair_s, end_s=repair_s + WATCHED_S)
    healed_s = None if healed_at_s is None else healed_at_s - repair_s
    spent = options.overheads.load(apart, world.traffic, node_seconds=living)
    waiting = options.overheads.load(quarter, apart, node_seconds=living * options.apart_s / 4)
    return HealResult(
        nodes=options.nodes,
        seed=options.seed,
        trace_hash=world.trace_hash,
        problems=[] if is_one_mesh(world) else disagreements(world),
        members_seen_at_repair_min=min(seen),
        members_seen_at_repair_max=max(seen),
        healed_s=None if healed_s is None else round(healed_s, 3),
        deaths_after_repair=deaths,
        heal_bytes_per_node=spent.bytes_per_node_s,
        apart_bytes_per_node_s=waiting.bytes_per_node_s,
        events=world.events,
    )
