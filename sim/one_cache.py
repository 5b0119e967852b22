"""A trace through one cache: what sharing could bring at best, and how policies compare.

A request *hits* the longest run of its leading blocks that are all here; then each of its blocks is used, or taken in, the
tail first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.eviction import Asked, Order, Policy
from p2pkv.sim.geometry import Geometry
from p2pkv.sim.traces import Recorded, Trace

_CLASS: Final = 0
"""All blocks of a trace are of one size."""


@dataclass(slots=True)
class Engine:
    """Computes one prompt after another, for as long as its model and GPU take."""

    geometry: Geometry
    free_s: float = 0.0

    def compute(self, at_s: float, tokens: int) -> float:
        """Return when so many tokens are computed that are asked for at `at_s`; nothing to compute takes no time."""
        if not tokens:
            return at_s
        self.free_s = max(at_s, self.free_s) + self.geometry.prefill_s(tokens)
        return self.free_s


@dataclass(slots=True)
class Counted:
    """What came of a replay so far."""

    requests: int = 0
    blocks: int = 0
    hit_blocks: int = 0
    tokens: int = 0
    hit_tokens: int = 0
    ttft_s: list[float] = field(default_factory=list)
    """From each request to its first token, where time is modelled."""

    def count(self, request: Recorded, hit: int, block_tokens: int) -> None:
        """Add a request of which so many leading blocks were there."""
        blocks = len(request.blocks)
        self.requests += 1
        self.blocks += blocks
        self.hit_blocks += hit
        self.tokens += request.input_tokens
        self.hit_tokens += request.input_tokens if hit == blocks else min(request.input_tokens, hit * block_tokens)


class OneCache:
    """One order of one size class, and as many blocks as it may have."""

    def __init__(self, order: Order, capacity: int) -> None:
        self._order = order
        self._capacity = capacity

    def hit(self, keys: Sequence[BlockKey], now: float) -> int:  # noqa: ARG002 - others forget with time
        """Return how many leading blocks are here."""
        order = self._order
        if isinstance(order, Asked):
            order.ask(keys)
        for count, key in enumerate(keys):
            if key not in order:
                return count
        return len(keys)

    def use(self, keys: Sequence[BlockKey]) -> None:
        """Use all blocks of a chain, and take in those that are not here, tail first."""
        order, capacity = self._order, self._capacity
        for key in reversed(keys):
            if key in order:
                order.touch(key)
                continue
            if len(order) >= capacity:
                gone = order.victim()
                assert gone is not None
                order.evict(gone)
            order.insert(key)


class TierCache:
    """The same with the policy of a tier: no tail is stranded, and what is unused for too long goes."""

    def __init__(self, policy: Policy, capacity: float) -> None:
        self._policy = policy
        self._capacity = capacity

    def hit(self, keys: Sequence[BlockKey], now: float) -> int:
        """Return how many leading blocks are here."""
        policy = self._policy
        policy.on_time(now)
        if policy.next_deadline() < now:
            for key in policy.idle():
                policy.remove(key)
        policy.ask(keys)
        for count, key in enumerate(keys):
            if key not in policy:
                return count
        return len(keys)

    def use(self, keys: Sequence[BlockKey]) -> None:
        """Use all blocks of a chain, and take in those that are not here, tail first."""
        for depth in range(len(keys) - 1, -1, -1):
            if keys[depth] in self._policy:
                self._policy.touch(keys[depth])
            else:
                self._insert(keys, depth)

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """Use blocks that are here, tail first."""
        for key in reversed(keys):
            self._policy.touch(key)

    def store(self, keys: Sequence[BlockKey]) -> None:
        """Take in what is not here of a chain, tail first; what is here is no more used for that."""
        for depth in range(len(keys) - 1, -1, -1):
            if keys[depth] in self._policy:
                self._policy.renew(keys[depth])
            else:
                self._insert(keys, depth)

    def _insert(self, keys: Sequence[BlockKey], depth: int) -> None:
        policy = self._policy
        if len(policy) >= self._capacity:
            gone = policy.victim(_CLASS)
            assert gone is not None
            policy.evict(gone)
        policy.insert(keys[depth], _CLASS, keys[depth - 1] if depth else None)


def replay_ideal(trace: Trace, cache: OneCache | TierCache) -> Counted:
    """Replay a trace with all that is computed there at once, as published tables have it."""
    counted = Counted()
    for request in trace.requests:
        counted.count(request, cache.hit(request.blocks, request.at_s), trace.block_tokens)
        cache.use(request.blocks)
    return counted


def replay_modelled(trace: Trace, cache: TierCache, engines: Sequence[Engine], homes: Sequence[int]) -> Counted:
    """Replay a trace of which each block is there only after its prefill; `homes` names the engine of each request."""
    counted = Counted()
    ended: list[tuple[float, int, Sequence[BlockKey]]] = []
    for number, (request, home) in enumerate(zip(trace.requests, homes, strict=True)):
        while ended and ended[0][0] <= request.at_s:
            cache.store(heappop(ended)[2])
        hit = cache.hit(request.blocks, request.at_s)
        counted.count(request, hit, trace.block_tokens)
        cache.touch(request.blocks[:hit])  # what is computed is taken in when it is done
        missing = max(0, request.input_tokens - hit * trace.block_tokens) if hit < len(request.blocks) else 0
        done_s = engines[home].compute(request.at_s, missing)
        counted.ttft_s.append(done_s - request.at_s)
        heappush(ended, (done_s, number, request.blocks))
    return counted
