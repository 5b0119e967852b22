"""Many seeds of scenarios, over all cores: where the rare thing is found, and what is said of it."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

from p2pkv.sim.scenarios import SCENARIOS
from p2pkv.sim.story import Run, run_story

_SEEDS_AT_ONCE: Final = 5
"""Runs that a worker process is given at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """One scenario over all its seeds."""

    scenario: str
    runs: int
    failed: int
    settled_p50_s: float | None
    """From the last fault, or the start, until all agreed; over the runs in which they did."""
    settled_max_s: float | None
    false_deaths: int
    """Of members that ran, over all runs; 0 where the scenario allows none, or it failed."""
    events: int
    prompts: int
    hit_ratio: float | None
    """Share of the blocks of all prompts that were here or came from a peer."""
    claims_wrong_ratio: float | None
    """Share of filters' answers that claimed a block that the peer never had."""
    stream_bytes_peak: int
    wall_s: float


def run_one(name: str, nodes: int, seed: int) -> Run:
    """Run one seed of the scenario of that name."""
    return run_story(SCENARIOS[name], name=name, nodes=nodes, seed=seed)


def sweep(
    names: Iterable[str],
    *,
    nodes: int,
    seeds: Sequence[int],
    jobs: int = 1,
    on_run: Callable[[Run], None] = lambda run: None,  # noqa: ARG005 - nobody watches
) -> Iterator[Swept]:
    """Run every seed of every scenario, `jobs` at a time, and yield each scenario's sums when it is done.

    `on_run` is called with each run as it ends, in the order of the seeds. `jobs` changes no figure but `wall_s`.
    """
    with _workers(jobs) as mapped:
        for name in names:
            began = time.perf_counter()
            runs: list[Run] = []
            for run in mapped(partial(run_one, name, nodes), seeds):
                runs.append(run)
                on_run(run)
            yield _sum_up(name, runs, time.perf_counter() - began)


@contextmanager
def _workers(jobs: int) -> Iterator[Callable[[Callable[[int], Run], Sequence[int]], Iterable[Run]]]:
    if jobs == 1:
        yield map
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield partial(pool.map, chunksize=_SEEDS_AT_ONCE)


def _sum_up(name: str, runs: Sequence[Run], wall_s: float) -> Swept:
    settled = [run.settled_after_s for run in runs if run.settled_after_s is not None]
    blocks = sum(run.blocks_local + run.blocks_remote + run.blocks_computed for run in runs)
    asked = sum(run.claims_asked for run in runs)
    return Swept(
        scenario=name,
        runs=len(runs),
        failed=sum(bool(run.problems) for run in runs),
        settled_p50_s=median(settled) if settled else None,
        settled_max_s=max(settled, default=None),
        false_deaths=sum(run.false_deaths for run in runs),
        events=sum(run.events for run in runs),
        prompts=sum(run.prompts for run in runs),
        hit_ratio=round(1 - sum(run.blocks_computed for run in runs) / blocks, 4) if blocks else None,
        claims_wrong_ratio=round(sum(run.claims_wrong for run in runs) / asked, 6) if asked else None,
        stream_bytes_peak=max((run.stream_bytes_peak for run in runs), default=0),
        wall_s=round(wall_s, 1),
    )
