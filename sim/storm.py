"""The scenario about everybody coming at once: many nodes join through one seed within seconds."""

from dataclasses import dataclass
from random import Random
from typing import Final

from p2pkv.sim.checkers import disagreements
from p2pkv.sim.faults import Faults
from p2pkv.sim.meeting import is_one_mesh, mesh_config, run_until_one_mesh, start_all
from p2pkv.sim.overheads import ASSUMED, Overheads
from p2pkv.sim.world import FIRST, Traffic, World

WATCHED_S: Final = 60.0
"""How long after the last start the mesh may take before the run gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StormOptions:
    """What to run. Together with the revision of the code it is the run."""

    nodes: int = 500
    seed: int = 1
    within_s: float = 10.0
    """All nodes start within this time."""
    loss: float = 0.0
    overheads: Overheads = ASSUMED

    def command(self) -> str:
        """Return the command that replays the run."""
        return (
            f"p2pkv sim storm --nodes {self.nodes} --seed {self.seed} --within {self.within_s:g} --loss {self.loss:g}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StormResult:
    """What came out. Times are seconds of the simulated clock; None means it did not happen."""

    nodes: int
    seed: int
    trace_hash: str
    problems: list[str]
    converged_s: float | None
    """From the last start until every node counted on all of them."""
    bytes_per_node: float
    """Sent by each node on average, summaries included, from the first start until then."""
    bytes_per_record: float
    """Sent by all for each pair of a node and a member that it had to hear of: what a list costs, spread over all."""
    seed_bytes_sent: int
    """By the node that all others ask."""
    seed_bytes_ratio: float
    """The same over the average of the others."""
    seed_bytes_sent_to_ratio: float
    """What was sent to it over the average of the others."""
    node_bytes_max: int
    """Sent by the node that sent most."""
    updates_dropped: int
    """Updates that any node let go early because its queue was full."""
    events: int


def run_storm(options: StormOptions) -> StormResult:
    """Run the scenario. Pure: the same options give the same result, whatever else the process does."""
    world = World(nodes=options.nodes, seed=options.seed, config=mesh_config(), faults=Faults(loss=options.loss))
    last_s = start_all(world, Random(f"{options.seed}/storm"), within_s=options.within_s)
    world.run(last_s)
    converged_at_s = run_until_one_mesh(world, start_s=last_s, end_s=last_s + WATCHED_S)
    spent = options.overheads.load(Traffic(), world.traffic, node_seconds=1)
    others = options.nodes - 1
    sent, sent_to = world.bytes_sent, world.bytes_sent_to
    return StormResult(
        nodes=options.nodes,
        seed=options.seed,
        trace_hash=world.trace_hash,
        problems=[] if is_one_mesh(world) else disagreements(world),
        converged_s=None if converged_at_s is None else round(converged_at_s - last_s, 3),
        bytes_per_node=round(spent.bytes_per_node_s / options.nodes, 1),
        bytes_per_record=round(spent.bytes_per_node_s / options.nodes / others, 1),
        seed_bytes_sent=sent[FIRST],
        seed_bytes_ratio=round(sent[FIRST] / ((sum(sent) - sent[FIRST]) / others), 2),
        seed_bytes_sent_to_ratio=round(sent_to[FIRST] / ((sum(sent_to) - sent_to[FIRST]) / others), 2),
        node_bytes_max=max(sent),
        updates_dropped=sum(node.membership.statistics().updates_dropped for _, node in world.running()),
        events=world.events,
    )
