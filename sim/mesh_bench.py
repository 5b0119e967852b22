"""What the memory of many nodes is worth together, on recorded traces: each kind of sharing, beside one cache of all of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from p2pkv.errors import LocalUseError
from p2pkv.sim.cache_bench import TRACES, find
from p2pkv.sim.plots import Chart, Figure, Series
from p2pkv.sim.replay import ReplayOptions, run_mesh, run_one_cache
from p2pkv.sim.routing import Routing
from p2pkv.sim.traces import Trace, read_trace

ROUTINGS: Final[tuple[Routing, ...]] = ("rr", "session", "affinity")
LARGE: Final = 1875
"""Blocks of a node from which on the mesh is held beside one cache; a smaller one beside the best simple way to share."""
_OF_ONE: Final = 0.98
_TOLERATED: Final = 0.001
"""A cell that is so much below its aim, or less, is as good as there: the aims of small nodes are each the best of four."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Totals and numbers of nodes that one trace is replayed with."""

    trace: str
    totals: tuple[int, ...]
    nodes: tuple[int, ...]
    quick: bool


CELLS: Final = (
    Cells("mooncake_conversation", (10_000, 30_000), (4, 8, 16), quick=True),
    Cells("lmcache_agent_dev", (4000,), (4, 8), quick=True),
    Cells("mooncake_conversation", (60_000,), (4, 8, 16), quick=False),
    Cells("taubench_airline_dev", (4000,), (4, 8), quick=False),
    Cells("weka_agentic_dev", (10_000, 30_000), (4, 8, 16), quick=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshCell:
    """One trace, size and routing. Hit ratios are shares of blocks."""

    trace: str
    nodes: int
    node_blocks: int
    routing: str
    local: float
    ring: float | None
    first: float
    """Each block where it was computed, and nowhere else."""
    copies: float
    unforwarded: float
    """As p2pkv does it, but last copies are dropped."""
    mesh: float
    mesh_local: float
    """Of all blocks, those that were at the node which was asked."""
    duplicate_ratio: float
    forwarded_blocks: int
    load_max_over_mean: float
    one_lru: float
    aim: float


def compare(folder: Path, *, full: bool, told: Callable[[str], None]) -> list[MeshCell]:
    """Replay what is there of `CELLS`.

    Raises:
        LocalUseError: none is there.
    """
    coarsen = {known.name: known.coarsen for known in TRACES}
    found: list[MeshCell] = []
    for cells in CELLS:
        path = find(folder, cells.trace)
        if path is None:
            told(f"{cells.trace} is not in the folder, left out")
        if path is None or not (full or cells.quick):
            continue
        trace = read_trace(path, coarsen=coarsen[cells.trace])
        for total in cells.totals:
            plain = ReplayOptions(trace=str(path), total_blocks=total, policy="lru", plain=True, timing="ideal")
            one = run_one_cache(plain, trace).hit_ratio
            for nodes in cells.nodes:
                for routing in ROUTINGS:
                    options = ReplayOptions(
                        trace=str(path), total_blocks=total, nodes=nodes, routing=routing, timing="ideal"
                    )
                    found.append(_cell(cells.trace, options, one, trace))
                    told(f"{found[-1]}")
    if not found:
        raise LocalUseError(f"no trace in {str(folder)!r}", hint="their names are in docs/benchmarks/cache.md")
    return found


def _cell(name: str, options: ReplayOptions, one: float, trace: Trace) -> MeshCell:
    simple = replace(options, policy="lru")
    local = run_mesh(replace(simple, sharing="local"), trace).hit_ratio
    ring = None if options.routing == "affinity" else run_mesh(replace(simple, sharing="ring"), trace).hit_ratio
    first = run_mesh(replace(simple, sharing="first"), trace).hit_ratio
    copies = run_mesh(replace(simple, sharing="copies"), trace).hit_ratio
    unforwarded = run_mesh(replace(options, hops_max=0), trace).hit_ratio
    ours = run_mesh(options, trace)
    node_blocks = options.total_blocks // options.nodes
    assert ours.local_hit_ratio is not None
    assert ours.duplicate_ratio is not None
    assert ours.forwarded_blocks is not None
    assert ours.load_max_over_mean is not None
    return MeshCell(
        trace=name,
        nodes=options.nodes,
        node_blocks=node_blocks,
        routing=options.routing,
        local=local,
        ring=ring,
        first=first,
        copies=copies,
        unforwarded=unforwarded,
        mesh=ours.hit_ratio,
        mesh_local=ours.local_hit_ratio,
        duplicate_ratio=ours.duplicate_ratio,
        forwarded_blocks=ours.forwarded_blocks,
        load_max_over_mean=ours.load_max_over_mean,
        one_lru=one,
        aim=round(_OF_ONE * one if node_blocks >= LARGE else max(local, ring or 0.0, first, copies), 6),
    )


def problems(cells: Sequence[MeshCell]) -> list[str]:
    """Return where the mesh is worse than its aim by more than a tenth of a point."""
    return [
        f"{cell.trace}, {cell.nodes} nodes of {cell.node_blocks} blocks, {cell.routing}: "
        f"{100 * cell.mesh:.2f}, aim {100 * cell.aim:.2f}"
        for cell in cells
        if cell.mesh < cell.aim - _TOLERATED
    ]


def figure_of(cells: Sequence[MeshCell]) -> Figure:
    """Return a chart for each trace and total."""
    charts = []
    for trace, total in dict.fromkeys((cell.trace, cell.nodes * cell.node_blocks) for cell in cells):
        mine = [cell for cell in cells if (cell.trace, cell.nodes * cell.node_blocks) == (trace, total)]
        names = [f"{cell.nodes} {cell.routing}" for cell in mine]
        series = [
            Series(
                x=range(len(mine)),
                y=[None if (value := getattr(cell, field)) is None else 100 * value for cell in mine],
                label=label,
                kind="points",
            )
            for field, label in (
                ("local", "each its own"),
                ("copies", "copies"),
                ("ring", "ring"),
                ("first", "first writer"),
                ("mesh", "mesh"),
                ("one_lru", "one LRU of all"),
            )
        ]
        charts.append(
            Chart(
                title=f"{trace}, {total:,} blocks",
                x_label="nodes and routing",
                y_label="hit ratio, percent",
                series=series,
                x_names=names,
            )
        )
    return Figure(title="What many nodes hit together", charts=tuple(charts), note="p2pkv sim cache TRACES --mesh")
