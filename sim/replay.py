"""`p2pkv sim replay`: a recorded trace through the cores that decide what stays."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Final, Literal, TypeAlias

from p2pkv.config import load
from p2pkv.errors import LocalUseError
from p2pkv.eviction import ORDERS, PolicyName, make_policy
from p2pkv.forwarding import HOPS_MAX
from p2pkv.sim.geometry import DEFAULT, geometry
from p2pkv.sim.ideal_mesh import IdealMesh, Sharing, replay_mesh
from p2pkv.sim.modelled_mesh import ModelledCounted, ModelledMesh
from p2pkv.sim.one_cache import Counted, Engine, OneCache, TierCache, replay_ideal, replay_modelled
from p2pkv.sim.quantiles import quantile
from p2pkv.sim.routing import Routing, homes
from p2pkv.sim.traces import Trace, read_trace

Timing: TypeAlias = Literal["modelled", "ideal"]
_QUANTILES: Final = (0.5, 0.9, 0.99)
_AFTER_S: Final = 600.0
_REST_S: Final = 600.0
"""After the last request, for those under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What to replay, through what. Together with the trace and the revision of the code it is the run."""

    trace: str
    nodes: int = 8
    total_blocks: int = 30_000
    routing: Routing = "rr"
    policy: PolicyName = "adaptive"
    coarsen: int = 1
    timing: Timing = "modelled"
    plain: bool = False
    """The policy alone, without what a tier asks of it besides: it may strand tails, as in published tables."""
    idle_s: float = 0.0
    geometry: str = DEFAULT
    one_cache: bool = False
    sharing: Sharing = "mesh"
    hops_max: int = HOPS_MAX
    lose: bool = False
    """Whether a node ends in the middle, and how much is hit in the ten minutes after that."""
    seed: int = 0
    """Of the salt in keys: other keys lie elsewhere on the ring and in filters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What came of it. Ratios are shares of blocks unless said otherwise."""

    requests: int
    blocks: int
    """References, each block of each request."""
    block_tokens: int
    hit_ratio: float
    hit_ratio_tokens: float
    """Share of prompts' tokens."""
    local_hit_ratio: float | None = None
    """Of all blocks; this and what follows, of nodes only."""
    remote_hit_ratio: float | None = None
    oracle_ratio: float | None = None
    """What was somewhere at the moment it was asked for; in modelled time."""
    duplicate_ratio: float | None = None
    """Share of what is held in the end that another node holds, too."""
    wasted_fetch_ratio: float | None = None
    """Share of blocks asked of peers that came too late, or were not there any more."""
    forwarded_blocks: int | None = None
    """Last copies that another node took in before they were dropped."""
    summary_bytes_per_node_s: float | None = None
    load_max_over_mean: float | None = None
    """Blocks asked for at the busiest node over those at all."""
    replicated_blocks: int | None = None
    """Copies that another node took in because a block is hot."""
    hit_ratio_after_loss: float | None = None
    """Of the ten minutes after a node was lost; this and what follows, with `lose`."""
    hit_ratio_undisturbed: float | None = None
    """Of the same ten minutes if it is not lost."""
    kept_of_undisturbed: float | None = None
    hottest_alone: float | None = None
    """Of the hottest 1 % of all blocks that are held, by uses in the ten minutes before, those that one node alone has: what is lost
    with it, whichever it is."""
    ttft_s: dict[str, float | None] | None = None
    """Time to the first token, by quantile; None where time is not modelled."""


def run_replay(options: ReplayOptions) -> ReplayResult:
    """Replay a trace as the options say."""
    return run_one_cache(options) if options.one_cache else run_mesh(options)


def run_one_cache(options: ReplayOptions, trace: Trace | None = None) -> ReplayResult:
    """Replay a trace through one cache that all engines share, with no way between."""
    trace = trace or _read(options)
    capacity = options.total_blocks
    if options.plain and options.timing == "ideal":
        return _result(trace, replay_ideal(trace, OneCache(ORDERS[options.policy](capacity), capacity)))
    policy = make_policy(
        options.policy, capacity=lambda _: capacity, chains=not options.plain, ttl_s=options.idle_s or inf
    )
    cache = TierCache(policy, capacity)
    if options.timing == "ideal":
        return _result(trace, replay_ideal(trace, cache))
    engines = [Engine(geometry(options.geometry)) for _ in range(options.nodes)]
    return _result(trace, replay_modelled(trace, cache, engines, homes(trace, options.routing, options.nodes)))


def run_mesh(options: ReplayOptions, trace: Trace | None = None) -> ReplayResult:
    """Replay a trace through nodes that share what they hold.

    Raises:
        LocalUseError: there are fewer blocks than nodes.
    """
    trace = trace or _read(options)
    capacity = options.total_blocks // options.nodes
    if not capacity:
        raise LocalUseError(f"total-blocks is {options.total_blocks}, fewer than {options.nodes} nodes")
    if options.timing == "modelled":
        return _run_modelled(options, trace)
    if options.lose:
        raise LocalUseError("a node can be lost in modelled time only", hint="leave out --timing ideal")
    policies = [
        make_policy(options.policy, capacity=lambda _: capacity, chains=not options.plain, ttl_s=options.idle_s or inf)
        for _ in range(options.nodes)
    ]
    mesh = IdealMesh(policies, capacity, sharing=options.sharing, hops_max=options.hops_max)
    routed = homes(trace, options.routing, options.nodes) if options.routing != "affinity" else None
    counted = replay_mesh(trace, mesh, routed)
    mean_load = sum(counted.load) / len(counted.load)
    return replace(
        _result(trace, counted),
        local_hit_ratio=round(counted.local_blocks / counted.blocks, 6),
        remote_hit_ratio=round(counted.remote_blocks / counted.blocks, 6),
        duplicate_ratio=round(mesh.duplicates(), 6),
        wasted_fetch_ratio=0.0,
        forwarded_blocks=counted.forwarded,
        replicated_blocks=counted.replicated,
        summary_bytes_per_node_s=0.0,
        load_max_over_mean=round(max(counted.load) / mean_load, 4),
    )


def _read(options: ReplayOptions) -> Trace:
    return read_trace(Path(options.trace), coarsen=options.coarsen, salt=options.seed)


def _run_modelled(options: ReplayOptions, trace: Trace) -> ReplayResult:
    """Replay a trace through nodes that take their time; with `lose` twice, the second time undisturbed."""
    if options.sharing not in ("mesh", "local"):
        raise LocalUseError(
            f"sharing is {options.sharing!r}, in modelled time it is mesh or local", hint="add --timing ideal"
        )
    middle_s = trace.duration_s / 2
    mesh, hottest_alone = _replayed(options, trace, middle_s if options.lose else inf)
    counted = mesh.counted
    mean_load = sum(counted.load) / len(counted.load)
    result = replace(
        _result(trace, counted),
        local_hit_ratio=round(counted.local_blocks / counted.blocks, 6),
        remote_hit_ratio=round(counted.remote_blocks / counted.blocks, 6),
        duplicate_ratio=round(mesh.duplicates(), 6),
        oracle_ratio=round(counted.oracle_blocks / counted.blocks, 6),
        wasted_fetch_ratio=round(counted.wasted / counted.asked_of_peers, 6) if counted.asked_of_peers else 0.0,
        forwarded_blocks=counted.forwarded,
        replicated_blocks=counted.replicated,
        summary_bytes_per_node_s=round(counted.summary_bytes / options.nodes / max(1.0, trace.duration_s), 1),
        load_max_over_mean=round(max(counted.load) / mean_load, 4),
    )
    if not options.lose:
        return result
    undisturbed, _ = _replayed(options, trace, inf)
    after, usual = (_ratio_after(one.counted, middle_s) for one in (mesh, undisturbed))
    return replace(
        result,
        hit_ratio_after_loss=round(after, 6),
        hit_ratio_undisturbed=round(usual, 6),
        kept_of_undisturbed=round(after / usual, 4) if usual else None,
        hottest_alone=hottest_alone,
    )


def _replayed(options: ReplayOptions, trace: Trace, lost_s: float) -> tuple[ModelledMesh, float | None]:
    """Replay it; at `lost_s` the first node is lost. How much of the hottest blocks one node alone has then is returned, too."""
    capacity = options.total_blocks // options.nodes
    mesh = ModelledMesh(
        [
            make_policy(
                options.policy, capacity=lambda _: capacity, chains=not options.plain, ttl_s=options.idle_s or inf
            )
            for _ in range(options.nodes)
        ],
        capacity,
        config=load(environment={}),
        geometry=geometry(options.geometry),
        block_tokens=trace.block_tokens,
        shares=options.sharing == "mesh",
        hops_max=options.hops_max,
    )
    routed = homes(trace, options.routing, options.nodes) if options.routing != "affinity" else None
    hottest_alone = None
    for number, request in enumerate(trace.requests):
        if request.at_s >= lost_s:
            mesh.run(lost_s)
            hottest_alone = _lose(mesh, trace, lost_s)
            lost_s = inf
        mesh.run(request.at_s)
        mesh.ask(request, routed[number] if routed is not None else None)
    mesh.run(trace.duration_s + _REST_S)
    return mesh, hottest_alone


def _lose(mesh: ModelledMesh, trace: Trace, at_s: float) -> float:
    uses = Counter(
        key for one in trace.requests if at_s - _AFTER_S <= one.at_s < at_s for key in one.blocks if mesh.holders(key)
    )
    held = sum(len(node.policy) for node in mesh.nodes)
    hottest = [key for key, _ in uses.most_common(max(1, held // 100))]
    alone = sum(len(mesh.holders(key)) == 1 for key in hottest)
    mesh.lose(0)
    return round(alone / max(1, len(hottest)), 4)


def _ratio_after(counted: ModelledCounted, at_s: float) -> float:
    some = [(blocks, hit) for asked_s, blocks, hit in counted.by_request if at_s <= asked_s < at_s + _AFTER_S]
    return sum(hit for _, hit in some) / max(1, sum(blocks for blocks, _ in some))


def _result(trace: Trace, counted: Counted) -> ReplayResult:
    return ReplayResult(
        requests=counted.requests,
        blocks=counted.blocks,
        block_tokens=trace.block_tokens,
        hit_ratio=round(counted.hit_blocks / counted.blocks, 6),
        hit_ratio_tokens=round(counted.hit_tokens / counted.tokens, 6),
        ttft_s=_quantiles(counted.ttft_s) if counted.ttft_s else None,
    )


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    found: dict[str, float | None] = {"mean": round(sum(values) / len(values), 4)}
    return found | {f"p{100 * share:g}": quantile(values, share) for share in _QUANTILES}
