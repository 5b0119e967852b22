"""Eviction policies in one cache, on recorded traces: every policy, every capacity.

The fixed policies are replayed as they were published, so that their figures can be held beside others'; `adaptive` runs as in
a tier, where no tail is kept without its head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pkv.errors import LocalUseError
from p2pkv.eviction import PolicyName
from p2pkv.sim.plots import Chart, Figure, Series
from p2pkv.sim.replay import ReplayOptions, run_one_cache
from p2pkv.sim.traces import read_trace

FIXED: Final[tuple[PolicyName, ...]] = ("lru", "fifo", "s3-fifo", "w-tinylfu")
ADAPTIVE: Final[PolicyName] = "adaptive"
BEHIND_MAX: Final = 0.01
"""By how much adaptive may be behind the best fixed policy."""
_SUFFIXES: Final = (".jsonl", ".jsonl.xz", ".json", ".json.xz")


@dataclass(frozen=True, slots=True)
class Known:
    """A trace by its public name, how it is made coarser, and the capacities that it is replayed with."""

    name: str
    coarsen: int
    capacities: tuple[int, ...]
    quick: tuple[int, ...]
    """Those that do not take long."""


TRACES: Final = (
    Known("mooncake_conversation", 1, *((1000, 5000, 10_000, 30_000, 50_000, 100_000),) * 2),
    Known("lmcache_agent_dev", 1, *((500, 1000, 2000, 5000, 10_000, 30_000),) * 2),
    Known("taubench_airline_dev", 1, *((500, 1000, 2000, 5000, 10_000, 30_000),) * 2),
    Known("weka_agentic_dev", 8, (1000, 5000, 10_000, 30_000, 50_000, 100_000), (10_000,)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRow:
    """One trace and capacity. Hit ratios are shares of blocks; None where a policy was left out as too slow."""

    trace: str
    capacity: int
    lru: float
    fifo: float
    s3_fifo: float
    w_tinylfu: float | None
    adaptive: float
    ahead: float
    """Of the best fixed policy."""


def find(folder: Path, name: str) -> Path | None:
    """Return the file of a trace, if it is there."""
    return next((path for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def compare(folder: Path, *, full: bool, told: Callable[[str], None]) -> list[CacheRow]:
    """Replay what is there of `TRACES`; W-TinyLFU, the slowest by far, on the long trace only if `full`.

    Raises:
        LocalUseError: none is there.
    """
    rows = []
    for known in TRACES:
        path = find(folder, known.name)
        if path is None:
            told(f"{known.name} is not in the folder, left out")
            continue
        trace = read_trace(path, coarsen=known.coarsen)
        for capacity in known.capacities if full else known.quick:
            ratios: dict[str, float] = {}
            for policy in (*FIXED, ADAPTIVE):
                if policy == "w-tinylfu" and not full and known.capacities != known.quick:
                    continue
                options = ReplayOptions(
                    trace=str(path),
                    total_blocks=capacity,
                    policy=policy,
                    coarsen=known.coarsen,
                    timing="ideal",
                    plain=policy != ADAPTIVE,
                )
                ratios[policy] = run_one_cache(options, trace).hit_ratio
                told(f"{known.name}, {capacity} blocks, {policy}: {ratios[policy]:.4f}")
            rows.append(
                CacheRow(
                    trace=known.name,
                    capacity=capacity,
                    lru=ratios["lru"],
                    fifo=ratios["fifo"],
                    s3_fifo=ratios["s3-fifo"],
                    w_tinylfu=ratios.get("w-tinylfu"),
                    adaptive=ratios[ADAPTIVE],
                    ahead=round(ratios[ADAPTIVE] - max(ratios[policy] for policy in FIXED if policy in ratios), 6),
                )
            )
    if not rows:
        names = ", ".join(known.name for known in TRACES)
        raise LocalUseError(f"no trace in {str(folder)!r}", hint=f"files are called {names}, with .jsonl or .jsonl.xz")
    return rows


def problems(rows: Sequence[CacheRow]) -> list[str]:
    """Return where adaptive is not what it should be."""
    found = [
        f"{row.trace} with {row.capacity} blocks: adaptive is {-100 * row.ahead:.2f} points behind"
        for row in rows
        if row.ahead < -BEHIND_MAX
    ]
    gain = sum(row.adaptive - row.lru for row in rows) / len(rows)
    if gain <= 0:
        found.append(f"on average adaptive is {100 * gain:+.2f} points from LRU")
    return found


def figure_of(rows: Sequence[CacheRow]) -> Figure:
    """Return a chart for each trace."""
    charts = []
    for name in dict.fromkeys(row.trace for row in rows):
        mine = [row for row in rows if row.trace == name]
        series = [
            Series(
                x=[row.capacity for row in mine],
                y=[None if (value := getattr(row, field)) is None else 100 * value for row in mine],
                label=label,
            )
            for field, label in (
                ("lru", "LRU"),
                ("fifo", "FIFO"),
                ("s3_fifo", "S3-FIFO"),
                ("w_tinylfu", "W-TinyLFU"),
                ("adaptive", "adaptive"),
            )
        ]
        charts.append(Chart(title=name, x_label="blocks", y_label="hit ratio, percent", series=series, x_log=True))
    return Figure(title="Eviction policies in one cache", charts=tuple(charts), note="p2pkv sim cache TRACES --full")
