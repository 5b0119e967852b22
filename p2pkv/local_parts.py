"""What one client's session does with parts of blocks: shards of ranks, deliveries, pushes."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import trio

from p2pkv.assemblies import Assembly
from p2pkv.blocks import DIGEST_BYTES, KEY_BYTES, BlockKey, split_keys
from p2pkv.deliveries import Begun, Piece
from p2pkv.errors import LayoutMismatch, LocalUseError, MalformedMessage, TierFull
from p2pkv.layouts import Grid, Part
from p2pkv.local_wire import (
    DeliveredBlock,
    DeliverReply,
    DeliverRequest,
    Done,
    EndRequest,
    ExpectRequest,
    GridSpec,
    PartSpec,
    PushReply,
    PushRequest,
    Reply,
    ShardReply,
    ShardRequest,
    WaitReply,
    WaitRequest,
)
from p2pkv.node import Effect, Node
from p2pkv.runner import Runner
from p2pkv.staging import StagingReader
from p2pkv.tiers.host import HostTier

PartRequest = ShardRequest | DeliverRequest | WaitRequest | EndRequest | ExpectRequest | PushRequest
_STAGED_AT_ONCE: Final = 64
"""Parts copied per trip to a worker thread, so that a large publish lets others in between."""


@dataclass(frozen=True, slots=True)
class _Claimed:
    """One staged part, and the block that it belongs to."""

    offset: int
    digests: bytes
    assembly: Assembly


class ArrivalBell:
    """Wakes whoever waits for parts; each looks for itself whether it was meant."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self, _: object = None) -> None:
        """Wake all who wait now."""
        self._event.set()
        self._event = trio.Event()

    async def wait_until(self, holds: Callable[[], bool], deadline: float) -> None:
        """Return when `holds`, or at `deadline`."""
        with trio.move_on_at(deadline):
            while not holds():
                await self._event.wait()


class PartSession:
    """One client's."""

    def __init__(
        self,
        *,
        runner: Runner,
        tier: HostTier,
        holder: str,
        bell: ArrivalBell,
        promoted: Callable[[Sequence[BlockKey], float], Awaitable[None]],
    ) -> None:
        """`promoted` waits until what keys have on the disk alone is in memory, or for so many seconds."""
        self._promoted = promoted
        self._runner = runner
        self._tier = tier
        self._holder = holder
        self._bell = bell

    async def answer(self, request: PartRequest, staging: StagingReader | None) -> Reply:
        """Return the reply.

        Raises:
            LocalUseError, CapacityError: it was not done.
        """
        match request:
            case ShardRequest():
                if staging is None:
                    raise LocalUseError("publishing needs staging memory, and none came with Attach")
                return await self._shards(request, staging)
            case DeliverRequest():
                return await self._deliver(request)
            case WaitRequest(push=True):
                return await self._wait_push(request)
            case WaitRequest():
                return await self._wait_delivery(request)
            case EndRequest(number=number, push=push):
                self._runner.tell(partial(_end, number, push, self._holder))
                return Done()
            case ExpectRequest(namespace=namespace):
                self._runner.ask(lambda node: node.parts.pushes.expect(namespace, self._holder))
                return Done()
            case PushRequest():
                return self._push(request)

    def close(self) -> None:
        """Take that the client is gone."""
        self._runner.tell(lambda node, now: node.parts.on_holder_gone(self._holder, now))

    # -- shards -------------------------------------------------------------------------------------------------

    async def _shards(self, request: ShardRequest, staging: StagingReader) -> ShardReply:
        grid, part = _grid(request.grid), _part(request.part)
        grid.require(part)
        cut = grid.cut(part)
        step = cut.segments * DIGEST_BYTES
        if len(request.digests) != len(request.shards) * step:
            raise LocalUseError(f"{len(request.digests)} bytes of digests for {len(request.shards)} parts")
        for shard in request.shards:
            if shard.offset + cut.block_bytes > staging.size:
                raise LocalUseError(f"staged part of {cut.block_bytes} bytes at {shard.offset} is out of bounds")
        taken = present = refused = stored = 0
        reason = hint = ""
        parent = BlockKey(request.parent) if request.parent else None
        for start in range(0, len(request.shards), _STAGED_AT_ONCE):
            claimed: list[_Claimed] = []
            for number, shard in enumerate(request.shards[start : start + _STAGED_AT_ONCE], start):
                depth = request.first_depth + number if request.first_depth >= 0 else None
                before = BlockKey(request.shards[number - 1].key) if number else parent
                verb = partial(_claim, request.namespace, grid, part, BlockKey(shard.key), (depth, before))
                try:
                    assembly = self._runner.call(verb)
                except (TierFull, LayoutMismatch) as exc:
                    refused, reason, hint = refused + 1, str(exc), exc.hint
                    continue
                if assembly is None:
                    present += 1
                else:
                    digests = request.digests[number * step : (number + 1) * step]
                    claimed.append(_Claimed(shard.offset, digests, assembly))
            good = await self._write(staging, grid, part, claimed)
            taken += good
            stored += sum(one.assembly.ended == "stored" for one in claimed)
            if good < len(claimed):
                refused, reason = (
                    refused + len(claimed) - good,
                    "bytes do not have the digests they were announced with",
                )
        return ShardReply(taken, present, refused, stored, reason, hint)

    async def _write(self, staging: StagingReader, grid: Grid, part: Part, claimed: list["_Claimed"]) -> int:
        """Copy, verify and report; return how many were good."""
        places = [self._tier.begin(one.assembly.reservation.slot, grid.block_bytes) for one in claimed]

        def copy_all() -> list[bool]:
            return [
                staging.copy_part_verified(one.offset, place, grid, part, one.digests)
                for one, place in zip(claimed, places, strict=True)
            ]

        results = [False] * len(claimed)
        try:
            results = await trio.to_thread.run_sync(copy_all)  # not abandoned on cancel: the places are being written
        finally:
            for one, good in zip(claimed, results, strict=True):
                self._runner.tell(partial(_written, one.assembly, part, one.digests if good else None))
        return sum(results)

    # -- deliveries ---------------------------------------------------------------------------------------------

    async def _deliver(self, request: DeliverRequest) -> DeliverReply:
        keys = _keys(request.keys, self._holder)
        deadline = trio.current_time() + request.timeout_ms / 1000
        grid, part = _grid(request.grid), _part(request.part)

        def verb(node: Node, now: float) -> tuple[int, tuple[Effect, ...]]:
            return node.parts.deliver(
                keys,
                request.namespace,
                grid,
                part,
                holder=self._holder,
                deadline=deadline,
                now=now,
                by_layer=request.by_layer,
            )

        await self._promoted(keys, request.timeout_ms / 2000)  # the other half of its time is for peers
        number = self._runner.call(verb)
        began: list[Begun] = []

        def has_begun() -> bool:
            begun = self._runner.ask(lambda node: node.parts.deliveries.begun(number))
            if begun is not None:
                began.append(begun)
            return begun is not None

        try:
            await self._bell.wait_until(has_begun, float("inf"))  # the node says so at the deadline at the latest
        except BaseException:
            self._runner.tell(partial(_end, number, False, self._holder))
            raise
        names = self._runner.ask(lambda node: {record.id: record.name for record in node.membership.members()})
        blocks = tuple(self._delivered(piece, names.get(piece.source, piece.source)) for piece in began[0].pieces)
        return DeliverReply(number, blocks, began[0].reason)

    def _delivered(self, piece: Piece, source: str) -> DeliveredBlock:
        if piece.held is not None:
            key, slot, digest = piece.held.info.key, piece.held.slot, piece.held.info.digest
        else:
            assert piece.assembly is not None
            key, slot, digest = piece.assembly.key, piece.assembly.reservation.slot, b""
        whole = piece.assembly is None or not piece.assembly.kept
        return DeliveredBlock(key, slot.offset, self._tier.generation(slot), whole, digest, source)

    async def _wait_delivery(self, request: WaitRequest) -> WaitReply:
        layer = request.layer if request.layer >= 0 else None

        def state() -> tuple[str, str]:
            return self._runner.ask(lambda node: node.parts.deliveries.state(request.number, layer))

        deadline = trio.current_time() + request.timeout_ms / 1000
        await self._bell.wait_until(lambda: state()[0] != "coming", deadline)
        return WaitReply(*state())

    # -- pushes -------------------------------------------------------------------------------------------------

    def _push(self, request: PushRequest) -> PushReply:
        keys = _keys(request.keys, self._holder)
        depth = request.first_depth if request.first_depth >= 0 else None
        parent = BlockKey(request.parent) if request.parent else None

        def verb(node: Node, now: float) -> tuple[int, tuple[Effect, ...]]:
            return node.parts.push(
                _peer_id(node, request.peer),
                keys,
                request.namespace,
                _grid(request.grid),
                holder=self._holder,
                by_layer=request.by_layer,
                deadline=now + request.timeout_ms / 1000,
                now=now,
                place=(depth, parent),
            )

        return PushReply(self._runner.call(verb))

    async def _wait_push(self, request: WaitRequest) -> WaitReply:
        def reply() -> WaitReply:
            one = self._runner.ask(lambda node: node.parts.pushes.progress(request.number))
            return WaitReply(one.state, one.reason, one.taken, one.layers)

        def is_there() -> bool:
            one = reply()
            if one.state in {"stored", "over"}:
                return True
            return one.state == "accepted" and 0 <= request.layer <= one.layers

        await self._bell.wait_until(is_there, trio.current_time() + request.timeout_ms / 1000)
        return reply()


def parts_figures(node: Node) -> dict[str, int]:
    """Return the figures of parts for `status`."""
    assemblies, deliveries, pushes = (asdict(one) for one in node.parts.statistics())
    return {
        **{f"blocks_{name}": value for name, value in assemblies.items()},
        "deliveries": deliveries["deliveries"],
        "deliveries_open": deliveries["open"],
        "deliveries_failed": deliveries["failed"],
        **{f"pushes_{name}": value for name, value in pushes.items()},
    }


def _peer_id(node: Node, peer: str) -> str:
    found = [record.id for record in node.membership.members() if peer in {record.id, record.name}]
    if len(found) != 1:
        raise LocalUseError(
            f"{len(found)} members are called {peer!r}", hint="`p2pkv members` shows them; an id is exact"
        )
    return found[0]


def _keys(keys: bytes, client: str) -> tuple[BlockKey, ...]:
    if len(keys) % KEY_BYTES:
        raise MalformedMessage(f"keys of {len(keys)} bytes", peer=client)
    return split_keys(keys)


def _grid(spec: GridSpec) -> Grid:
    return Grid(spec.layers, spec.heads, spec.segment_bytes)


def _part(spec: PartSpec) -> Part:
    return Part(spec.first_layer, spec.layers, spec.first_head, spec.heads)


def _claim(
    namespace: bytes,
    grid: Grid,
    part: Part,
    key: BlockKey,
    place: tuple[int | None, BlockKey | None],
    node: Node,
    now: float,
) -> tuple[Assembly | None, tuple[Effect, ...]]:
    return node.parts.shard(key, namespace, grid, part, now, place)


def _written(assembly: Assembly, part: Part, digests: bytes | None, node: Node, now: float) -> tuple[Effect, ...]:
    return node.parts.shard_written(assembly, part, digests, now)


def _end(number: int, push: bool, holder: str, node: Node, now: float) -> tuple[Effect, ...]:
    return node.parts.cancel_push(number, holder, now) if push else node.parts.release(number, holder, now)
