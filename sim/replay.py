"""`p2pkv sim replay`: a recorded trace through the cores that decide what stays."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final, Literal, TypeAlias

from p2pkv.eviction import ORDERS, PolicyName, make_policy
from p2pkv.sim.geometry import DEFAULT, geometry
from p2pkv.sim.one_cache import Counted, Engine, OneCache, TierCache, replay_ideal, replay_modelled
from p2pkv.sim.quantiles import quantile
from p2pkv.sim.routing import Routing, homes
from p2pkv.sim.traces import Trace, read_trace

Timing: TypeAlias = Literal["modelled", "ideal"]
_QUANTILES: Final = (0.5, 0.9, 0.99)


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
    ttft_s: dict[str, float | None] | None = None
    """Time to the first token, by quantile; None where time is not modelled."""


def run_one_cache(options: ReplayOptions, trace: Trace | None = None) -> ReplayResult:
    """Replay a trace through one cache that all engines share, with no way between."""
    trace = trace or read_trace(Path(options.trace), coarsen=options.coarsen)
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
