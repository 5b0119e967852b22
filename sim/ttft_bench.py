"""The time to the first token, modelled: what sharing brings, and where it brings nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pkv.sim.ideal_mesh import Sharing
from p2pkv.sim.replay import ReplayOptions, run_mesh
from p2pkv.sim.routing import Routing
from p2pkv.sim.traces import read_trace

SYSTEMS: Final[tuple[tuple[str, Sharing, Routing], ...]] = (
    ("local only", "local", "rr"),
    ("affinity", "local", "affinity"),
    ("p2pkv", "mesh", "rr"),
    ("p2pkv and affinity", "mesh", "affinity"),
)
"""What people would run, who shares, and where requests go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TtftRow:
    """One system on one kind of node and link."""

    geometry: str
    system: str
    hit_ratio: float
    mean_s: float
    p99_s: float
    of_local: float
    """Mean over that of `local only`."""


def compare(
    *,
    trace: str,
    nodes: int,
    total_blocks: int,
    requests: int,
    geometries: Sequence[str],
    told: Callable[[str], None],
) -> list[TtftRow]:
    """Replay a trace with each system and geometry.

    Raises:
        LocalUseError: the trace cannot be read, or a geometry is not known.
    """
    read = read_trace(Path(trace), limit=requests)
    rows: list[TtftRow] = []
    for name in geometries:
        local_s = 0.0
        for system, sharing, routing in SYSTEMS:
            options = ReplayOptions(
                trace=trace, nodes=nodes, total_blocks=total_blocks, routing=routing, sharing=sharing, geometry=name
            )
            result = run_mesh(options, read)
            times = result.ttft_s or {}
            mean_s, p99_s = (times[key] or 0.0 for key in ("mean", "p99"))
            local_s = local_s or mean_s
            rows.append(
                TtftRow(
                    geometry=name,
                    system=system,
                    hit_ratio=round(result.hit_ratio, 4),
                    mean_s=mean_s,
                    p99_s=p99_s,
                    of_local=round(mean_s / local_s, 3) if local_s else 1.0,
                )
            )
            told(f"{rows[-1]}")
    return rows
