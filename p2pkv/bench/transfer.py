"""Moving blocks between two processes of this machine, each transport beside its limit, round by round.

The machine is never quiet, so only ratios of neighbours in time say anything: a round moves some leases by hand and as
many by the transport, and the figure is the median of the rounds' ratios. Source and destination are larger than the
last-level cache and walked through in order, so no byte is in a cache when its turn comes.
"""

import socket
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Final, TypeAlias

import trio

from p2pkv.bench.fabric import fabric_of, take_bare
from p2pkv.bench.lent import OWNER, RING, Lent, block_numbers, hello, lent_blocks
from p2pkv.bench.plain import take_guarded, take_mapped, take_plain
from p2pkv.errors import FabricError
from p2pkv.generations import Place
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.tiers.host import HostTier
from p2pkv.transport.base import BulkTransport, Wanted
from p2pkv.transport.bulk_protection import BulkProtection
from p2pkv.transport.nixl import is_installed
from p2pkv.transport.nixl_pull import NixlTransport
from p2pkv.transport.shm import ShmTransport
from p2pkv.transport.tcp import TcpTransport
from p2pkv.transport.widths import Widths

SHAPES: Final = ((256 * 2**10, 64), (4 * 2**20, 16))
"""(bytes of a block, blocks of a pull): one long prompt in small blocks, and one in large ones."""
_CONNECT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """What to measure."""

    shapes: tuple[tuple[int, int], ...] = SHAPES
    rounds: int = 9
    pulls: int = 4
    """Pulls per round, by hand and by the transport each."""
    memory_bytes: int = 256 * 2**20
    """Of each of the two processes; several times the last-level cache."""
    connections: int = 1
    """Of each large pull over TCP; by hand there is always one."""
    flow_bytes_s: int = 0
    """Of each TCP connection, by the kernel's pacing; 0: as fast as it goes."""
    only: tuple[str, ...] = ()
    """Transports; none: all."""


@dataclass(frozen=True, slots=True)
class Case:
    """One transport with one size of blocks."""

    transport: str
    protection: str
    block_bytes: int
    blocks: int
    gbps: float
    """10^9 bytes per second, median over rounds."""
    limit_gbps: float
    limit_kind: str
    ratio: float
    """Median over rounds of the round's own ratio."""
    ratio_p25: float
    ratio_p75: float
    p50_ms: float
    """Of one pull."""
    p99_ms: float
    wrong_blocks: int


@dataclass(slots=True)
class _Places:
    """Where pulled blocks go: one place after another, round and round."""

    tier: HostTier
    block_bytes: int
    blocks: int
    next: int = 0

    def wanted(self, numbers: Sequence[int], digests: Sequence[bytes], generation: int | None) -> list[Wanted]:
        slot_bytes = -(-self.block_bytes // PAGE_BYTES) * PAGE_BYTES
        out = []
        for position, number in enumerate(numbers):
            slot = Slot(self.next * slot_bytes, slot_bytes)
            self.next = (self.next + 1) % self.blocks
            into = self.tier.begin(slot, self.block_bytes)
            self.tier.seal(slot)
            place = Place(number * slot_bytes, generation) if generation is not None else None
            out.append(Wanted(position, self.block_bytes, self.block_bytes, digests[number], into, place))
        return out


@dataclass(slots=True)
class _Shape:
    """Both processes, ready for one size of blocks."""

    block_bytes: int
    lease_blocks: int
    lent: Lent
    digests: tuple[bytes, ...]
    places: _Places
    lease: int = 0
    wrong: int = 0
    placed: bool = False
    """Whether places come with the lease."""

    def next_pull(self) -> tuple[int, list[Wanted]]:
        self.lease += 1
        numbers = block_numbers(self.lease, self.lease_blocks, len(self.digests))
        return self.lease, self.places.wanted(numbers, self.digests, self.lent.generation if self.placed else None)

    @property
    def pull_bytes(self) -> int:
        return self.block_bytes * self.lease_blocks


Take: TypeAlias = Callable[[int, list[Wanted]], Awaitable[None]]
Measure: TypeAlias = Callable[["_Shape", TransferOptions], Awaitable[Case]]
"""Measures one transport with one size of blocks: a further transport is one more of these."""


def run_transfer(options: TransferOptions) -> list[Case]:
    """Measure every transport with every shape.

    Raises:
        P2pkvError: the other process did not start, or what was moved by hand had wrong bytes.
    """
    cases: list[Case] = []
    measures: list[tuple[str, Measure]] = [("shm", _shm), ("tcp", _tcp)]
    measures += [("tcp", partial(_guarded, "aead")), ("tcp", partial(_guarded, "mac"))]
    if is_installed():
        measures.append(("nixl", _nixl))
    for block_bytes, lease_blocks in options.shapes:
        blocks = max(2 * lease_blocks, options.memory_bytes // block_bytes)
        lending = lent_blocks(
            block_bytes=block_bytes, lease_blocks=lease_blocks, blocks=blocks, flow_bytes_s=options.flow_bytes_s
        )
        tier = HostTier(-(-block_bytes // PAGE_BYTES) * PAGE_BYTES * blocks)
        with lending as lent:
            try:
                digests = tuple(bytes.fromhex(digest) for digest in lent.digests)
                places = _Places(tier, block_bytes, blocks)
                shape = _Shape(block_bytes, lease_blocks, lent, digests, places)
                cases += [
                    trio.run(measure, shape, options)
                    for name, measure in measures
                    if name in options.only or not options.only
                ]
            finally:
                tier.close()
    return cases


async def _shm(shape: _Shape, options: TransferOptions) -> Case:
    """Places come with a lease, so the transport is given them and asks nobody, as a fetch does."""
    transport = ShmTransport(hello=hello, connect_timeout_s=_CONNECT_S)
    address = f"\0{shape.lent.shm}"
    try:
        arena = await transport.open(OWNER, address)
        slot_bytes = -(-shape.block_bytes // PAGE_BYTES) * PAGE_BYTES

        async def by_hand(lease: int, wanted: list[Wanted]) -> None:
            numbers = block_numbers(lease, shape.lease_blocks, len(shape.digests))
            if not take_mapped(arena, [Place(number * slot_bytes, 0) for number in numbers], wanted):
                raise FabricError("wrong bytes by hand", device="bench")

        shape.placed = True
        return await _measure(shape, options, transport, address, by_hand, "memcpy+digest")
    finally:
        shape.placed = False
        await transport.aclose()


async def _tcp(shape: _Shape, options: TransferOptions) -> Case:
    widths = Widths(options.connections, least=options.connections)
    transport = TcpTransport(hello=hello, connect_timeout_s=_CONNECT_S, widths=widths)
    connection = socket.create_connection(("127.0.0.1", shape.lent.plain_port))

    async def by_hand(lease: int, wanted: list[Wanted]) -> None:
        if not take_plain(connection, lease, wanted):
            raise FabricError("wrong bytes by hand", device="bench")

    try:
        return await _measure(shape, options, transport, shape.lent.tcp, by_hand, "plain sockets+digest")
    finally:
        connection.close()
        await transport.aclose()


async def _guarded(how: BulkProtection, shape: _Shape, options: TransferOptions) -> Case:
    widths = Widths(options.connections, least=options.connections)
    transport = TcpTransport(hello=partial(hello, how), connect_timeout_s=_CONNECT_S, ring=lambda: RING, widths=widths)
    connection = socket.create_connection(("127.0.0.1", shape.lent.guarded_port))
    kind = {"aead": "plain sockets+digest+AES-256-GCM", "mac": "plain sockets+digest+GMAC"}[how]

    async def by_hand(lease: int, wanted: list[Wanted]) -> None:
        if not take_guarded(connection, how, lease, wanted):
            raise FabricError("wrong bytes by hand", device="bench")

    try:
        return await _measure(shape, options, transport, shape.lent.sealed, by_hand, kind, how)
    finally:
        connection.close()
        await transport.aclose()


async def _nixl(shape: _Shape, options: TransferOptions) -> Case:
    end = fabric_of("taker", shape.places.tier)
    assert end is not None, "only where NIXL is installed"
    transport = NixlTransport(end, hello=hello, connect_timeout_s=_CONNECT_S)
    try:
        met = await transport.open(OWNER, shape.lent.tcp)
        slot_bytes = -(-shape.block_bytes // PAGE_BYTES) * PAGE_BYTES

        async def by_hand(lease: int, wanted: list[Wanted]) -> None:
            numbers = block_numbers(lease, shape.lease_blocks, len(shape.digests))
            if not await take_bare(end, met, [number * slot_bytes for number in numbers], wanted):
                raise FabricError("wrong bytes by hand", device="bench")

        return await _measure(shape, options, transport, shape.lent.tcp, by_hand, f"bare NIXL ({met.fabric})+digest")
    finally:
        await transport.aclose()
        end.close()


async def _measure(
    shape: _Shape,
    options: TransferOptions,
    transport: BulkTransport,
    address: str,
    by_hand: Take,
    limit_kind: str,
    protection: BulkProtection = "off",
) -> Case:
    def settle(_: Wanted, outcome: str) -> None:
        shape.wrong += outcome != "ok"

    async def by_transport(lease: int, wanted: list[Wanted]) -> None:
        await transport.pull(peer=OWNER, address=address, lease=lease, wanted=wanted, on_block=settle)

    shape.wrong = 0
    pulls_s: list[float] = []
    rounds: list[tuple[float, float]] = []
    await _time(shape, by_transport, 1)  # connections are opened, pages are touched
    for number in range(options.rounds):
        # Who goes first changes, because whoever comes second finds the machine warmer.
        if number % 2:
            limit = await _time(shape, by_hand, options.pulls)
            mine = await _time(shape, by_transport, options.pulls)
        else:
            mine = await _time(shape, by_transport, options.pulls)
            limit = await _time(shape, by_hand, options.pulls)
        pulls_s += mine
        rounds.append((sum(mine), sum(limit)))
    moved = shape.pull_bytes * options.pulls
    ratios = sorted(limit / mine for mine, limit in rounds)
    p25, p50, p75 = statistics.quantiles(ratios, n=4)
    cuts = statistics.quantiles(pulls_s, n=100)
    return Case(
        transport=transport.name,
        protection=protection,
        block_bytes=shape.block_bytes,
        blocks=shape.lease_blocks,
        gbps=moved / statistics.median(mine for mine, _ in rounds) / 1e9,
        limit_gbps=moved / statistics.median(limit for _, limit in rounds) / 1e9,
        limit_kind=limit_kind,
        ratio=p50,
        ratio_p25=p25,
        ratio_p75=p75,
        p50_ms=statistics.median(pulls_s) * 1e3,
        p99_ms=cuts[98] * 1e3,
        wrong_blocks=shape.wrong,
    )


async def _time(shape: _Shape, take: Take, pulls: int) -> list[float]:
    """Return the seconds of each of `pulls` pulls."""
    seconds = []
    for _ in range(pulls):
        lease, wanted = shape.next_pull()
        began = perf_counter()
        await take(lease, wanted)
        seconds.append(perf_counter() - began)
    return seconds
