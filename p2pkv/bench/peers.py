"""p2pkv beside the systems that users would pick, on one machine in one run: the same blocks, round by round.

Every system has an owner process with the blocks in its memory and a taker process that is asked to fetch them. A round
asks each taker in turn, beginning with another one each time, so whatever else the machine does it does to all; a ratio
is the median of the rounds' own ratios. Sources and destinations are several times the last-level cache and walked
through in order, so no byte is in a cache when its turn comes.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from p2pkv.bench import peers_children as children
from p2pkv.bench.peers_children import Bench, Contender, Make, Shape
from p2pkv.bench.peers_limits import Limit, measure_limits
from p2pkv.bench.peers_lookup import Lookup, measure_lookup
from p2pkv.bench.peers_rest import Rest, measure_rest
from p2pkv.demo.processes import Child, all_stopped
from p2pkv.errors import ConfigError, P2pkvError

SHAPES: Final = ((256 * 2**10, 64), (4 * 2**20, 16))
"""(bytes of a block, blocks of a take): one long prompt in small blocks, and one in large ones."""
ONE_BLOCK_BYTES: Final = 256 * 2**10
PARTS: Final = ("moves", "one", "lookup", "limits", "rest")
SYSTEMS: Final[dict[str, Make]] = {
    "p2pkv-shm": children.p2pkv_shm,
    "p2pkv-tcp": children.p2pkv_tcp,
    "p2pkv-aead": children.p2pkv_aead,
    "mooncake": children.mooncake,
    "lmcache": children.lmcache,
    "redis": children.redis,
    "nixl": children.nixl,
}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersOptions:
    """What to measure."""

    python: str
    """A Python with the other systems; see `make bench-peers`."""
    rounds: int = 9
    takes: int = 4
    """Leases per system and round."""
    ones: int = 400
    """Single blocks that are timed per system."""
    memory_bytes: int = 256 * 2**20
    """Of the blocks of one owner; several times the last-level cache."""
    rest_s: float = 30.0
    rest_peers: int = 20
    parts: tuple[str, ...] = PARTS
    systems: tuple[str, ...] = tuple(SYSTEMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One system with one size of blocks."""

    system: str
    transport: str
    protection: str
    digests: bool
    """Whether what was fetched was compared with digests."""
    block_bytes: int
    blocks: int
    gbps: float
    """10^9 bytes per second, median over the rounds."""
    gbps_p25: float
    gbps_p75: float
    p50_ms: float
    """Of one take."""
    p99_ms: float
    ratio: float
    """How many times as fast as Mooncake Store, median over the rounds of the round's own ratio; 0 without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class One:
    """One block by key from a peer, connections open, block not here."""

    system: str
    transport: str
    protection: str
    block_bytes: int
    p50_us: float
    p99_us: float
    times_mooncake: float
    """How many times Mooncake Store's median it takes; 0 without it."""
    parts_us: dict[str, float] = field(default_factory=dict)
    """Medians of where the time goes; p2pkv only."""


@dataclass(slots=True, kw_only=True)
class PeersResult:
    """All that was measured. A system that could not be is in `failed` with the reason."""

    moves: list[Move] = field(default_factory=list)
    one: list[One] = field(default_factory=list)
    lookup: Lookup | None = None
    limits: list[Limit] = field(default_factory=list)
    rest: Rest | None = None
    failed: dict[str, str] = field(default_factory=dict)


def run_peers(options: PeersOptions, progress: Progress = lambda _: None) -> PeersResult:
    """Measure what `options` ask for; some minutes.

    Raises:
        ConfigError: a program that is measured beside is not installed; the hint says what to install.
        P2pkvError: one of ours did not start.
    """
    if not Path(options.python).exists():
        raise ConfigError(f"{options.python} is no Python that can be run", hint="run `make bench-peers-env` first")
    result = PeersResult()
    if "limits" in options.parts:
        progress("limits, made by hand and by others")
        result.limits = measure_limits(options.rounds, options.memory_bytes)
    if "moves" in options.parts:
        for block_bytes, per_lease in SHAPES:
            shape = Shape(block_bytes, per_lease, options.memory_bytes // block_bytes, options.takes)
            with _contenders(options, shape, result, progress) as contenders:
                result.moves += _moves(contenders, shape, options, progress)
    if {"one", "lookup"} & set(options.parts):
        shape = Shape(ONE_BLOCK_BYTES, 1, options.memory_bytes // ONE_BLOCK_BYTES)
        with _contenders(options, shape, result, progress) as contenders:
            if "one" in options.parts:
                result.one = _ones(contenders, options, progress)
            peers = [one.taker for one in contenders if one.system == "Mooncake Store"]
            if "lookup" in options.parts and peers:
                progress("match and plan beside batch_is_exist")
                with _bench(options) as bench:
                    result.lookup = measure_lookup(bench, peers[0], options.rounds)
    if "rest" in options.parts:
        progress(f"{options.rest_peers + 1} daemons at rest")
        with _bench(options) as bench:
            result.rest = measure_rest(bench, options.rest_peers, options.rest_s)
    return result


@contextmanager
def _bench(options: PeersOptions) -> Iterator[Bench]:
    with TemporaryDirectory(prefix="p2pkv-bench-") as name, all_stopped() as started:
        processes: list[Child] = started
        yield Bench(Path(name), options.python, processes)


@contextmanager
def _contenders(
    options: PeersOptions, shape: Shape, result: PeersResult, progress: Progress
) -> Iterator[list[Contender]]:
    with _bench(options) as bench:
        ready: list[Contender] = []
        for name in options.systems:
            progress(f"{name}: {shape.blocks} blocks of {shape.block_bytes // 1024} KiB")
            try:
                ready.append(SYSTEMS[name](bench, shape))
            except ConfigError:
                raise
            except P2pkvError as exc:
                if name.startswith("p2pkv"):
                    raise
                result.failed[name] = f"{exc}; {exc.hint}"
                progress(f"{name} is not measured: {result.failed[name]}")
        yield ready


def _moves(contenders: Sequence[Contender], shape: Shape, options: PeersOptions, progress: Progress) -> list[Move]:
    takes_s: list[list[list[float]]] = [[] for _ in contenders]
    lease, count = 1, options.takes
    _prepare(contenders, lease, count)
    for number in range(-1, options.rounds):  # the round before the first opens connections and touches pages
        _prepare(contenders, lease + count, count)  # a round ahead: what was just written is in a cache
        for place in range(len(contenders)):
            who = (place + number) % len(contenders)
            seconds = [contenders[who].taker.ask("take", lease=lease + i) for i in range(count)]
            if number >= 0:
                takes_s[who].append(seconds)
        lease += count
        progress(f"round {number + 1} of {options.rounds}")
    beside = [i for i, one in enumerate(contenders) if one.system == "Mooncake Store"]
    return [_move(one, shape, takes_s[i], takes_s[beside[0]] if beside else None) for i, one in enumerate(contenders)]


def _prepare(contenders: Sequence[Contender], first: int, count: int) -> None:
    for one in contenders:
        if one.prepares:
            one.taker.ask("prepare", first=first, count=count)


def _move(
    one: Contender, shape: Shape, rounds: Sequence[Sequence[float]], beside: Sequence[Sequence[float]] | None
) -> Move:
    speeds = [shape.lease_bytes * len(seconds) / sum(seconds) / 1e9 for seconds in rounds]
    p25, p50, p75 = statistics.quantiles(speeds, n=4)
    flat = sorted(second for seconds in rounds for second in seconds)
    ratio = statistics.median(sum(b) / sum(a) for a, b in zip(rounds, beside, strict=True)) if beside else 0.0
    return Move(
        system=one.system,
        transport=one.transport,
        protection=one.protection,
        digests=one.digests,
        block_bytes=shape.block_bytes,
        blocks=shape.per_lease,
        gbps=p50,
        gbps_p25=p25,
        gbps_p75=p75,
        p50_ms=statistics.median(flat) * 1e3,
        p99_ms=flat[len(flat) * 99 // 100] * 1e3,
        ratio=ratio,
    )


def _ones(contenders: Sequence[Contender], options: PeersOptions, progress: Progress) -> list[One]:
    progress("one block at a time")
    taken_s: list[list[float]] = [[] for _ in contenders]
    parts: list[list[dict[str, Any]]] = [[] for _ in contenders]
    block, count = 1, max(1, options.ones // options.rounds)
    _prepare(contenders, block, 2 * count)
    for number in range(-1, options.rounds):
        _prepare(contenders, block + 2 * count, 2 * count)
        for place in range(len(contenders)):
            who = (place + number) % len(contenders)
            taker = contenders[who].taker
            seconds = [taker.ask("take", lease=block + i) for i in range(count)]
            if number >= 0:
                taken_s[who] += seconds
                if contenders[who].system == "p2pkv":
                    parts[who] += [taker.ask("parts", lease=block + count + i) for i in range(count)]
        block += 2 * count
    beside = [statistics.median(taken_s[i]) for i, one in enumerate(contenders) if one.system == "Mooncake Store"]
    return [
        One(
            system=one.system,
            transport=one.transport,
            protection=one.protection,
            block_bytes=ONE_BLOCK_BYTES,
            p50_us=statistics.median(taken_s[i]) * 1e6,
            p99_us=sorted(taken_s[i])[len(taken_s[i]) * 99 // 100] * 1e6,
            times_mooncake=statistics.median(taken_s[i]) / beside[0] if beside else 0.0,
            parts_us={name: statistics.median(part[name] for part in parts[i]) * 1e6 for name in (parts[i] or [{}])[0]},
        )
        for i, one in enumerate(contenders)
    ]
