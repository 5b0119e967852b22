"""Engines that use the mesh: prompts with common beginnings, asked for through the verbs of the real node.

An engine acquires the chain of a prompt, gets a lease on what came, computes the rest, and publishes it. Prompts share
one of a few prefixes, the first of them most often, or none at all; prefixes outgrow the tiers, so blocks are evicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from random import Random
from typing import Final

import msgspec

from p2pkv.acquires import Acquired
from p2pkv.blocks import DIGEST_BYTES, KEY_BYTES, BlockInfo, BlockKey
from p2pkv.config import Config, HostConfig
from p2pkv.errors import CapacityError
from p2pkv.node import Effect, Node
from p2pkv.sim.claims import Claims
from p2pkv.sim.clock import SECOND_US, to_us
from p2pkv.sim.transfers import Transfers
from p2pkv.sim.world import World

BLOCK_BYTES: Final = 32 * 1024
BLOCKS_MAX: Final = 32
"""Blocks that a node has room for."""
COMPUTE_S: Final = 0.02
"""What an engine takes for a block that it did not get."""
TIMEOUT_S: Final = 5.0
"""How long an engine waits for the mesh."""
_ENGINE: Final = "engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What all engines ask for; each node has one."""

    start_s: float
    end_s: float
    requests_per_s: float = 0.2
    """Of each engine, on average (a Poisson process)."""
    prefixes: int = 6
    prefix_blocks: tuple[int, int] = (4, 24)
    """Shortest and longest."""
    tail_blocks: int = 4
    """Most blocks behind a common prefix that nobody else asks for."""
    fresh_share: float = 0.2
    """Share of prompts that begin like no other."""


@dataclass(slots=True)
class Served:
    """Blocks of all prompts so far, by where they came from."""

    prompts: int = 0
    blocks: int = 0
    local: int = 0
    remote: int = 0
    computed: int = 0


def with_room(config: Config) -> Config:
    """Return `config` with tiers of `BLOCKS_MAX` blocks and filters made for them."""
    summary = msgspec.structs.replace(config.summary, blocks_expected=BLOCKS_MAX)
    return msgspec.structs.replace(
        config, host=HostConfig(capacity_bytes=max(2**20, BLOCKS_MAX * BLOCK_BYTES)), summary=summary
    )


class Engines:
    """One engine beside each node."""

    def __init__(self, world: World, load: Load, random: Random, *, ratio: float) -> None:
        """`ratio` is the false-positive ratio that the nodes' filters are made for."""
        self._world = world
        self._load = load
        self._random = random
        self._prompts = 0
        self._asked: dict[tuple[int, int, int], tuple[tuple[BlockKey, ...], int]] = {}
        self._prefixes = [self._chain(f"prefix {n}", self._between(*load.prefix_blocks)) for n in range(load.prefixes)]
        self.served: Final = Served()
        self.claims: Final = Claims(world, ratio=ratio)
        self.transfers: Final = Transfers(world)
        self.transfers.on_commit = self.claims.had
        world.on_acquired = self._on_acquired
        for number in range(world.size):
            self._schedule(number, to_us(load.start_s))

    def overdue(self, patience_s: float) -> list[str]:
        """Return the engines that wait for longer than they said they would, and `patience_s` more."""
        world, found = self._world, []
        limit_us = to_us(TIMEOUT_S + patience_s)
        for (number, boot, _), (_, asked_us) in list(self._asked.items()):
            here = world.is_running(number) and world.boot(number) == boot
            if here and world.now_us - asked_us > limit_us:
                found.append(f"the engine of node {number} has waited since {asked_us / SECOND_US:.3f} s")
        return found

    def leaks(self) -> list[str]:
        """Return what nodes have not given back. To be asked long after the last prompt."""
        found = []
        for number, node in self._world.running():
            ledger, fetch = node.statistics().ledger, node.statistics().fetch
            if ledger.pinned_blocks or ledger.leases:
                found.append(f"node {number} still holds {ledger.leases} leases on {ledger.pinned_blocks} blocks")
            if fetch.in_flight:
                found.append(f"node {number} still waits for {fetch.in_flight} blocks")
            if ledger.used_bytes != ledger.blocks * BLOCK_BYTES:
                found.append(f"node {number} has {ledger.used_bytes} bytes in use for {ledger.blocks} blocks")
        return found

    # -- one prompt -------------------------------------------------------------------------------------------------

    def _schedule(self, number: int, from_us: int) -> None:
        at_us = from_us + to_us(self._random.expovariate(self._load.requests_per_s))
        if at_us < to_us(self._load.end_s):
            self._world.later(at_us, partial(self._ask, number))

    def _ask(self, number: int) -> None:
        world = self._world
        self._schedule(number, world.now_us)
        keys = self._prompt()  # drawn in any case, so that who is there changes nothing for the others
        node = world.node(number)
        if node is None:
            return
        self.claims.check(number, keys, node.match(keys))

        def verb(node: Node, now: float) -> tuple[int, Sequence[Effect]]:
            return node.acquire(keys, holder=_ENGINE, deadline=now + TIMEOUT_S, now=now)

        acquire = world.call(number, b"acquire", verb)
        self._asked[number, world.boot(number), acquire] = (keys, world.now_us)

    def _on_acquired(self, number: int, acquired: Acquired) -> None:
        # An acquire may be over before its verb has returned, and the verb's other effects come first.
        self._world.later(self._world.now_us + 1, partial(self._use, number, self._world.boot(number), acquired))

    def _use(self, number: int, boot: int, acquired: Acquired) -> None:
        keys, _ = self._asked.pop((number, boot, acquired.acquire))
        if not self._is_there(number, boot):
            return
        have = len(acquired.lease.blocks)
        remote = sum(source != "" for source in acquired.sources)
        served = self.served
        served.prompts += 1
        served.blocks += len(keys)
        served.remote += remote
        served.local += have - remote
        served.computed += len(keys) - have
        done_us = self._world.now_us + to_us(COMPUTE_S * (len(keys) - have))
        self._world.later(done_us, partial(self._publish, number, boot, acquired, keys))

    def _publish(self, number: int, boot: int, acquired: Acquired, keys: tuple[BlockKey, ...]) -> None:
        if not self._is_there(number, boot):
            return

        def verb(node: Node, now: float) -> Sequence[Effect]:
            for depth in range(len(acquired.lease.blocks), len(keys)):
                try:
                    reservation = node.reserve(_info(keys[depth]), now)
                except CapacityError:
                    break
                if reservation is not None:
                    node.commit(reservation, now, depth, keys[depth - 1] if depth else None)
                    self.claims.had(number, keys[depth])
            node.ledger.release(acquired.lease.id, holder=_ENGINE)
            return ()

        self._world.tell(number, b"publish", verb)

    def _is_there(self, number: int, boot: int) -> bool:
        return self._world.is_running(number) and self._world.boot(number) == boot

    # -- prompts ----------------------------------------------------------------------------------------------------

    def _prompt(self) -> tuple[BlockKey, ...]:
        self._prompts += 1
        fresh, place, tail = (self._random.random() for _ in range(3))
        tail_blocks = int(tail * (self._load.tail_blocks + 1))
        if fresh < self._load.fresh_share:
            return self._chain(f"prompt {self._prompts}", 1 + tail_blocks)
        prefix = self._prefixes[int(place * place * len(self._prefixes))]
        return self._chain(f"prompt {self._prompts}", tail_blocks, behind=prefix)

    def _chain(self, name: str, blocks: int, *, behind: tuple[BlockKey, ...] = ()) -> tuple[BlockKey, ...]:
        keys = list(behind)
        for depth in range(len(behind), len(behind) + blocks):
            key = BlockKey(blake2b(f"{name}/{depth}".encode(), digest_size=KEY_BYTES).digest())
            self._world.places_of_blocks[key] = (depth, keys[-1] if keys else None)
            keys.append(key)
        return tuple(keys)

    def _between(self, least: int, most: int) -> int:
        return least + int(self._random.random() * (most - least + 1))


def _info(key: BlockKey) -> BlockInfo:
    digest = blake2b(key, digest_size=DIGEST_BYTES).digest()
    return BlockInfo(key, bytes(KEY_BYTES), BLOCK_BYTES, BLOCK_BYTES, digest)
