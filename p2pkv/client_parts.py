"""The client's calls for tensor parallelism and disaggregated prefill: shards, deliveries by layer, pushes.

    client.publish_shard(namespace, keys, rank, tp, fill)      every rank its heads; a block is offered when all are in
    with client.deliver(namespace, keys, rank=r, tp=t) as delivery:
        for layer in delivery.layers:
            delivery.wait_layer(layer)                          verified; raises before attention could read what is not
            for i in range(len(delivery.blocks)): consume(delivery.view(i, layer))
    with client.push("decode-1", namespace, keys) as push: push.wait()

`p2pkv.client.Client` has these methods; this file only keeps its own small.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from p2pkv.blocks import DIGEST_BYTES, Namespace, block_digest, join_keys
from p2pkv.errors import CorruptBlock, DeliveryFailed, LocalUseError, P2pkvError
from p2pkv.layouts import Grid, Part, Runs, grid_of, rank_part, written_part
from p2pkv.local_wire import (
    SHARD_DIGESTS_BYTES_MAX,
    SHARDS_MAX,
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
    Request,
    ShardReply,
    ShardRequest,
    StagedShard,
    WaitReply,
    WaitRequest,
)
from p2pkv.part_bytes import segment_digests
from p2pkv.slots import PAGE_BYTES
from p2pkv.staging import Staging
from p2pkv.transport.wire import KEYS_PER_LEASE_MAX

R = TypeVar("R", bound=Reply)
Fill = Callable[[int, NDArray[np.uint8]], None]

_TURN_S: Final = 1.0
"""Longest that one wait keeps the connection, so that other threads get their turn, and the daemon sees an engine die."""
_STAGED_WAIT_S: Final = 30.0
"""Longest the daemon may take to copy and verify what is staged, as for `publish`."""


class ArenaView(Protocol):
    """The daemon's memory, read-only."""

    def view(self, offset: int, length: int) -> memoryview:
        """Return what lies at `offset` of the slots."""
        ...

    def generation_at(self, offset: int, length: int) -> int:
        """Return the generation of those pages."""
        ...


@dataclass(frozen=True, slots=True)
class Shards:
    """What became of one rank's parts of some blocks."""

    taken: int
    present: int
    """Blocks that are here whole, or on their way from a peer, or whose heads another rank publishes."""
    refused: int
    stored: int
    """Blocks that are complete by these parts, and offered to the mesh from now on."""
    reason: str = ""
    """Why the last refused part was; empty if none was."""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class PushOutcome:
    """How far a push is."""

    state: str
    """`offered`, `accepted`, `stored` (the receiver has all blocks), or `over` (it has not, for `reason`)."""
    reason: str
    taken: int
    """Blocks that the receiver had not."""
    layers: int
    """Layers of all of them that are there and verified."""


class PartCalls(ABC):
    """What the client can do with parts of blocks."""

    _lock: threading.RLock
    """Held while staging memory is in use."""

    @abstractmethod
    def _call(self, request: Request, kind: type[R], *, wait_s: float = 0.0) -> R: ...

    @abstractmethod
    def _with_staging(self, stride: int) -> Staging: ...

    @abstractmethod
    def _current_arena(self) -> ArenaView: ...

    def publish_shard(
        self,
        namespace: Namespace,
        keys: Sequence[bytes],
        fill: Fill,
        *,
        rank: int = 0,
        tp: int = 1,
        first_layer: int = 0,
        layers: int | None = None,
        first_depth: int | None = None,
        parent: bytes = b"",
    ) -> Shards:
        """Give this rank's part of blocks. A block is stored, and offered to the mesh, when all its parts are in.

        Args:
            namespace: what they are KV of; its layout must not be opaque.
            keys: their keys, in chain order.
            fill: `fill(i, destination)` writes this rank's part of block `i`, uint8, without gaps:
                `[layers, heads of the rank, 2, block_tokens, head_dim]`, or `[layers, block_tokens, latent_dim]`. Called in
                order, at most once each; not at all on a rank whose heads another rank publishes.
            rank: tensor-parallel rank.
            tp: tensor-parallel ranks. Fewer heads than ranks are published by the first rank of each head.
            first_layer: where the layers begin that are given: of a pipeline stage, or as they are computed.
            layers: how many; None: all from `first_layer` on.
            first_depth: see `publish`.
            parent: the key before the first, with `first_depth`.

        Raises:
            LayoutMismatch: the layout is opaque, or heads and ranks do not divide.
        """
        grid = grid_of(namespace.layout)
        part = written_part(grid, rank, tp, first_layer=first_layer, layers=layers)
        if part is None:
            return Shards(0, len(keys), 0, 0)
        cut = grid.cut(part)
        stride = -(-cut.block_bytes // PAGE_BYTES) * PAGE_BYTES
        total = Shards(0, 0, 0, 0)
        with self._lock:
            staging = self._with_staging(stride)
            digest_room = SHARD_DIGESTS_BYTES_MAX // (DIGEST_BYTES * cut.segments)
            at_once = min(staging.size // stride, digest_room, SHARDS_MAX)
            for start in range(0, len(keys), at_once):
                staged: list[StagedShard] = []
                digests: list[bytes] = []
                for number, key in enumerate(keys[start : start + at_once]):
                    place = staging.bytes[number * stride : number * stride + cut.block_bytes]
                    fill(start + number, place)
                    staged.append(StagedShard(key, number * stride))
                    digests.append(segment_digests(place.data, cut, cut.whole))
                request = ShardRequest(
                    namespace=namespace.digest,
                    grid=_grid_spec(grid),
                    part=_part_spec(part),
                    shards=tuple(staged),
                    digests=b"".join(digests),
                    first_depth=-1 if first_depth is None else first_depth + start,
                    parent=keys[start - 1] if start else parent,
                )
                total = _sum(total, self._call(request, ShardReply, wait_s=_STAGED_WAIT_S))
        return total

    def deliver(
        self,
        namespace: Namespace,
        keys: Sequence[bytes],
        *,
        rank: int = 0,
        tp: int = 1,
        first_layer: int = 0,
        layers: int | None = None,
        timeout_s: float = 10.0,
        by_layer: bool = True,
    ) -> "Delivery":
        """Bring a rank's heads of the longest prefix of a chain, layer 0 of all blocks first.

        Returns when it is decided how long the prefix is; the layers come then. Whole blocks are admitted to this node
        when they are complete; a slice is only this engine's. Blocks that are pushed to this node, or that ranks of it
        are just writing, are waited for.

        Args:
            namespace: what they are KV of; its layout must not be opaque.
            keys: the chain, from its root.
            rank: tensor-parallel rank.
            tp: tensor-parallel ranks of the reader; who wrote the blocks may have had any other number.
            first_layer: of the layers that are wanted, as of a pipeline stage.
            layers: how many of them; None: all from `first_layer` on.
            timeout_s: how long all of it may take. A layer that has not come by then fails the delivery.
            by_layer: False: block after block, which is a little faster if nothing begins before all is here.

        Raises:
            LayoutMismatch: the layout is opaque, or heads and ranks do not divide.
        """
        grid = grid_of(namespace.layout)
        part = rank_part(grid, rank, tp, first_layer=first_layer, layers=layers)
        request = DeliverRequest(
            namespace=namespace.digest,
            keys=join_keys(keys),
            grid=_grid_spec(grid),
            part=_part_spec(part),
            timeout_ms=int(timeout_s * 1000),
            by_layer=by_layer,
        )
        reply = self._call(request, DeliverReply, wait_s=timeout_s)
        return Delivery(self, reply, grid, part, self._current_arena())

    def expect(self, namespace: Namespace) -> None:
        """Say that this engine computes with a namespace: pushes of its blocks are accepted while this client lives.

        Raises:
            LayoutMismatch: the layout is opaque.
            LocalUseError: too many namespaces are expected already.
        """
        grid_of(namespace.layout)
        self._call(ExpectRequest(namespace.digest), Done)

    def push(
        self,
        peer: str,
        namespace: Namespace,
        keys: Sequence[bytes],
        *,
        by_layer: bool = True,
        timeout_s: float = 60.0,
        first_depth: int | None = 0,
    ) -> "Push":
        """Offer blocks to a peer, which takes those that it has not.

        The blocks are here, or ranks of this node have begun to write them with `publish_shard`: then each layer goes as
        soon as all ranks have written it.

        Args:
            peer: id or name of the member.
            namespace: what they are KV of; its layout must not be opaque.
            keys: their keys, in chain order.
            by_layer: layer after layer of all blocks; False: block after block.
            timeout_s: how long it may take; then both sides give it up.
            first_depth: see `publish`.

        Returns:
            At once; see `Push`. A refusal is a value there and no exception.

        Raises:
            LayoutMismatch: the layout is opaque.
            LocalUseError: there is no such member, or a block is not here.
        """
        grid = grid_of(namespace.layout)
        numbers: list[int] = []
        try:
            for start in range(0, len(keys), KEYS_PER_LEASE_MAX):
                request = PushRequest(
                    peer=peer,
                    namespace=namespace.digest,
                    keys=join_keys(keys[start : start + KEYS_PER_LEASE_MAX]),
                    grid=_grid_spec(grid),
                    by_layer=by_layer,
                    timeout_ms=int(timeout_s * 1000),
                    first_depth=-1 if first_depth is None else first_depth + start,
                    parent=keys[start - 1] if start else b"",
                )
                numbers.append(self._call(request, PushReply).push)
        except BaseException:
            Push(self, tuple(numbers)).cancel()
            raise
        return Push(self, tuple(numbers))

    def wait_for(self, number: int, *, push: bool, layer: int, timeout_s: float) -> WaitReply:
        """Wait for a layer of a delivery or push, in turns; see `WaitRequest`."""
        deadline = time.monotonic() + timeout_s
        while True:
            turn_s = max(0.0, min(_TURN_S, deadline - time.monotonic()))
            reply = self._call(WaitRequest(number, push, layer, int(turn_s * 1000)), WaitReply, wait_s=turn_s)
            settled = reply.state in {"here", "failed", "stored", "over"}
            reached = reply.state == "accepted" and 0 <= layer <= reply.layers
            if settled or reached or time.monotonic() >= deadline:
                return reply

    def end(self, number: int, *, push: bool) -> None:
        """Release a delivery, or cancel a push; harmless after the daemon went away."""
        try:
            self._call(EndRequest(number, push), Done)
        except P2pkvError:
            return


class Delivery:
    """Parts of blocks that come layer by layer: a prefix of the chain that was asked for, perhaps empty.

    Valid until `release`, the end of a `with`, or the daemon's `fetch.engine_lease_s` after its deadline.
    """

    def __init__(self, client: PartCalls, reply: DeliverReply, grid: Grid, part: Part, arena: ArenaView) -> None:
        """Use `Client.deliver`."""
        self._client = client
        self._number = reply.delivery
        self._grid = grid
        self._part = part
        self._arena = arena
        self._open = True
        self._here: set[int] = set()
        self._viewed: set[int] = set()
        self.blocks: Final[tuple[DeliveredBlock, ...]] = reply.blocks
        self.reason: Final = reply.reason
        """Why the prefix is not longer."""
        self.layers: Final = part.numbers()
        """Numbers of the layers that come."""
        self.heads: Final = range(part.first_head, part.first_head + part.heads)

    def wait_layer(self, layer: int, timeout_s: float = 10.0) -> bool:
        """Wait until a layer of all blocks is here and verified; False if the time was up before.

        Raises:
            DeliveryFailed: it will not come. Whatever layer it is, treat all blocks as a miss.
        """
        if layer not in self.layers:
            raise LocalUseError(f"layer {layer}, this delivery has {self.layers}")
        if layer in self._here:
            return True
        return self._wait(layer, timeout_s, {layer})

    def wait(self, timeout_s: float = 10.0) -> bool:
        """Wait until all layers are here; otherwise as `wait_layer`."""
        return self._wait(-1, timeout_s, set(self.layers))

    def view(self, i: int, layer: int) -> memoryview:
        """Return one layer of block `i`, read-only: `[heads, 2, block_tokens, head_dim]` or `[block_tokens, latent_dim]`.

        Wait for the layer before. Do not keep it beyond the delivery.

        Raises:
            CorruptBlock: a block that was here does not have its digest. Treat all as a miss.
            LocalUseError: the layer was not waited for, or the delivery was released.
        """
        if not self._open:
            raise LocalUseError("the delivery was released, its blocks may be gone")
        if layer not in self._here:
            raise LocalUseError(f"layer {layer} was not waited for")
        block = self.blocks[i]
        grid, runs = self._place(block)
        if block.digest and i not in self._viewed:
            whole = self._arena.view(block.offset, grid.block_bytes)
            if block_digest(whole, grid.segment_bytes) != block.digest:
                raise CorruptBlock(f"block {block.key.hex()[:16]} does not have its digest", peer="local daemon")
        self._viewed.add(i)
        start = runs.first + (layer - self._part.first_layer) * runs.stride
        return self._arena.view(block.offset + start, runs.length)

    def intact(self) -> bool:
        """Say whether all blocks viewed so far are still what they were, after copying out of them; see `Lease.intact`."""
        return all(self._is_intact(self.blocks[i]) for i in self._viewed)

    def release(self) -> None:
        """Give back what only this engine waited for. Calling it twice, or after the daemon went away, is harmless."""
        if self._open:
            self._open = False
            self._client.end(self._number, push=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Delivery {self._number} blocks={len(self.blocks)} layers={self.layers} heads={self.heads}>"

    def _wait(self, layer: int, timeout_s: float, layers: set[int]) -> bool:
        reply = self._client.wait_for(self._number, push=False, layer=layer, timeout_s=timeout_s)
        if reply.state == "failed":
            raise DeliveryFailed(f"blocks that were to come will not ({reply.reason})")
        if reply.state == "here":
            self._here |= layers
        return reply.state == "here"

    def _place(self, block: DeliveredBlock) -> tuple[Grid, Runs]:
        if block.whole:
            return self._grid, self._grid.runs(self._part)
        cut = self._grid.cut(self._part)
        return cut, cut.runs(cut.whole)

    def _is_intact(self, block: DeliveredBlock) -> bool:
        """A place that was being written when it was named to us is sealed once, when its block is complete."""
        length = self._place(block)[0].block_bytes
        then, now = block.generation, self._arena.generation_at(block.offset, length)
        sealed = then - 1 + 2 * -(-length // PAGE_BYTES)
        return now == then or (then % 2 == 1 and now == sealed)


class Push:
    """Blocks on their way to a peer. Ends with `cancel`, the end of a `with`, or its time."""

    def __init__(self, client: PartCalls, numbers: tuple[int, ...]) -> None:
        """Use `Client.push`."""
        self._client = client
        self._numbers = numbers

    def wait_accepted(self, timeout_s: float = 10.0) -> PushOutcome:
        """Wait until the peer has said which blocks it takes, or that it takes none."""
        return self._wait(0, timeout_s)

    def wait_layers(self, layers: int, timeout_s: float = 10.0) -> PushOutcome:
        """Wait until the first `layers` layers of all blocks are there and verified; with `by_layer`."""
        return self._wait(layers, timeout_s)

    def wait(self, timeout_s: float = 60.0) -> PushOutcome:
        """Wait until the peer has stored all blocks, or the push is over otherwise."""
        return self._wait(-1, timeout_s)

    def cancel(self) -> None:
        """End it unless it has ended: both nodes give back what they held for it."""
        for number in self._numbers:
            self._client.end(number, push=True)
        self._numbers = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _wait(self, layer: int, timeout_s: float) -> PushOutcome:
        deadline = time.monotonic() + timeout_s
        parts = [
            self._client.wait_for(number, push=True, layer=layer, timeout_s=max(0.0, deadline - time.monotonic()))
            for number in self._numbers
        ]
        if not parts:
            return PushOutcome("over", "cancelled here", 0, 0)
        worst = min(parts, key=lambda one: ("over", "offered", "accepted", "stored").index(one.state))
        return PushOutcome(worst.state, worst.reason, sum(one.taken for one in parts), min(one.layers for one in parts))


def _sum(total: Shards, reply: ShardReply) -> Shards:
    return Shards(
        total.taken + reply.taken,
        total.present + reply.present,
        total.refused + reply.refused,
        total.stored + reply.stored,
        reply.reason or total.reason,
        reply.hint or total.hint,
    )


def _grid_spec(grid: Grid) -> GridSpec:
    return GridSpec(grid.layers, grid.heads, grid.segment_bytes)


def _part_spec(part: Part) -> PartSpec:
    return PartSpec(part.first_layer, part.layers, part.first_head, part.heads)
