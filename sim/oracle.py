"""Engines and the moving of blocks in a simulated world, and an oracle that knows who really holds what.

An engine acquires the longest prefix of a chain, computes the rest and publishes it, by the verbs a daemon uses. A
transfer takes a round trip and its bytes over the link; what the owner let go of meanwhile does not arrive.

The oracle is asked at the moment of each request: with exact sets of that very moment, how long a prefix could the node
have had, from here and from everybody who runs? It sees the tiers as they are in this run.
"""

from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Final

from p2pkv.acquires import Acquired
from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.errors import TierFull
from p2pkv.fetch import Outcome, StartTransfer
from p2pkv.node import Effect, Node
from p2pkv.sim.faults import to_us
from p2pkv.sim.workload import Request
from p2pkv.sim.world import World, id_of
from p2pkv.slots import PAGE_BYTES

BLOCK_BYTES: Final = PAGE_BYTES
"""In the books; no bytes are moved. On the link a block counts as `LINK_BLOCK_BYTES`."""
LINK_BLOCK_BYTES: Final = 2**21
LINK_BYTES_S: Final = 1.25e9
"""10 Gbit/s: 1.7 ms a block."""
COMPUTE_BLOCK_S: Final = 0.005
ENGINE_TIMEOUT_S: Final = 5.0
_HOLDER: Final = "engine"


@dataclass(slots=True)
class Tally:
    """Sums over the requests that were counted, blocks unless said otherwise."""

    requests: int = 0
    asked_blocks: int = 0
    local_blocks: int = 0
    hit_blocks: int = 0
    """In the prefix that the engine got."""
    oracle_blocks: int = 0
    lookups: int = 0
    """Requests that were not all here, so that peers come into question."""
    added: int = 0
    evicted: int = 0


@dataclass(slots=True)
class _Asked:
    request: Request
    oracle: int
    local: int
    counts: bool


@dataclass(slots=True)
class Engines:
    """One engine at each node of `world`; what it is given to do is scheduled before the world runs."""

    world: World
    random: Random
    counts_from_us: int
    """Requests before this are carried out and not counted."""
    tally: Tally = field(default_factory=Tally)
    first_remote_us: dict[int, int] = field(default_factory=dict)
    """When each node first got a block from a peer."""
    _open: dict[tuple[int, int], _Asked] = field(default_factory=dict)
    _holders: dict[BlockKey, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.world.on_transfer = self._move
        self.world.on_acquired = self._acquired

    def plan(self, request: Request) -> None:
        """Have a request come at its time."""
        self.world.later(to_us(request.at_s), partial(self.ask, request))

    def ask(self, request: Request, *, counts: bool = True) -> None:
        """Have an engine ask for a chain now; nothing happens if its node does not run."""
        if not self.world.is_running(request.node):
            return

        def acquire(node: Node, now: float) -> tuple[None, tuple[Effect, ...]]:
            local = node.ledger.prefix(request.keys)
            oracle = local
            while oracle < len(request.keys) and self._holders.get(request.keys[oracle]):
                oracle += 1
            number, effects = node.acquire(request.keys, holder=_HOLDER, deadline=now + ENGINE_TIMEOUT_S, now=now)
            self._open[request.node, number] = _Asked(
                request, oracle, local, counts and self.world.now_us >= self.counts_from_us
            )
            return None, effects

        self.world.call(request.node, b"acquire", acquire)

    # -- inside -------------------------------------------------------------------------------------------------

    def _acquired(self, number: int, acquired: Acquired) -> None:
        asked = self._open.pop((number, acquired.acquire))
        got = len(acquired.lease.blocks)
        if any(acquired.sources):
            self.first_remote_us.setdefault(number, self.world.now_us)
        if asked.counts:
            self.tally.requests += 1
            self.tally.asked_blocks += len(asked.request.keys)
            self.tally.local_blocks += asked.local
            self.tally.hit_blocks += got
            self.tally.oracle_blocks += asked.oracle
            self.tally.lookups += asked.local < len(asked.request.keys)
        ready_us = self.world.now_us + to_us(COMPUTE_BLOCK_S * (len(asked.request.keys) - got)) + 1
        self.world.later(ready_us, partial(self._publish, asked.request, acquired.lease.id, got))

    def _publish(self, request: Request, lease: int, first: int) -> None:
        """Store what the engine has computed, and give back what it was lent."""
        if not self.world.is_running(request.node):
            return

        def store(node: Node, now: float) -> tuple[Effect, ...]:
            for depth in range(first, len(request.keys)):
                key = request.keys[depth]
                if not self._store(node, _info(key), now, depth, request.keys[depth - 1] if depth else None):
                    break
            node.ledger.touch(request.keys[first:])  # as a daemon does: the tail goes first
            node.ledger.release(lease, holder=_HOLDER)
            return ()

        self.world.tell(request.node, b"publish", store)

    def _store(
        self, node: Node, info: BlockInfo, now: float, depth: int | None = None, parent: BlockKey | None = None
    ) -> bool:
        """Reserve and commit one block; say whether there was room or it was here."""
        try:
            reservation = node.reserve(info, now)
        except TierFull:
            return False
        if reservation is None:
            return True
        for key in reservation.evicted:
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
        node.commit(reservation, now, depth, parent)
        self._holders[info.key] = self._holders.get(info.key, 0) + 1
        if self.world.now_us >= self.counts_from_us:
            self.tally.added += 1
            self.tally.evicted += len(reservation.evicted)
        return True

    def _move(self, number: int, start: StartTransfer) -> None:
        took_s = 0.001 + len(start.blocks) * LINK_BLOCK_BYTES / LINK_BYTES_S
        self.world.later(self.world.now_us + to_us(took_s), partial(self._moved, number, start))

    def _moved(self, number: int, start: StartTransfer) -> None:
        """Put what the owner's lease still has where it was asked for."""
        if not self.world.is_running(number):
            return
        owner = dict(self.world.running()).get(self.world.number_of(start.peer))
        lease = owner.find_lease(start.lease, id_of(number)) if owner is not None else None

        def take(key: BlockKey, node: Node, now: float) -> tuple[Effect, ...]:
            outcome: Outcome = "gone" if owner is None else "absent"
            if lease is not None:
                outcome = "ok" if self._store(node, _info(key), now) else "full"
            return node.on_block(start.transfer, key, outcome, now)

        for _, info in start.blocks:
            self.world.tell(number, b"block", partial(take, info.key))
        self.world.tell(number, b"moved", lambda node, now: node.on_transfer_ended(start.transfer, "ok", now))


def _info(key: BlockKey) -> BlockInfo:
    return BlockInfo(key, bytes(32), BLOCK_BYTES, BLOCK_BYTES, bytes(16))
