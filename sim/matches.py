"""How long a whole node takes to say what can be had of a chain, and to plan for it, among many peers.

The node is the one that the agent drives; its peers' records and summaries come in the messages of the network. Each
round asks `match`, as an engine does, and then for what an acquire of the same chain begins with: a match and a plan.
Rounds go round several chains.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median, quantiles
from typing import Final

import msgspec

from p2pkv.blocks import BlockKey
from p2pkv.config import HostConfig, load
from p2pkv.node import Node
from p2pkv.planner import Cost
from p2pkv.sim.lookups import LookupOptions, fill
from p2pkv.transport.wire import MemberRecord, PushPull

BLOCK_BYTES: Final = 256 * 1024
PREFILL_BLOCK_S: Final = 0.004
_KEY_BYTES: Final = 32
_RECORDS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchOptions:
    """What is asked for among whom."""

    peers: int = 100
    blocks: int = 500
    keys: int = 6650
    """Keys in each peer's filter."""
    rounds: int = 400
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchResult:
    """Times in microseconds of wall time."""

    match_p50_us: float
    match_p99_us: float
    both_p50_us: float
    """A match and a plan, as an acquire makes them before it asks anybody."""
    both_p99_us: float
    both_p10_us: float
    """Least disturbed by what else the machine does."""
    holders: int
    """Peers that claim some of the first chain."""
    runs: int
    """Peers its plan asks."""
    planned_blocks: int


def run_matches(options: MatchOptions) -> MatchResult:
    """Make the node, tell it of its peers, and measure."""
    random = Random(options.seed)
    chains = [[BlockKey(random.randbytes(_KEY_BYTES)) for _ in range(options.blocks)] for _ in range(8)]
    node = _node(options)
    fill(node.summaries, LookupOptions(peers=options.peers, blocks=options.blocks, keys=options.keys), chains, random)
    cost = Cost(BLOCK_BYTES, PREFILL_BLOCK_S)
    match_us, both_us = [], []
    for number in range(options.rounds):
        chain = chains[number % len(chains)]
        began = time.perf_counter()
        node.match(chain, 1.0)
        between = time.perf_counter()
        node.explain(chain, 1.0, cost)
        ended = time.perf_counter()
        match_us.append((between - began) * 1e6)
        both_us.append((ended - between) * 1e6)
    decision, _ = node.explain(chains[0], 1.0, cost)
    return MatchResult(
        match_p50_us=median(match_us),
        match_p99_us=_percentile(match_us, 99),
        both_p50_us=median(both_us),
        both_p99_us=_percentile(both_us, 99),
        both_p10_us=_percentile(both_us, 10),
        holders=len(node.match(chains[0], 1.0).holders),
        runs=len(decision.plan.runs),
        planned_blocks=decision.plan.stop,
    )


def _node(options: MatchOptions) -> Node:
    base = load(environment={}, profile="loopback")
    summary = msgspec.structs.replace(base.summary, blocks_expected=options.keys)
    config = msgspec.structs.replace(base, host=HostConfig(capacity_bytes=2**20), summary=summary)
    node = Node(config, _record("self"), Random(options.seed))
    records = [_record(f"peer-{number:05d}") for number in range(options.peers)]
    for start in range(0, options.peers, _RECORDS):
        part = records[start : start + _RECORDS]
        node.on_message(part[0].id, PushPull(tuple(part), reply=False), 0.0)
    return node


def _record(name: str) -> MemberRecord:
    return MemberRecord(id=name, boot=1, incarnation=0, state=0, name=name, address=f"{name}:1", offered_bytes=2**30)


def _percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100)[percent - 1]
