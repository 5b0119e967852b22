"""One owner that is asked for more than it can send: how much of what it sends is still of use to anybody.

Node 0 holds all chains. No taker wants a chain twice and none keeps one (`host.admit_fetched` is `second-use`), so all
must come from the owner. Engines at the other nodes want one after another, at random moments, each with some patience;
what has come by then they use. All transfers share the owner's uplink. *Goodput* is the bytes of usable prefixes that
engines got in time. Without a refusal in time an overloaded owner sends everything too late, and its goodput falls to
nothing just when everybody wants something of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from random import Random
from typing import Final

import msgspec

from p2pkv.acquires import Acquired
from p2pkv.blocks import DIGEST_BYTES, KEY_BYTES, BlockInfo, BlockKey
from p2pkv.config import Config, HostConfig
from p2pkv.node import Effect, Node
from p2pkv.sim.clock import SECOND_US, to_us
from p2pkv.sim.faults import Faults
from p2pkv.sim.transfers import Transfers
from p2pkv.sim.world import World

OWNER: Final = 0
BLOCK_BYTES: Final = 2**20
CHAIN_BLOCKS: Final = 16
CHAINS: Final = 200
SETTLED_S: Final = 15.0
_OVERLOADED: Final = 2.0
_GOODPUT_LEAST: Final = 0.8
"""Of its peak, under whatever load."""
_ENGINE: Final = "engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadOptions:
    """Who asks for how much."""

    nodes: int = 17
    seed: int = 1
    factors: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0, 10.0)
    """Offered load in units of the owner's uplink."""
    uplink_bytes_s: float = 125e6
    patience_s: float = 2.0
    warm_up_s: float = 10.0
    duration_s: float = 20.0
    shedding: bool = True

    def command(self) -> str:
        """Return the command that replays the run."""
        also = "" if self.shedding else " --no-shedding"
        return f"p2pkv sim overload --nodes {self.nodes} --seed {self.seed}{also}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadRow:
    """What came of one load. Bytes are per second of the simulated clock."""

    factor: float
    acquires: int
    offered_bytes_s: float
    sent_bytes_s: float
    goodput_bytes_s: float
    whole: int
    """Acquires that got their whole chain."""
    nothing: int
    p50_ms: float
    p99_ms: float
    shed: int
    """Lease requests that the owner refused at once."""
    lent_bytes_peak: int
    """Most that the owner had leased."""
    in_flight_peak: int
    """Most blocks on their way to one taker."""


@dataclass(slots=True)
class _Tally:
    acquires: int = 0
    got_bytes: int = 0
    whole: int = 0
    nothing: int = 0
    took_s: list[float] = field(default_factory=list)
    lent_peak: int = 0
    in_flight_peak: int = 0


def run_overload(options: OverloadOptions) -> list[OverloadRow]:
    """Run each load in a world of its own."""
    return [_Run(options, factor).row() for factor in options.factors]


def problems(options: OverloadOptions, rows: Sequence[OverloadRow]) -> list[str]:
    """Return what must not be: goodput that collapses, engines that wait past their patience, leases without bound."""
    peak = max(row.goodput_bytes_s for row in rows)
    found = []
    for row in rows:
        if row.factor >= _OVERLOADED and row.goodput_bytes_s < _GOODPUT_LEAST * peak:
            found.append(f"at {row.factor:g} times the uplink goodput is {row.goodput_bytes_s / peak:.2f} of its peak")
        if row.p99_ms > options.patience_s * 1000 + 1:
            found.append(f"at {row.factor:g} times the uplink the 99th percentile is {row.p99_ms:.0f} ms")
    return found


class _Run:
    def __init__(self, options: OverloadOptions, factor: float) -> None:
        self._options = options
        self._factor = factor
        self._random = Random(f"{options.seed}/overload/{factor}")
        self._world = World(nodes=options.nodes, seed=options.seed, config=_config(options), faults=Faults())
        self._transfers = Transfers(self._world, uplink_bytes_s=options.uplink_bytes_s)
        self._world.on_acquired = self._acquired
        self._chains = [_chain(number) for number in range(CHAINS)]
        self._wanted = [self._random.sample(range(CHAINS), CHAINS) for _ in range(options.nodes)]
        """Of each taker, the chains in the order in which it wants them."""
        self._asked: dict[tuple[int, int], tuple[int, bool]] = {}
        self._tally = _Tally()
        for number in range(options.nodes):
            self._world.start(number, 0.1 * number)

    def row(self) -> OverloadRow:
        """Run, and return what came of it."""
        options, world, tally = self._options, self._world, self._tally
        world.run(5.0)
        world.tell(OWNER, b"publish", self._publish)
        world.run(SETTLED_S)
        end_s = SETTLED_S + options.warm_up_s + options.duration_s
        chain_bytes = CHAIN_BLOCKS * BLOCK_BYTES
        rate = self._factor * options.uplink_bytes_s / chain_bytes
        at_s = SETTLED_S
        while (at_s := at_s + self._random.expovariate(rate)) < end_s:
            counts = at_s >= SETTLED_S + options.warm_up_s
            world.later(to_us(at_s), partial(self._ask, counts=counts))
        world.run(SETTLED_S + options.warm_up_s)
        sent_before, shed_before = self._transfers.moved_bytes, self._owner().statistics().shed_leases
        world.run(end_s)
        sent = self._transfers.moved_bytes - sent_before
        shed = self._owner().statistics().shed_leases - shed_before
        world.run(end_s + options.patience_s + 1)
        took_s = sorted(tally.took_s)
        return OverloadRow(
            factor=self._factor,
            acquires=tally.acquires,
            offered_bytes_s=tally.acquires * chain_bytes / options.duration_s,
            sent_bytes_s=sent / options.duration_s,
            goodput_bytes_s=tally.got_bytes / options.duration_s,
            whole=tally.whole,
            nothing=tally.nothing,
            p50_ms=round(took_s[len(took_s) // 2] * 1000, 1),
            p99_ms=round(took_s[len(took_s) * 99 // 100] * 1000, 1),
            shed=shed,
            lent_bytes_peak=tally.lent_peak,
            in_flight_peak=tally.in_flight_peak,
        )

    def _owner(self) -> Node:
        node = self._world.node(OWNER)
        assert node is not None
        return node

    def _publish(self, node: Node, now: float) -> Sequence[Effect]:
        for chain in self._chains:
            for depth, key in enumerate(chain):
                reservation = node.reserve(_info(key), now)
                assert reservation is not None
                node.commit(reservation, now, depth, chain[depth - 1] if depth else None)
        return ()

    def _ask(self, *, counts: bool) -> None:
        number = 1 + int(self._random.random() * (self._options.nodes - 1))
        if not self._wanted[number]:
            return
        chain = self._chains[self._wanted[number].pop()]

        def verb(node: Node, now: float) -> tuple[int, Sequence[Effect]]:
            return node.acquire(chain, holder=_ENGINE, deadline=now + self._options.patience_s, now=now)

        # Under one number the answer may come before the call has returned; it is looked at a moment later.
        acquire = self._world.call(number, b"acquire", verb)
        self._asked[number, acquire] = (self._world.now_us, counts)
        self._tally.lent_peak = max(self._tally.lent_peak, self._owner().statistics().lent_bytes)
        taker = self._world.node(number)
        assert taker is not None
        self._tally.in_flight_peak = max(self._tally.in_flight_peak, taker.statistics().fetch.in_flight)

    def _acquired(self, number: int, acquired: Acquired) -> None:
        at_us = self._world.now_us
        self._world.later(at_us + 1, partial(self._use, number, acquired, at_us))

    def _use(self, number: int, acquired: Acquired, at_us: int) -> None:
        asked_us, counts = self._asked.pop((number, acquired.acquire))
        node = self._world.node(number)
        assert node is not None
        if acquired.lease.id:
            node.ledger.release(acquired.lease.id, holder=_ENGINE)
            node.touch()
        if counts:
            tally = self._tally
            remote = sum(source != "" for source in acquired.sources)
            tally.acquires += 1
            tally.got_bytes += remote * BLOCK_BYTES
            tally.whole += len(acquired.lease.blocks) == CHAIN_BLOCKS
            tally.nothing += not acquired.lease.blocks
            tally.took_s.append((at_us - asked_us) / SECOND_US)


def _config(options: OverloadOptions) -> Config:
    config = Config()
    chain_bytes = CHAIN_BLOCKS * BLOCK_BYTES
    fetch = config.fetch
    if not options.shedding:
        fetch = msgspec.structs.replace(fetch, lent_bytes_max=2**50)
    summary = msgspec.structs.replace(config.summary, blocks_expected=CHAINS * CHAIN_BLOCKS)
    host = HostConfig(capacity_bytes=CHAINS * chain_bytes, chunk_bytes=chain_bytes, admit_fetched="second-use")
    return msgspec.structs.replace(config, host=host, fetch=fetch, summary=summary)


def _chain(number: int) -> tuple[BlockKey, ...]:
    return tuple(
        BlockKey(blake2b(f"chain {number}/{depth}".encode(), digest_size=KEY_BYTES).digest())
        for depth in range(CHAIN_BLOCKS)
    )


def _info(key: BlockKey) -> BlockInfo:
    digest = blake2b(key, digest_size=DIGEST_BYTES).digest()
    return BlockInfo(key, bytes(KEY_BYTES), BLOCK_BYTES, BLOCK_BYTES, digest)
