"""A mesh that is cut in two for a time: how soon each side writes the other off, and how soon they are one again."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from p2pkv.config import Config, HostConfig
from p2pkv.mesh.members import MemberState
from p2pkv.sim.checkers import beliefs, disagreements
from p2pkv.sim.clock import SECOND_US
from p2pkv.sim.faults import Faults, Partition
from p2pkv.sim.world import Change, World

LASTS_S: Final = (5.0, 15.0, 30.0, 60.0, 120.0)
"""How long the cut lasts; a run for each."""
CUT_AT_S: Final = 15.0
HEAL_MAX_S: Final = 180.0
"""A run that is not one mesh again by then is given up."""
AFTER_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRow:
    """One duration. Times in seconds; None: it did not happen."""

    lasts_s: float
    island: int
    """Nodes on the smaller side."""
    detection_first_s: float | None
    """From the cut until the first verdict on somebody beyond it."""
    detection_last_s: float | None
    """Until everybody had written off everybody beyond it."""
    deaths: int
    """Times that a node held one beyond the cut for dead; all of these run."""
    deaths_within: int
    """Until the repair, the same within one side, where nothing is wrong."""
    echoes: int
    """After it, times that a node heard from beyond that one of its own side was dead, sooner than the refutation."""
    meet_s: float | None
    """From the repair until two of the two sides counted on one another again."""
    heal_s: float | None
    """From the repair until everybody counted on everybody, and stayed with it."""
    heal_datagrams_per_node_s: float
    """From the repair until then."""
    heal_bytes_per_node_s: float
    """Of datagrams and streams."""
    trace_hash: str


@dataclass(frozen=True, slots=True)
class Split:
    """A row, and how the mesh came to it."""

    row: SplitRow
    bridged: tuple[tuple[float, float], ...]
    """(seconds from the cut, share of pairs across it that count on one another)."""


def run_split(lasts_s: float, *, nodes: int, seed: int, share: float) -> Split:
    """Run one duration. Pure: equal arguments give an equal result."""
    chance = Random(f"{seed}/split")
    order = sorted(range(nodes), key=lambda _: chance.random())
    island = frozenset(order[: max(1, round(nodes * share))])
    pairs = 2 * len(island) * (nodes - len(island))
    verdicts: list[Change] = []
    world = World(
        nodes=nodes,
        seed=seed,
        config=Config(host=HostConfig(capacity_bytes=2**20)),
        faults=Faults(partitions=(Partition(CUT_AT_S, CUT_AT_S + lasts_s, island),)),
        watch=lambda change: verdicts.append(change) if change.state == MemberState.DEAD else None,
    )
    for number in range(nodes):
        world.start(number, chance.random() if number else 0.0)
    world.run(CUT_AT_S)
    repaired_s = CUT_AT_S + lasts_s
    bridged = [(0.0, _bridged(world, island) / pairs)]
    second, healed_s, meet_s = CUT_AT_S, None, None
    at_repair = world.traffic.snapshot()
    healed = at_repair
    while second < repaired_s + HEAL_MAX_S and (healed_s is None or second < healed_s + AFTER_S):
        second += 1.0
        world.run(second)
        bridged.append((second - CUT_AT_S, _bridged(world, island) / pairs))
        if second <= repaired_s:
            at_repair = world.traffic.snapshot()
            continue
        if meet_s is None and bridged[-1][1] > 0:
            meet_s = second
        if disagreements(world, limit=1):
            healed_s = None
        elif healed_s is None:
            healed_s, healed = second, world.traffic.snapshot()
    across = [change for change in verdicts if (change.observer in island) != (change.subject in island)]
    cut = [change for change in across if change.at_us <= repaired_s * SECOND_US]
    within = [change for change in verdicts if (change.observer in island) == (change.subject in island)]
    early = sum(change.at_us <= repaired_s * SECOND_US for change in within)
    written_off = {(change.observer, change.subject) for change in cut}
    node_seconds = nodes * max(1.0, (healed_s or second) - repaired_s)
    if healed_s is None:
        healed = world.traffic.snapshot()
    sent = healed.datagram_bytes + healed.stream_bytes - at_repair.datagram_bytes - at_repair.stream_bytes
    row = SplitRow(
        lasts_s=lasts_s,
        island=min(len(island), nodes - len(island)),
        detection_first_s=_since(cut[0].at_us) if cut else None,
        detection_last_s=_since(cut[-1].at_us) if len(written_off) == pairs else None,
        deaths=len(across),
        deaths_within=early,
        echoes=len(within) - early,
        meet_s=None if meet_s is None else meet_s - repaired_s,
        heal_s=None if healed_s is None else healed_s - repaired_s,
        heal_datagrams_per_node_s=round((healed.datagrams - at_repair.datagrams) / node_seconds, 3),
        heal_bytes_per_node_s=round(sent / node_seconds, 1),
        trace_hash=world.trace_hash,
    )
    return Split(row, tuple(bridged))


def run_splits(*, nodes: int, seed: int, share: float, lasts_s: Sequence[float] = LASTS_S) -> list[Split]:
    """Run all durations, the shortest first."""
    return [run_split(one, nodes=nodes, seed=seed, share=share) for one in lasts_s]


def _since(at_us: int) -> float:
    return round(at_us / SECOND_US - CUT_AT_S, 3)


def _bridged(world: World, island: frozenset[int]) -> int:
    """Return how many believe in somebody across the cut, counted by pairs."""
    return sum(
        (other in island) != (number in island) for number, believed in beliefs(world).items() for other in believed
    )
