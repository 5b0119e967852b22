"""What lost datagrams do to members that run: uniform loss, or most of what a few members send.

Nobody in these runs is dead but one, killed near the end, so every other dead verdict is false. Source: Suresh et al.,
"Stable and consistent membership at scale with Rapid", USENIX ATC 2018, section 7 (80 % egress loss at 1 % of the members).
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from p2pkv.config import Config, HostConfig, MeshConfig
from p2pkv.errors import LocalUseError
from p2pkv.mesh.members import MemberState
from p2pkv.sim.faults import SECOND_US, Crash, Egress, Faults
from p2pkv.sim.variants import VARIANTS, without_stream
from p2pkv.sim.world import FIRST, Change, World

PROTOCOLS: Final[dict[str, MeshConfig]] = {
    "swim": VARIANTS["swim"],
    "swim_datagrams": without_stream(VARIANTS["swim"]),
    "lifeguard": VARIANTS["lifeguard"],
    "lifeguard_datagrams": without_stream(VARIANTS["lifeguard"]),
    "observers": VARIANTS["observers"],
    "observers_datagrams": without_stream(VARIANTS["observers"]),
}
"""What is compared. `..._datagrams`: without the ping over the stream, which is how SWIM was published."""
PUBLISHED: Final = "swim_datagrams"
"""What the others are measured by."""
SETTLE_S: Final = 15.0
"""Everybody knows everybody by then. In uniform loss that is lost from the start as well."""
CRASH_BEFORE_END_S: Final = 60.0
"""A healthy member is killed so long before the end: who never judges makes no mistake, and is of no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    """One run."""

    protocol: str
    nodes: int = 200
    seed: int = 1
    loss: float = 0.0
    """Share of all datagrams that is lost, and of what streams carry, which send it again."""
    egress: float = 0.0
    """Share of what the lossy members send that is lost besides."""
    lossy: int = 2
    """How many members are lossy; none if `egress` is 0."""
    duration_s: float = 300.0

    def __post_init__(self) -> None:
        if self.egress and not 0 < self.lossy <= self.nodes // 2:
            raise LocalUseError(f"lossy is {self.lossy}, must be at least 1 and at most half of {self.nodes} nodes")
        if self.duration_s <= CRASH_BEFORE_END_S:
            raise LocalUseError(f"duration is {self.duration_s} s, must be more than {CRASH_BEFORE_END_S:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossResult:
    """What one run gave. A verdict is a member's table turning to "dead" about a member that runs."""

    protocol: str
    verdicts: int
    """All of them, whoever held whom for dead."""
    on_healthy: int
    """About members that are not lossy."""
    at_healthy: int
    """Held by members that are not lossy, whomever about."""
    raised: int
    """Those that a member came to by itself, not by hearsay."""
    raised_on_healthy: int
    crash_first_s: float | None
    """From the real crash until the first member held the victim for dead; None: nobody did."""
    crash_last_s: float | None
    """Until the last healthy member did."""
    datagrams_per_node_s: float
    bytes_per_node_s: float
    """Datagrams and streams."""
    verdict_ratio: float | None = None
    """`verdicts` in units of those of SWIM as it was published; None if that was not run besides, or had none."""
    raised_ratio: float | None = None
    """The same of `raised`."""


class _Watch:
    """Counts verdicts as they happen."""

    def __init__(self, lossy: frozenset[int], victim: int, crash_s: float) -> None:
        self._lossy = lossy
        self._victim = victim
        self._crash_s = crash_s
        self.verdicts = self.on_healthy = self.at_healthy = self.raised = self.raised_on_healthy = 0
        self.noticed_s: dict[int, float] = {}

    def __call__(self, change: Change) -> None:
        if change.state != MemberState.DEAD:
            return
        at_s = change.at_us / SECOND_US - self._crash_s
        if change.subject == self._victim and at_s >= 0:
            if change.observer not in self._lossy:
                self.noticed_s.setdefault(change.observer, at_s)
            return
        on_healthy = change.subject not in self._lossy
        self.verdicts += 1
        self.on_healthy += on_healthy
        self.at_healthy += change.observer not in self._lossy
        self.raised += change.own
        self.raised_on_healthy += change.own and on_healthy


def run_loss(options: LossOptions) -> LossResult:
    """Run one protocol through the loss. Pure: equal options give an equal result."""
    random = Random(f"{options.seed}/loss")
    order = sorted(range(FIRST + 1, options.nodes), key=lambda _: random.random())
    lossy = frozenset(order[: options.lossy] if options.egress else ())
    end_s = SETTLE_S + options.duration_s
    crash_s = end_s - CRASH_BEFORE_END_S
    watch = _Watch(lossy, order[-1], crash_s)
    world = World(
        nodes=options.nodes,
        seed=options.seed,
        config=Config(host=HostConfig(capacity_bytes=2**20), mesh=PROTOCOLS[options.protocol]),
        faults=Faults(
            loss=options.loss,
            egress=(Egress(SETTLE_S, end_s, lossy, options.egress),) if lossy else (),
            crashes=(Crash(crash_s, order[-1]),),
        ),
        watch=watch,
    )
    for number in range(options.nodes):
        world.start(number, random.random() if number else 0.0)
    world.run(SETTLE_S)
    before = world.traffic.snapshot()
    world.run(end_s)
    sent = world.traffic
    sent_bytes = sent.datagram_bytes + sent.stream_bytes - before.datagram_bytes - before.stream_bytes
    node_seconds = options.nodes * options.duration_s
    noticed_by_all = len(watch.noticed_s) == options.nodes - len(lossy) - 1
    return LossResult(
        protocol=options.protocol,
        verdicts=watch.verdicts,
        on_healthy=watch.on_healthy,
        at_healthy=watch.at_healthy,
        raised=watch.raised,
        raised_on_healthy=watch.raised_on_healthy,
        crash_first_s=round(min(watch.noticed_s.values()), 3) if watch.noticed_s else None,
        crash_last_s=round(max(watch.noticed_s.values()), 3) if noticed_by_all else None,
        datagrams_per_node_s=round((sent.datagrams - before.datagrams) / node_seconds, 2),
        bytes_per_node_s=round(sent_bytes / node_seconds, 1),
    )


def run_protocols(
    runs: Iterable[LossOptions], *, jobs: int = 1, progress: Callable[[LossResult], None] = lambda _: None
) -> list[LossResult]:
    """Do the runs, `jobs` at a time, each in a process of its own; that changes no result."""
    results: list[LossResult] = []
    if jobs == 1:
        for result in map(run_loss, runs):
            progress(result)
            results.append(result)
        return beside_published(results)
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(run_loss, runs):
            progress(result)
            results.append(result)
    return beside_published(results)


def beside_published(results: list[LossResult]) -> list[LossResult]:
    """Return the results with their ratios to SWIM's as it was published, if that is among them."""
    published = next((result for result in results if result.protocol == PUBLISHED), None)
    if published is None:
        return results

    def ratio(mine: int, base: int) -> float | None:
        return round(mine / base, 5) if base else None

    return [
        replace(
            result,
            verdict_ratio=ratio(result.verdicts, published.verdicts),
            raised_ratio=ratio(result.raised, published.raised),
        )
        for result in results
    ]
