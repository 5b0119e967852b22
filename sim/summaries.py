"""The scenario about summaries: engines ask, blocks move and go, and an oracle says what exact knowledge had found.

N nodes meet and serve conversations, or a recorded trace, from tiers too small for all of it. After half of the
run the counting begins. Meanwhile newcomers join one after another, each asking for what is popular until its first
block comes from a peer. A run is made for each of several `summary.period_s`, the staleness of what nodes know.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import msgspec

from p2pkv.config import Config, HostConfig, load
from p2pkv.errors import LocalUseError
from p2pkv.node import Node
from p2pkv.sim.faults import SECOND_US, Faults, to_us
from p2pkv.sim.oracle import BLOCK_BYTES, Engines
from p2pkv.sim.plots import Chart, Figure, Series
from p2pkv.sim.workload import Request, conversations, recorded
from p2pkv.sim.world import World

NODES_MIN: Final = 3
DURATION_MIN_S: Final = 15.0
MEET_S: Final = 3.0
"""Nodes start within the first second; the first request comes when they know each other."""
_JOINS_APART_S: Final = 2.0
_RETRY_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SummariesOptions:
    """What to run. Together with the revision of the code it is the runs."""

    nodes: int = 32
    seed: int = 1
    duration_s: float = 60.0
    rate: float = 1.0
    """Requests a second and node; a trace has its own times."""
    blocks: int = 1024
    """A node's tier holds so many."""
    periods_s: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    joins: int = 5
    """Nodes that join after the first half."""
    loss: float = 0.0
    budget_bytes_s: int = 0
    """0: the default."""
    trace: str = ""

    def __post_init__(self) -> None:
        if self.nodes < NODES_MIN:
            raise LocalUseError(f"nodes is {self.nodes}, must be at least {NODES_MIN}: somebody has to hold something")
        if self.joins * _JOINS_APART_S > self.duration_s / 2 - 2.0:
            raise LocalUseError(
                f"joins is {self.joins}, {_JOINS_APART_S:g} s apart in the second half of {self.duration_s:g} s: too many",
                hint="let the run last longer",
            )
        if self.duration_s < DURATION_MIN_S:
            raise LocalUseError(f"duration is {self.duration_s} s, must be at least {DURATION_MIN_S:g}: tiers fill")

    def command(self) -> str:
        """Return the command that replays the runs."""
        periods = "".join(f" --period {period_s:g}" for period_s in self.periods_s)
        budget = f" --budget {self.budget_bytes_s}" if self.budget_bytes_s else ""
        trace = f" --trace {self.trace}" if self.trace else ""
        return (
            f"p2pkv sim summaries --nodes {self.nodes} --seed {self.seed} --duration {self.duration_s:g} "
            f"--rate {self.rate:g} --blocks {self.blocks} --joins {self.joins} --loss {self.loss:g}"
            f"{periods}{budget}{trace}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SummariesRow:
    """One run. Shares are of blocks unless said otherwise; rates are per node and second."""

    period_s: float
    requests: int
    hit_ratio: float
    """Share of the blocks asked for that the engine did not have to compute."""
    oracle_ratio: float
    """The same with exact sets of the very moment of each request."""
    hits_of_oracle: float
    """`hit_ratio` over `oracle_ratio`."""
    hit_loss: float
    """One less that."""
    questions_per_lookup: float
    """Lease requests for each request that was not all here."""
    fewer_questions: float
    """How many times fewer than asking every other node about each."""
    wasted_questions: float
    """Share of questions that were granted nothing."""
    added_s: float
    evicted_s: float
    announced_pairs_s: float
    """Net changes of the announced sets, an added and an evicted key being a pair, as the deltas told them."""
    delta_bytes_s: float
    """Received in deltas, whole messages."""
    bytes_per_pair: float | None
    """Of a delta, for each such pair and receiver."""
    snapshot_bytes_s: float
    false_positive_ratio: float
    join_p50_s: float | None
    """From the start of a newcomer's process to its first block from a peer."""
    join_max_s: float | None
    trace_hash: str
    problems: tuple[str, ...]


def run_summaries(options: SummariesOptions, period_s: float) -> SummariesRow:
    """Make one run. Pure: the same arguments give the same result, whatever else the process does."""
    world = World(
        nodes=options.nodes + options.joins,
        seed=options.seed,
        config=_config(options, period_s),
        faults=Faults(loss=options.loss),
    )
    random = Random(f"{options.seed}/summaries")
    for number in range(options.nodes):
        world.start(number, random.random() if number else 0.0)
    counted_s = options.duration_s / 2
    engines = Engines(world, Random(f"{options.seed}/engines"), to_us(counted_s))
    requests = _requests(options)
    for request in requests:
        engines.plan(request)
    joins_s = {options.nodes + i: counted_s + i * _JOINS_APART_S for i in range(options.joins)}
    for number, at_s in joins_s.items():
        world.start(number, at_s)
        world.later(to_us(at_s) + 1, partial(_ask_until_served, engines, number, requests, options))
    world.run(counted_s)
    before = _Sent.of(world)
    counter = _PairCounter(world)
    counter.watch(period_s, options.duration_s)
    world.run(options.duration_s)
    return _row(options, period_s, world, engines, before, counter, joins_s, counted_s)


@dataclass(slots=True)
class _Sent:
    """Sums over the running nodes."""

    delta_bytes: int = 0
    snapshot_bytes: int = 0
    questions: int = 0
    wasted: int = 0

    @classmethod
    def of(cls, world: World) -> "_Sent":
        sums = cls()
        for _, node in world.running():
            summary, fetch = node.summaries.statistics(), node.statistics().fetch
            sums.delta_bytes += summary.delta_bytes_sent
            sums.snapshot_bytes += summary.snapshot_bytes_sent
            sums.questions += fetch.questions
            sums.wasted += fetch.questions_wasted
        return sums


class _PairCounter:
    """Counts by how many keys each node's announced set differs from one period to the next.

    A key that comes and goes within a period is in no delta and counts for nothing, so a pair is never cheaper for
    what was merged.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._said = {number: frozenset(node.summaries.announced()) for number, node in world.running()}
        self.changes = 0

    def watch(self, period_s: float, until_s: float) -> None:
        """Look each period."""
        self._world.later(self._world.now_us + to_us(period_s), partial(self._look, period_s, until_s))

    def _look(self, period_s: float, until_s: float) -> None:
        for number, node in self._world.running():
            said = frozenset(node.summaries.announced())
            self.changes += len(said ^ self._said.get(number, said))
            self._said[number] = said
        if self._world.now_us + to_us(period_s) <= to_us(until_s):
            self.watch(period_s, until_s)


def _config(options: SummariesOptions, period_s: float) -> Config:
    base = load(environment={})
    summary = msgspec.structs.replace(base.summary, period_s=period_s, blocks_expected=options.blocks)
    if options.budget_bytes_s:
        summary = msgspec.structs.replace(summary, budget_bytes_s=options.budget_bytes_s)
    capacity_bytes = options.blocks * BLOCK_BYTES
    host = HostConfig(capacity_bytes=capacity_bytes, chunk_bytes=capacity_bytes // 8)
    return msgspec.structs.replace(base, summary=summary, host=host)


def _requests(options: SummariesOptions) -> list[Request]:
    times = {"start_s": MEET_S, "end_s": options.duration_s - 1.0}
    if options.trace:
        return recorded(Path(options.trace), nodes=options.nodes, seed=options.seed, **times)
    return conversations(nodes=options.nodes, rate=options.rate, seed=options.seed, **times)


def _ask_until_served(engines: Engines, number: int, requests: Sequence[Request], options: SummariesOptions) -> None:
    """Have a newcomer ask for what others asked for lately, again and again, until a block came from a peer."""
    world = engines.world
    if number in engines.first_remote_us or world.now_us >= to_us(options.duration_s - 1.0):
        return
    now_s = world.now_us / SECOND_US
    lately = [request for request in requests if now_s - 10.0 <= request.at_s < now_s - 1.0]
    if lately:
        engines.ask(Request(now_s, number, engines.random.choice(lately).keys), counts=False)
    again = partial(_ask_until_served, engines, number, requests, options)
    world.later(world.now_us + to_us(_RETRY_S), again)


def _row(
    options: SummariesOptions,
    period_s: float,
    world: World,
    engines: Engines,
    before: _Sent,
    counter: _PairCounter,
    joins_s: dict[int, float],
    counted_s: float,
) -> SummariesRow:
    tally, after = engines.tally, _Sent.of(world)
    node_s = options.nodes * (options.duration_s - counted_s)
    node_s += sum(options.duration_s - at_s for at_s in joins_s.values() if at_s < options.duration_s)
    questions = after.questions - before.questions
    delta_bytes = after.delta_bytes - before.delta_bytes
    pairs = counter.changes / 2
    joined = [
        us / SECOND_US - joins_s[number] for number, us in sorted(engines.first_remote_us.items()) if number in joins_s
    ]
    hits = tally.hit_blocks / max(1, tally.oracle_blocks)
    return SummariesRow(
        period_s=period_s,
        requests=tally.requests,
        hit_ratio=round(tally.hit_blocks / max(1, tally.asked_blocks), 4),
        oracle_ratio=round(tally.oracle_blocks / max(1, tally.asked_blocks), 4),
        hits_of_oracle=round(hits, 4),
        hit_loss=round(1 - hits, 4),
        questions_per_lookup=round(questions / max(1, tally.lookups), 3),
        fewer_questions=round((options.nodes - 1) * tally.lookups / max(1, questions), 1),
        wasted_questions=round((after.wasted - before.wasted) / max(1, questions), 4),
        added_s=round(tally.added / node_s, 1),
        evicted_s=round(tally.evicted / node_s, 1),
        announced_pairs_s=round(pairs / node_s, 2),
        delta_bytes_s=round(delta_bytes / node_s, 1),
        bytes_per_pair=round(delta_bytes / (len(world.running()) - 1) / pairs, 2) if pairs else None,
        snapshot_bytes_s=round((after.snapshot_bytes - before.snapshot_bytes) / node_s, 1),
        false_positive_ratio=round(_claimed_share(dict(world.running())), 4),
        join_p50_s=round(median(joined), 3) if len(joined) == options.joins > 0 else None,
        join_max_s=round(max(joined), 3) if len(joined) == options.joins > 0 else None,
        trace_hash=world.trace_hash,
        problems=_problems(world, joined, options),
    )


def _claimed_share(running: dict[int, Node]) -> float:
    ratios = [node.summaries.statistics().false_positive_ratio for node in running.values()]
    return sum(ratios) / len(ratios)


def _problems(world: World, joined: Sequence[float], options: SummariesOptions) -> tuple[str, ...]:
    """Return what must not be at the end of a run."""
    found = []
    if len(joined) < options.joins:
        found.append(f"{options.joins - len(joined)} newcomers never got a block from a peer")
    for number, node in world.running():
        said = node.summaries.statistics()
        if said.malformed or said.from_strangers > len(world.running()):
            found.append(f"node {number} took {said.malformed} messages for malformed")
    return tuple(found[:10])


def figure_of(options: SummariesOptions, rows: Sequence[SummariesRow]) -> Figure:
    """Return the figure of several runs."""
    periods = [row.period_s for row in rows]

    def chart(title: str, y_label: str, *series: Series, aim: tuple[float, str] | None = None) -> Chart:
        return Chart(title=title, x_label="summary.period_s", y_label=y_label, series=series, x_log=True, aim=aim)

    def line(name: str, label: str, scale: float = 1.0) -> Series:
        return Series(x=periods, y=[scale * asdict(row)[name] for row in rows], label=label)

    return Figure(
        title=f"Summaries of {options.nodes} nodes against their staleness",
        charts=(
            chart(
                "What staleness costs",
                "percent",
                line("hit_loss", "hits lost against the oracle", 100),
                line("wasted_questions", "questions granted nothing", 100),
                aim=(1.0, "aim for hits lost"),
            ),
            chart("What freshness costs", "kB/s received per node", line("delta_bytes_s", "deltas", 0.001)),
            chart(
                "Questions",
                "times fewer than asking everyone",
                line("fewer_questions", "lease requests"),
                aim=(25.0, "aim"),
            ),
        ),
        note=options.command(),
    )
