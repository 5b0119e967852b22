"""Frozen processes: everything in some members stands still for a time, as after SIGSTOP, and then goes on.

The others may hold a frozen member for dead, since nothing tells it from a dead one. What must not be: that anybody
holds a member for dead that was not frozen, least of all those that come back and find their timers overdue. Source: the
anomaly is the one of section V-D of Lifeguard (arXiv 1707.00788) with the timers stopped as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Final

from p2pkv.config import Config, HostConfig
from p2pkv.errors import LocalUseError
from p2pkv.mesh.members import MemberState
from p2pkv.sim.checkers import disagreements
from p2pkv.sim.faults import SECOND_US, Faults, Freeze
from p2pkv.sim.world import FIRST, Change, World

FROZEN_SHARES: Final = (1 / 32, 1 / 8, 1 / 4)
"""Shares of the members that freeze at once, at least one member."""
FROZEN_S: Final = (2.0, 8.0, 16.0, 32.0, 64.0)
SETTLE_S: Final = 15.0
AFTER_S: Final = 45.0
"""How long a run goes on after the thaw."""
NODES_MIN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeResult:
    """One run: so many members frozen for so long."""

    frozen: int
    frozen_s: float
    on_healthy: int
    """How often anybody held a member for dead that was never frozen."""
    by_returned: int
    """Verdicts, on whomever, that a frozen member came to by itself after it went on."""
    held_dead: int
    """Frozen members that somebody held for dead while they stood still."""
    readmitted_s: float | None
    """From the thaw until every member counted on every other again. None: not within the run."""
    problems: int
    """Beliefs that were wrong at the end."""


def freezes(nodes: int) -> list[tuple[int, float]]:
    """Return how many members freeze for how long, one pair per run."""
    if nodes < NODES_MIN:
        raise LocalUseError(f"nodes is {nodes}, must be at least {NODES_MIN}: a quarter of them freeze")
    counts = [max(1, round(nodes * share)) for share in FROZEN_SHARES]
    return list(product(counts, FROZEN_S))


def run_freeze(*, nodes: int, seed: int, frozen: int, frozen_s: float) -> FreezeResult:
    """Run one freeze. Pure: equal arguments give an equal result."""
    random = Random(f"{seed}/freeze")
    order = sorted(range(FIRST + 1, nodes), key=lambda _: random.random())
    still = frozenset(order[:frozen])
    thaw_s = SETTLE_S + frozen_s
    on_healthy = by_returned = 0
    held_dead: set[int] = set()
    absent: set[tuple[int, int]] = set()
    last_back_us = round(thaw_s * SECOND_US)

    def watch(change: Change) -> None:
        nonlocal on_healthy, by_returned, last_back_us
        pair = (change.observer, change.subject)
        if change.state == MemberState.DEAD:
            absent.add(pair)
            on_healthy += change.subject not in still
            by_returned += change.own and change.observer in still and change.at_us >= thaw_s * SECOND_US
            if change.subject in still and change.at_us < thaw_s * SECOND_US:
                held_dead.add(change.subject)
        elif pair in absent:
            absent.discard(pair)
            last_back_us = max(last_back_us, change.at_us)

    world = World(
        nodes=nodes,
        seed=seed,
        config=Config(host=HostConfig(capacity_bytes=2**20)),
        faults=Faults(freezes=(Freeze(SETTLE_S, thaw_s, still),)),
        watch=watch,
    )
    for number in range(nodes):
        world.start(number, random.random() if number else 0.0)
    world.run(thaw_s + AFTER_S)
    return FreezeResult(
        frozen=frozen,
        frozen_s=frozen_s,
        on_healthy=on_healthy,
        by_returned=by_returned,
        held_dead=len(held_dead),
        readmitted_s=None if absent else round(last_back_us / SECOND_US - thaw_s, 3),
        problems=len(disagreements(world)),
    )


def problems_of(results: Sequence[FreezeResult]) -> list[str]:
    """Return what must not be, one sentence per kind."""
    found: list[str] = []
    for result in results:
        run = f"{result.frozen} members frozen for {result.frozen_s:g} s"
        if result.on_healthy:
            found.append(f"{run}: {result.on_healthy} verdicts on members that were not frozen")
        if result.by_returned:
            found.append(f"{run}: {result.by_returned} verdicts by members that came back")
        if result.problems or result.readmitted_s is None:
            found.append(f"{run}: not everybody counted on everybody in the end")
    return found
