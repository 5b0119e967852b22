r"""Deliveries, sans-IO: the prefix of a chain given to an engine layer by layer, of all heads or of one rank's.

    start -> (a peer is asked, then another) -> begun -> layer after layer becomes visible -> released
                                                      \-> failed: the engine is told before it computes with the layer

What is here is pinned and there at once. What peers have is leased there, and brought in the order of the layers, into
blocks that are admitted when they are whole, or into slices that only the engine sees. What somebody else is just
bringing or writing, a push or ranks of this node, is waited for and not brought twice. How many blocks there are is
decided when the delivery begins, because attention over layer 0 needs to know; if a later layer of one fails, all fail.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from p2pkv.assemblies import UNKNOWN_DIGEST, Assemblies, Assembly, AssemblyEffect, PartsArrived
from p2pkv.blocks import DIGEST_BYTES, KEY_BYTES, BlockKey, join_keys
from p2pkv.config import FetchConfig
from p2pkv.effects import SendStream
from p2pkv.errors import LayoutMismatch, TierFull
from p2pkv.generations import Place
from p2pkv.index.announce import reach
from p2pkv.layouts import Grid, Part
from p2pkv.ledger import Held, Lease, Ledger
from p2pkv.links import Links
from p2pkv.part_pulls import PulledBlock, StartPull, StopPull
from p2pkv.transport.wire import (
    KEYS_PER_LEASE_MAX,
    LeaseGrant,
    LeaseRelease,
    LeaseRequest,
    MemberRecord,
    bit_positions,
)

_PEERS_ASKED_MAX: Final = 3
"""Of one delivery: later ones would answer when the engine has long begun to compute."""

State: TypeAlias = Literal["here", "coming", "failed"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One block of a delivery: a part of what lies at a place."""

    held: Held | None
    """A block that was here; else it is assembled."""
    assembly: Assembly | None
    grid: Grid
    """Of what lies at the place."""
    part: Part
    """Of that, what the engine gets."""
    source: str
    """Peer that it comes from; empty if it was here, or comes by another way."""


@dataclass(frozen=True, slots=True)
class Begun:
    """It is decided which blocks a delivery has; their layers come now. `reason` says why there are no more."""

    pieces: tuple[Piece, ...]
    reason: str


DeliveryEffect: TypeAlias = AssemblyEffect | SendStream | StartPull | StopPull


@dataclass(slots=True)
class _Ask:
    """One lease request, and what came of it."""

    keys: tuple[BlockKey, ...]
    places: tuple[Place, ...] = ()
    digests: tuple[bytes, ...] = ()
    """Of the blocks granted from the first on without a gap."""
    lease: int = 0
    answered: bool = False


@dataclass(slots=True)
class _Delivery:
    number: int
    keys: tuple[BlockKey, ...]
    namespace: bytes
    grid: Grid
    part: Part
    holder: str
    deadline: float
    lease: Lease
    by_layer: bool
    pieces: list[Piece] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    asks: dict[int, _Ask] = field(default_factory=dict)
    answer_by: float = float("inf")
    pulls: set[int] = field(default_factory=set)
    begun: bool = False
    reason: str = ""
    failed: str = ""


@dataclass(slots=True)
class _Pull:
    delivery: _Delivery
    start: StartPull
    assemblies: tuple[Assembly, ...]


@dataclass(frozen=True, slots=True)
class DeliveryStatistics:
    """Totals since start, and how many are under way now."""

    deliveries: int
    open: int
    failed: int


class Deliveries:
    """All deliveries of one node."""

    def __init__(
        self,
        *,
        config: FetchConfig,
        ledger: Ledger,
        assemblies: Assemblies,
        links: Links,
        claims: Callable[[Sequence[BlockKey], float], Mapping[str, int]],
        usable: Callable[[str], MemberRecord | None],
        mapped: Callable[[str], bool],
        ids: Iterator[int],
    ) -> None:
        """`claims` says which peers seem to hold how much of a chain; `mapped`, whose arena can be read from here.

        `ids` gives numbers for lease requests and pulls that no other core of the node uses.
        """
        self._config = config
        self._ledger = ledger
        self._assemblies = assemblies
        self._links = links
        self._claims = claims
        self._usable = usable
        self._mapped = mapped
        self._ids = ids
        self._deliveries: dict[int, _Delivery] = {}
        self._asks: dict[int, _Delivery] = {}
        self._pulls: dict[int, _Pull] = {}
        self._started = 0
        self._failed = 0

    # -- the engine's side --------------------------------------------------------------------------------------

    def start(
        self,
        keys: Sequence[BlockKey],
        namespace: bytes,
        grid: Grid,
        part: Part,
        *,
        holder: str,
        deadline: float,
        now: float,
        by_layer: bool = True,
    ) -> tuple[int, tuple[DeliveryEffect, ...]]:
        """Begin to deliver `part` of the longest prefix of a chain; see `begun`.

        Raises:
            LayoutMismatch: `part` is not in `grid`, or blocks that are here are of another namespace or size.
            PinLimit: `holder` has as many leases as it may have.
        """
        grid.require(part)
        chain = tuple(dict.fromkeys(keys))
        for key in chain:
            self._refuse_other(key, namespace, grid)
        here = chain[: self._ledger.prefix(chain)]
        lease = self._ledger.lease(here, holder=holder, deadline=deadline + self._config.engine_lease_s)
        self._started += 1
        one = _Delivery(next(self._ids), chain, namespace, grid, part, holder, deadline, lease, by_layer)
        self._deliveries[one.number] = one
        one.pieces += [Piece(held, None, grid, part, "") for held in lease.blocks]
        self._take_what_comes(one)
        return one.number, self._ask_next(one, now)

    def begun(self, number: int) -> Begun | None:
        """Return what a delivery has, or None while that is not decided; after `PartsArrived` ask again."""
        one = self._deliveries.get(number)
        if one is None:
            return Begun((), "released")
        return Begun(tuple(one.pieces), one.reason) if one.begun else None

    def state(self, number: int, layer: int | None) -> tuple[State, str]:
        """Say whether a layer of all blocks of a delivery is visible, or all layers for None; and why it has failed."""
        one = self._deliveries.get(number)
        if one is None:
            return "failed", "released"
        if one.failed:
            return "failed", one.failed
        if not one.begun:
            return "coming", ""
        for piece in one.pieces:
            if piece.assembly is None:
                continue
            if piece.assembly.has_failed:
                return "failed", piece.assembly.ended
            if not piece.assembly.has(piece.part if layer is None else _layer_of(one, piece, layer)):
                return "coming", ""
        return "here", ""

    def release(self, number: int, holder: str) -> tuple[DeliveryEffect, ...]:
        """Take that an engine is done with a delivery: slices are given back, and what only it waited for is stopped."""
        one = self._deliveries.get(number)
        if one is None or one.holder != holder:
            return ()
        del self._deliveries[number]
        one.failed = one.failed or "released"
        effects = self._stop(one, "released")
        self._ledger.release(one.lease.id, holder=holder)
        return effects

    def on_holder_gone(self, holder: str) -> tuple[DeliveryEffect, ...]:
        """Take that an engine went away."""
        mine = [number for number, one in self._deliveries.items() if one.holder == holder]
        return tuple(effect for number in mine for effect in self.release(number, holder))

    # -- the peer's side ----------------------------------------------------------------------------------------

    def asked(self, request: int) -> bool:
        """Say whether a lease request is one of a delivery."""
        return request in self._asks

    def on_grant(self, peer: str, grant: LeaseGrant, now: float) -> tuple[DeliveryEffect, ...]:
        """Take a peer's answer."""
        one = self._asks.get(grant.request)
        if one is None or one.asked[-1] != peer:
            return ()
        del self._asks[grant.request]
        ask = one.asks[grant.request]
        ask.answered, ask.lease = True, grant.lease
        ask.digests, ask.places = _granted(grant, one.namespace, one.grid, len(ask.keys))
        if not all(other.answered for other in one.asks.values()):
            return ()
        return self._begin(one, now)

    def on_part(self, pull: int, index: int, part: Part, digests: bytes, now: float) -> tuple[DeliveryEffect, ...]:
        """Take that a part of a pull's block number `index` was verified in its place."""
        moving = self._pulls.get(pull)
        if moving is None:
            return ()
        _, placed = moving.start.destination(part)
        return self._assemblies.verified(moving.assemblies[index], placed, digests, now)

    def on_pull_ended(self, pull: int, outcome: str, now: float) -> tuple[DeliveryEffect, ...]:
        """Take the end of a pull, "ok" or what was in its way."""
        moving = self._pulls.pop(pull, None)
        if moving is None:
            return ()
        one, start = moving.delivery, moving.start
        one.pulls.discard(pull)
        effects: list[DeliveryEffect] = [SendStream(start.address, LeaseRelease(start.lease))]
        if outcome != "ok":
            if outcome != "stopped":
                self._links.on_failure(start.peer, now)
            effects += self._fail(one, outcome)
        for assembly in moving.assemblies:
            if outcome != "ok" and not assembly.is_whole:
                effects += self._assemblies.end(assembly, "corrupt" if outcome == "corrupt" else "cancelled")
            effects += self._assemblies.end_writing(assembly)
        return tuple(effects)

    def on_gone(self, peer: str, now: float) -> tuple[DeliveryEffect, ...]:
        """Take that a peer is gone: nothing more comes from it."""
        effects: list[DeliveryEffect] = [
            StopPull(number) for number, moving in self._pulls.items() if moving.start.peer == peer
        ]
        for one in [one for one in self._deliveries.values() if one.asks and one.asked[-1] == peer]:
            effects += self._begin(one, now)
        return tuple(effects)

    def on_time(self, now: float) -> tuple[DeliveryEffect, ...]:
        """Let time pass: late answers, late deliveries, leases that engines forgot."""
        effects: list[DeliveryEffect] = []
        for one in tuple(self._deliveries.values()):
            if one.lease.deadline <= now:
                effects += self.release(one.number, one.holder)
            elif one.answer_by <= now:
                self._links.on_failure(one.asked[-1], now)
                effects += self._begin(one, now)
            elif one.deadline <= now and not one.failed and self.state(one.number, None)[0] == "coming":
                effects += self._fail(one, "late")
        return tuple(effects)

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        if not self._deliveries:  # asked after every message, and mostly so
            return float("inf")
        return min(min(one.lease.deadline, one.answer_by, self._due(one)) for one in self._deliveries.values())

    def statistics(self) -> DeliveryStatistics:
        """Return the figures of now."""
        return DeliveryStatistics(self._started, len(self._deliveries), self._failed)

    # -- inside -------------------------------------------------------------------------------------------------

    def _due(self, one: _Delivery) -> float:
        waits = not one.failed and self.state(one.number, None)[0] == "coming"
        return one.deadline if waits else float("inf")

    def _refuse_other(self, key: BlockKey, namespace: bytes, grid: Grid) -> None:
        held = self._ledger.get(key)
        info = held.info if held is not None else None
        if info is not None and (info.namespace, info.length, info.segment_bytes) != (
            namespace,
            grid.block_bytes,
            grid.segment_bytes,
        ):
            raise LayoutMismatch(f"block {key.hex()[:16]} is of another namespace or layout")

    def _take_what_comes(self, one: _Delivery) -> None:
        """Wait for what is written or brought already, and take what was stored in between."""
        while len(one.pieces) < len(one.keys):
            key = one.keys[len(one.pieces)]
            piece = self._piece_here(one, key)
            if piece is None:
                return
            one.pieces.append(piece)

    def _piece_here(self, one: _Delivery, key: BlockKey) -> Piece | None:
        held = self._ledger.get(key)
        if held is not None:
            self._ledger.extend(one.lease.id, key)
            return Piece(held, None, one.grid, one.part, "")
        coming = self._assemblies.get(key)
        if coming is None or coming.has_failed or coming.kept or coming.grid != one.grid:
            return None
        coming.leases.append(one.lease.id)
        return Piece(None, coming, one.grid, one.part, "")

    def _ask_next(self, one: _Delivery, now: float) -> tuple[DeliveryEffect, ...]:
        """Ask the best peer that was not asked yet for what is missing, or begin with what there is."""
        base = len(one.pieces)
        if base == len(one.keys):
            return self._begun(one, "all here or coming")
        claims = [
            (-depth, peer)
            for peer, depth in self._claims(one.keys, now).items()
            if depth > base
            and peer not in one.asked
            and self._usable(peer) is not None
            and self._links.usable(peer, now)
        ]
        if not claims:
            return self._begun(
                one, "no peer that has the next block is left" if one.asked else "no peer claims the next block"
            )
        if len(one.asked) == _PEERS_ASKED_MAX or now >= one.deadline:
            return self._begun(one, "late: no peer has answered in time")
        depth, peer = min(claims)
        record = self._usable(peer)
        assert record is not None
        one.asked.append(peer)
        one.answer_by = min(one.deadline, now + self._config.answer_timeout_s)
        wanted = one.keys[base : min(reach(-depth), len(one.keys))]
        remaining_ms = int(min(one.deadline - now, self._config.lease_s) * 1000)
        one.asks = {}
        effects: list[DeliveryEffect] = []
        for start in range(0, len(wanted), KEYS_PER_LEASE_MAX):
            keys = wanted[start : start + KEYS_PER_LEASE_MAX]
            request = next(self._ids)
            one.asks[request] = _Ask(keys)
            self._asks[request] = one
            effects.append(
                SendStream(record.address, LeaseRequest(request, join_keys(keys), remaining_ms, self._mapped(peer)))
            )
        return tuple(effects)

    def _begin(self, one: _Delivery, now: float) -> tuple[DeliveryEffect, ...]:
        """Take what was granted so far, as one prefix, and have it brought; ask the next peer if that is nothing."""
        peer, record, asks = one.asked[-1], self._usable(one.asked[-1]), one.asks
        one.asks, one.answer_by = {}, float("inf")
        for request in asks:
            self._asks.pop(request, None)
        before, effects = len(one.pieces), list[DeliveryEffect]()
        unbroken = record is not None
        for ask in asks.values():
            blocks: list[PulledBlock] = []
            mine: list[Assembly] = []
            for position, digest in enumerate(ask.digests if unbroken else ()):
                key = ask.keys[position]
                piece = self._piece_here(one, key)
                if piece is None:
                    opened = self._open(one, key, digest, peer, now, effects)
                    if opened is None:
                        unbroken = False
                        break
                    piece, assembly = opened
                    mine.append(assembly)
                    place = ask.places[position] if ask.places else None
                    blocks.append(PulledBlock(position, assembly.reservation.slot, digest, place))
                one.pieces.append(piece)
            unbroken = unbroken and len(ask.digests) == len(ask.keys)
            if blocks and record is not None:
                effects.append(self._pull(one, record, ask.lease, tuple(blocks), tuple(mine)))
            elif ask.lease and record is not None:
                effects.append(SendStream(record.address, LeaseRelease(ask.lease)))
        self._take_what_comes(one)
        if len(one.pieces) == before:
            return (*effects, *self._ask_next(one, now))
        short = len(one.pieces) < len(one.keys)
        return (*effects, *self._begun(one, "the peer has no more, or there is no room" if short else "all coming"))

    def _open(
        self, one: _Delivery, key: BlockKey, digest: bytes, peer: str, now: float, effects: list[DeliveryEffect]
    ) -> tuple[Piece, Assembly] | None:
        """Reserve a place for a block, or for the engine's slice of it."""
        kept = self._is_slice(one)
        grid = one.grid.cut(one.part) if kept else one.grid
        try:
            assembly, more = self._assemblies.open(
                _slice_key(key, one.number) if kept else key,
                one.namespace,
                grid,
                origin="delivery",
                deadline=one.lease.deadline if kept else one.deadline,
                now=now,
                digest=UNKNOWN_DIGEST if kept else digest,
                kept=kept,
                place=_chain_place(one.keys, key),
            )
        except TierFull:
            return None
        effects += more
        if assembly is None:
            return None
        self._assemblies.claim(assembly, grid.whole)
        self._assemblies.begin_writing(assembly)
        if not kept:
            assembly.leases.append(one.lease.id)
        return Piece(None, assembly, grid, grid.whole if kept else one.part, peer), assembly

    def _pull(
        self,
        one: _Delivery,
        record: MemberRecord,
        lease: int,
        blocks: tuple[PulledBlock, ...],
        assemblies: tuple[Assembly, ...],
    ) -> StartPull:
        kept = self._is_slice(one)
        start = StartPull(
            pull=next(self._ids),
            peer=record.id,
            address=record.address,
            pushed=False,
            lease=lease,
            grid=one.grid,
            part=one.part if kept else one.grid.whole,
            cut=kept,
            blocks=blocks,
            by_layer=one.by_layer,
            deadline=one.deadline,
        )
        one.pulls.add(start.pull)
        self._pulls[start.pull] = _Pull(one, start, assemblies)
        return start

    def _begun(self, one: _Delivery, reason: str) -> tuple[DeliveryEffect, ...]:
        one.begun, one.reason = True, reason
        return (PartsArrived(),)

    def _fail(self, one: _Delivery, why: str) -> tuple[DeliveryEffect, ...]:
        if one.failed:
            return ()
        one.failed = why
        self._failed += 1
        begun: tuple[DeliveryEffect, ...] = () if one.begun else self._begun(one, why)
        return (*begun, *self._stop(one, "cancelled"), PartsArrived())

    def _stop(self, one: _Delivery, why: Literal["released", "cancelled"]) -> tuple[DeliveryEffect, ...]:
        """Stop what only this delivery waits for, and give its slices back."""
        for request in one.asks:
            self._asks.pop(request, None)
        one.asks, one.answer_by = {}, float("inf")
        effects: list[DeliveryEffect] = []
        for number in one.pulls:
            others = {lease for assembly in self._pulls[number].assemblies for lease in assembly.leases}
            if not others - {one.lease.id}:
                effects.append(StopPull(number))
        for piece in one.pieces:
            assembly = piece.assembly
            if assembly is not None and assembly.kept:
                effects += self._assemblies.end(assembly, why)
        return tuple(effects)

    @staticmethod
    def _is_slice(one: _Delivery) -> bool:
        """Whether an engine wants less than whole blocks of all heads; a layer range alone is a slice too."""
        return one.part != one.grid.whole


def _layer_of(one: _Delivery, piece: Piece, layer: int) -> Part:
    """Return the part of a piece's place that is the block's layer number `layer`."""
    shift = one.part.first_layer - piece.part.first_layer
    return piece.part.layer(layer - shift)


def _slice_key(key: BlockKey, delivery: int) -> BlockKey:
    """Return a name for a slice that no block has: it is in the books, and nobody can ask for it."""
    material = key + delivery.to_bytes(8, "little")
    return BlockKey(hashlib.blake2b(material, digest_size=KEY_BYTES, person=b"p2pkv.slice.1").digest())


def _chain_place(keys: Sequence[BlockKey], key: BlockKey) -> tuple[int, BlockKey | None]:
    depth = keys.index(key)
    return depth, keys[depth - 1] if depth else None


def _granted(
    grant: LeaseGrant, namespace: bytes, grid: Grid, asked: int
) -> tuple[tuple[bytes, ...], tuple[Place, ...]]:
    """Return the digests, and the places if they came along, of the blocks granted from the first on without a gap.

    A block of another namespace or size, or fields that do not fit together, end the run: such a peer has nothing for us.
    """
    positions = bit_positions(grant.granted)
    count = len(positions)
    fits = (
        len(grant.lengths) == len(grant.segment_bytes) == count
        and len(grant.digests) == count * DIGEST_BYTES
        and len(grant.namespaces) == count * KEY_BYTES
        and len(grant.offsets) == len(grant.generations)
        and len(grant.offsets) in {0, count}
        and count <= asked
    )
    digests: list[bytes] = []
    for number, position in enumerate(positions if fits else ()):
        same = (
            position == number
            and grant.lengths[number] == grid.block_bytes
            and grant.segment_bytes[number] == grid.segment_bytes
            and grant.namespaces[number * KEY_BYTES : (number + 1) * KEY_BYTES] == namespace
        )
        if not same:
            break
        digests.append(grant.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES])
    places = tuple(map(Place, grant.offsets, grant.generations))[: len(digests)] if fits else ()
    return tuple(digests), places
