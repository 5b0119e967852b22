"""How a scenario begins: nodes start one after another, all but the first knowing the first, and become a mesh."""

from random import Random

import msgspec

from p2pkv.config import Config, HostConfig, MeshConfig
from p2pkv.sim.world import FIRST, World

START_WITHIN_S = 1.0
"""All nodes start within this time, as after a deployment."""


def mesh_config(**changes: object) -> Config:
    """Return the defaults with small arenas, for a simulated node stores nothing, and `changes` to the mesh's section."""
    return Config(host=HostConfig(capacity_bytes=2**20), mesh=msgspec.structs.replace(MeshConfig(), **changes))


def start_all(world: World, random: Random, *, within_s: float = START_WITHIN_S) -> float:
    """Start the first node at once and the others at random times within `within_s`; return when the last one starts."""
    starts_s = sorted(random.uniform(0, within_s) for _ in range(world.size - 1))
    world.start(FIRST, 0.0)
    for number, at_s in enumerate(starts_s, FIRST + 1):
        world.start(number, at_s)
    return starts_s[-1]


def views(world: World) -> list[int]:
    """Return how many members each running node counts on, itself included."""
    return [len(node.membership.alive()) + 1 for _, node in world.running()]


def is_one_mesh(world: World) -> bool:
    """Whether every running node counts on all running nodes and on no other."""
    running = {number for number, _ in world.running()}
    return all(
        {world.number_of(record.id) for record in node.membership.alive()} == running - {number}
        for number, node in world.running()
    )


def run_until_one_mesh(world: World, *, start_s: float, end_s: float, step_s: float = 0.1) -> float | None:
    """Run until all are one mesh; return when, to a step, or None if it was not so by `end_s`."""
    steps = round((end_s - start_s) / step_s)
    for step in range(1, steps + 1):
        world.run(start_s + step * step_s)
        # Counting is cheap, and comparing sets is not.
        if min(views(world)) == len(world.running()) and is_one_mesh(world):
            return start_s + step * step_s
    return None
