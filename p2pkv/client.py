"""What an engine holds: blocking calls to the node's daemon, block bytes through shared memory, no event loop.

    client = Client.connect()
    with client.acquire(keys) as lease:           # the longest usable prefix, now in this machine's memory
        for i in range(len(lease.blocks)):
            consume(lease.view(i))                # read-only, verified
        usable = lease.intact()                   # what was copied is good if this still holds
    client.publish(namespace, keys, fill)         # fill(i, destination) writes block i

An engine never fails for the mesh's sake: catch `P2pkvError` around a call, count it, and go on as after a miss. A
client whose daemon went away raises `DaemonUnreachable`, and tries to reach it again with later calls, at most once a
second. Thread-safe: calls from several threads take turns.
"""

import contextlib
import mmap
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Never, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from p2pkv import errors
from p2pkv.blocks import BlockInfo, BlockKey, Namespace, block_digest, join_keys
from p2pkv.client_parts import ArenaView, PartCalls
from p2pkv.config import default_socket
from p2pkv.errors import CapacityError, CorruptBlock, DaemonUnreachable, LocalUseError, MalformedMessage, P2pkvError
from p2pkv.generations import generation, pages_of
from p2pkv.local_wire import (
    KEYS_PER_CHAIN_MAX,
    LOCAL_MESSAGE_BYTES_MAX,
    LOCAL_PROTOCOL,
    SEATS_MAX,
    AcquireReply,
    AcquireRequest,
    Attach,
    ConditionReply,
    ConditionRequest,
    Done,
    ExplainReply,
    ExplainRequest,
    Failure,
    KeysReply,
    KeysRequest,
    LeasedBlock,
    LeaveRequest,
    LocateReply,
    LocateRequest,
    MatchReply,
    MatchRequest,
    MembersReply,
    MembersRequest,
    MemberView,
    NetcheckRequest,
    PathsReply,
    PingPeerRequest,
    PinReply,
    PinRequest,
    PrefetchReply,
    PrefetchRequest,
    PublishReply,
    PublishRequest,
    ReleaseRequest,
    Reply,
    Request,
    RingReply,
    RingRequest,
    ScoreReply,
    ScoreRequest,
    ScrubReply,
    ScrubRequest,
    StagedBlock,
    StatusReply,
    StatusRequest,
    Welcome,
    decode_reply_untrusted,
    encode,
)
from p2pkv.slots import PAGE_BYTES
from p2pkv.staging import Staging
from p2pkv.transport.framing import LENGTH_BYTES, FrameReader

R = TypeVar("R", bound=Reply)
Fill = Callable[[int, NDArray[np.uint8]], None]

_ANSWER_GRACE_S: Final = 5.0
"""How much longer than the time it was given the daemon may take to answer before it counts as dead."""
_RECONNECT_S: Final = 1.0
_SCRUB_WAIT_S: Final = 7 * 86_400.0
"""A large disk at a low rate; whoever asked can hang up."""
_READ_BYTES: Final = 256 * 1024
STAGING_BYTES_DEFAULT: Final = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Match:
    """How much of a chain can be had; see `p2pkv.node.Match`."""

    local_blocks: int
    reachable_blocks: int
    holders: tuple[tuple[str, int], ...]
    """(name of the peer, blocks of the chain's head it claims), deepest first."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where blocks of a lease came from. `peer` is "" and `transport` "local" for those that were here before."""

    peer: str
    transport: str
    blocks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Published:
    """What became of published blocks."""

    stored: int
    present: int
    """Were here already, or on their way; nothing was copied."""
    refused: int
    reason: str
    """Why the last refused block was; empty if none was."""
    hint: str = ""
    """What a person can do about it."""


class Lease:
    """Pinned blocks in local memory: a prefix of the chain that was asked for, perhaps empty.

    Valid until `release`, the end of a `with`, or the daemon's `fetch.engine_lease_s`, whichever is first.
    """

    def __init__(self, client: "Client", reply: AcquireReply, arena: "_Arena") -> None:
        self._client = client
        self._id = reply.lease
        self._arena = arena
        self._verified: set[int] = set()
        self._open = True
        self.blocks: Final[tuple[LeasedBlock, ...]] = reply.blocks
        self.reason: Final = reply.reason
        """Why the prefix is not longer; `all here` if it is whole."""
        self._source_names = reply.sources

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the blocks came from, one entry per peer."""
        counts = [[0, 0] for _ in self._source_names]
        for block in self.blocks:
            counts[block.source][0] += 1
            counts[block.source][1] += block.length
        return tuple(
            Source(name.peer, name.transport, blocks, total)
            for name, (blocks, total) in zip(self._source_names, counts, strict=True)
        )

    def view(self, i: int) -> memoryview:
        """Return the bytes of block `i`, read-only, in the daemon's memory. Do not keep it beyond the lease.

        The first view of a block compares its bytes with its digest, so that what an engine computes with is what the
        producer computed, whatever happened in between; about 25 GB/s.

        Raises:
            CorruptBlock: they differ. Treat this block and those behind it as a miss.
            LocalUseError: the lease was released.
        """
        if not self._open:
            raise LocalUseError("the lease was released, its blocks may be gone")
        block = self.blocks[i]
        view = self._arena.view(block.offset, block.length)
        if i not in self._verified:
            if (
                block_digest(view, block.segment_bytes) != block.digest
                or self._arena.generation(block) != block.generation
            ):
                raise CorruptBlock(f"block {block.key.hex()[:16]} does not have its digest", peer="local daemon")
            self._verified.add(i)
        return view

    def intact(self) -> bool:
        """Say whether all blocks viewed so far are still what they were, after copying out of them.

        Pins alone promise that until the lease's deadline; a copy that was taken behind it, by an engine that was
        stopped for minutes, may be half of another block. A slot's generation changes before its bytes do, so a copy
        is good if this holds after it. Costs 3 µs a block; a connector that gets False takes all for a miss.
        """
        return all(self._arena.generation(self.blocks[i]) == self.blocks[i].generation for i in self._verified)

    def release(self) -> None:
        """Unpin. Calling it twice, or after the daemon went away, is harmless."""
        if self._open:
            self._open = False
            if self._id:
                with contextlib.suppress(P2pkvError):
                    self._client.release_id(self._id, self._arena)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Lease {self._id} blocks={len(self.blocks)} {'open' if self._open else 'released'}>"


class Client(PartCalls):
    """A connection to the node's daemon."""

    def __init__(self, socket_path: Path, *, timeout_s: float, staging_bytes: int, name: str) -> None:
        """Use `connect`."""
        self.socket_path: Final = socket_path
        self._timeout_s = timeout_s
        self._staging_bytes = staging_bytes
        self._name = name
        self._lock = threading.RLock()
        self._socket: socket.socket | None = None
        self._staging: Staging | None = None
        self._arena: _Arena | None = None
        self._closed = False
        self._elsewhere = False
        """Whether this process is a fork of the one that made the client."""
        self._retry_at = 0.0
        self._at_close: Callable[[], None] | None = None
        self.node_id = ""
        self.node_name = ""
        _CLIENTS.add(self)

    @classmethod
    def connect(
        cls,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float = 5.0,
        staging_bytes: int = STAGING_BYTES_DEFAULT,
        name: str = "",
    ) -> "Client":
        """Connect to a daemon.

        Args:
            socket_path: its Unix socket; None takes `P2PKV_NODE_SOCKET` or the default place.
            timeout_s: how long the daemon may take to answer what needs no waiting.
            staging_bytes: shared memory for publishing; larger publishes go in several rounds. 0 for a reader only.
            name: what the daemon's log calls this client.

        Raises:
            DaemonUnreachable: nobody answers there.
        """
        client = cls.detached(socket_path, timeout_s=timeout_s, staging_bytes=staging_bytes, name=name)
        client._attach()  # noqa: SLF001 - ours, just made
        return client

    @classmethod
    def detached(
        cls,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        timeout_s: float = 5.0,
        staging_bytes: int = STAGING_BYTES_DEFAULT,
        name: str = "",
    ) -> "Client":
        """Return a client that attaches with its first call, for an engine that may start before its daemon.

        The arguments are those of `connect`.
        """
        path = Path(socket_path) if socket_path else default_socket()
        return cls(path, timeout_s=timeout_s, staging_bytes=staging_bytes, name=name or f"pid {os.getpid()}")

    def another(self, *, name: str = "") -> "Client":
        """Return one more client of the same daemon, for another thread; a client answers one question at a time."""
        return Client.connect(
            self.socket_path, timeout_s=self._timeout_s, staging_bytes=self._staging_bytes, name=name or self._name
        )

    def reconnect(self) -> None:
        """In a forked process: make this a client of its own, with a connection and staging memory of its own.

        Raises:
            DaemonUnreachable: nobody answers; later calls try again.
        """
        with self._lock:
            self._elsewhere = False
            self._retry_at = 0.0
            self._attach()

    def stop_with(self, stop: Callable[[], None]) -> None:
        """Call `stop` once when this client is closed: the node is this client's."""
        self._at_close = stop

    def close(self) -> None:
        """Let go of everything. Views of leases stay readable; their blocks are no longer pinned."""
        with self._lock:
            self._closed = True
            self._disconnect()
            if self._staging is not None:
                self._staging.close()
                self._staging = None
            stop, self._at_close = self._at_close, None
        if stop is not None:
            stop()

    def _forked(self) -> None:
        """In a forked process: a miss from now on, and nothing of the parent's is touched.

        The connection carries the parent's answers, and staging memory is shared with it. The lock may be held by a
        thread that does not exist here.
        """
        self._lock = threading.RLock()
        self._elsewhere = True
        self._at_close = None
        self._disconnect()
        if self._staging is not None:
            self._staging.close()
            self._staging = None

    def __reduce__(self) -> Never:
        raise LocalUseError("a client cannot be sent to another process", hint="connect there, with its socket_path")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- blocks -------------------------------------------------------------------------------------------------

    def match(self, keys: Sequence[bytes]) -> Match:
        """Return how much of a chain can be had, at once and without asking any peer: a hint, not a promise."""
        reply = self._call(MatchRequest(_chain(keys)), MatchReply)
        holders = tuple((holder.name, holder.blocks) for holder in reply.holders)
        return Match(reply.local, reply.reachable, holders)

    def acquire(
        self,
        keys: Sequence[bytes],
        *,
        timeout_s: float = 10.0,
        first: int = 0,
        block_bytes: int = 0,
        prefill_block_s: float = 0.0,
    ) -> Lease:
        """Bring the longest usable prefix of a chain into local memory and pin it.

        Args:
            keys: the chain, from its root.
            first: how many blocks at its head the engine has itself; the lease begins behind them.
            timeout_s: how long to wait for peers; what has arrived by then is the result.
            block_bytes: how long a block is. Without it, a node that has seen no block yet cannot ask its object store.
            prefill_block_s: with `block_bytes`, what computing a block costs this engine, seconds: a fetch that would
                take longer is not begun. Without them fetching always pays.
        """
        request = AcquireRequest(_chain(keys), int(timeout_s * 1000), block_bytes, int(prefill_block_s * 1e6), first)
        with self._lock:
            reply = self._call(request, AcquireReply, wait_s=timeout_s)
            assert self._arena is not None
            return Lease(self, reply, self._arena)

    def pin(self, keys: Sequence[bytes], *, ttl_s: float) -> PinReply:
        """Keep what the node has of a chain's head from being evicted for `ttl_s`; with 0, no longer.

        A second call for the same chain replaces the first. It outlives this connection, and not the daemon.

        Raises:
            PinLimit: as much is pinned as may be.
        """
        return self._call(PinRequest(_chain(keys), int(ttl_s * 1000)), PinReply)

    def prefetch(self, keys: Sequence[bytes], *, timeout_s: float = 10.0, block_bytes: int = 0) -> int:
        """Have a chain brought here from disk, from peers and from the object store while the engine does something else; returns at once.

        What has come is kept for `timeout_s` from now, after which it is as if nobody had asked for it. An `acquire` before
        that finds it in memory, or waits for what is still on its way. It ends with this client.

        Args:
            keys: the chain, from its root.
            timeout_s: how long this may take, and how soon the engine means to come for it.
            block_bytes: see `acquire`.

        Returns:
            How many blocks of the chain are wanted: fewer than it has if hints may pin no more. Not all of them need come.

        Raises:
            P2pkvError: hints pin as much memory as they may; nothing was begun.
        """
        return self._call(PrefetchRequest(_chain(keys), int(timeout_s * 1000), block_bytes), PrefetchReply).blocks

    def explain(self, keys: Sequence[bytes], *, block_bytes: int = 0, prefill_block_s: float = 0.0) -> ExplainReply:
        """Return what the plan for a chain would be and what it last was, with each peer's terms. Nobody is asked.

        Args:
            keys: the chain, from its root.
            block_bytes: with `prefill_block_s`, what computing a block costs, seconds; see `acquire`. Without them what
                an engine of this node said last is taken.
            prefill_block_s: see `block_bytes`.
        """
        return self._call(ExplainRequest(_chain(keys), block_bytes, int(prefill_block_s * 1e6)), ExplainReply)

    def score(
        self, keys: Sequence[bytes], *, block_bytes: int = 0, prefill_block_s: float = 0.0, limit: int = SEATS_MAX
    ) -> ScoreReply:
        """Return where a chain would best be computed, the best node first, for a router to choose. Nobody is asked.

        What waits in front of an engine is not in it: a router knows that, and adds it to `first_token_ms`.

        Args:
            keys: the chain, from its root.
            block_bytes: with `prefill_block_s`, what computing a block costs, seconds; see `acquire`. Without them what
                an engine of this node said last is taken, or nothing.
            prefill_block_s: see `block_bytes`.
            limit: of nodes in the answer.
        """
        return self._call(ScoreRequest(_chain(keys), block_bytes, int(prefill_block_s * 1e6), limit), ScoreReply)

    def publish(
        self, namespace: Namespace, keys: Sequence[bytes], fill: Fill, *, first_depth: int | None = None
    ) -> Published:
        """Offer blocks to the mesh.

        Args:
            namespace: what they are KV of; its layout gives the size of a block.
            keys: their keys, in chain order.
            fill: `fill(i, destination)` writes the bytes of block `i` into `destination`, a uint8 array of
                `block_bytes`. Called in order, at most once each, and not for blocks that are here already.
            first_depth: how many blocks are before the first of `keys` in its chain, 0 at its root. Then peers are told
                of about every eighth block only, and find the others as part of the chain. None: not known, or `keys`
                are no chain; peers are told of every block.

        Returns:
            How many were stored; a full tier refuses some and loses nothing.
        """
        layout = namespace.layout
        here = self.match(keys).local_blocks
        infos = ((BlockKey(key), layout.block_bytes, layout.segment_bytes) for key in keys[here:])
        chain = None if first_depth is None else (first_depth + here, keys[here - 1] if here else b"")
        done = self._publish(namespace.digest, infos, lambda i, place: fill(here + i, place), layout.block_bytes, chain)
        return replace(done, present=done.present + here)

    def store(self, info: BlockInfo, body: bytes | bytearray) -> Published:
        """Offer one block whose namespace is known only by its digest, as a block file gives it."""

        def fill(_: int, destination: NDArray[np.uint8]) -> None:
            destination[:] = np.frombuffer(body, dtype=np.uint8)

        return self._publish(info.namespace, iter([(info.key, info.length, info.segment_bytes)]), fill, info.length)

    def _publish(
        self,
        namespace: bytes,
        blocks: Iterator[tuple[BlockKey, int, int]],
        fill: Fill,
        block_bytes: int,
        chain: tuple[int, bytes] | None = None,
    ) -> Published:
        """Stage and send `blocks`; `chain` is the depth of the first one and the key before it, if they are a chain."""
        stride = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
        total = Published(0, 0, 0, "")
        with self._lock:
            if self._staging_bytes < stride:
                raise LocalUseError(
                    f"block of {block_bytes} bytes, staging memory of {self._staging_bytes}",
                    hint="connect with a larger staging_bytes",
                )
            self._attach()
            assert self._staging is not None
            staged: list[StagedBlock] = []
            for i, (key, length, segment_bytes) in enumerate(blocks):
                offset = len(staged) * stride
                place = self._staging.bytes[offset : offset + length]
                fill(i, place)
                digest = block_digest(place.data, segment_bytes)
                staged.append(StagedBlock(key, offset, length, segment_bytes, digest))
                if (len(staged) + 1) * stride > self._staging_bytes:
                    total = self._send_staged(namespace, staged, total, chain)
                    chain = None if chain is None else (chain[0] + len(staged), key)
                    staged = []
            return self._send_staged(namespace, staged, total, chain) if staged else total

    def _send_staged(
        self, namespace: bytes, staged: list[StagedBlock], total: Published, chain: tuple[int, bytes] | None
    ) -> Published:
        request = PublishRequest(namespace, tuple(staged), *(chain or ()))
        reply = self._call(request, PublishReply, wait_s=self._timeout_s + 30)
        return Published(
            total.stored + reply.stored,
            total.present + reply.present,
            total.refused + reply.refused,
            reply.reason or total.reason,
            reply.hint or total.hint,
        )

    def release_id(self, lease: int, arena: "_Arena") -> None:
        """Unpin a lease of the connection that `arena` belongs to; see `Lease.release`."""
        with self._lock:
            if self._arena is arena:  # a lease of an earlier connection ended with it
                self._call(ReleaseRequest(lease), Done)

    # -- the node -----------------------------------------------------------------------------------------------

    def mapped(self) -> tuple[tuple[NDArray[np.uint8], bool], ...]:
        """Return what is mapped here of the node's memory and of the staging memory, and whether it is read-only.

        For registering it with a device. It changes when the client connects anew; nothing if it is not connected.
        """
        with self._lock:
            arena = [(self._arena.whole, True)] if self._arena is not None else []
            staging = [(self._staging.bytes, False)] if self._staging is not None and self._staging.size else []
        return (*arena, *staging)

    def status(self) -> StatusReply:
        """Return how the node is."""
        return self._call(StatusRequest(), StatusReply)

    def members(self) -> tuple[MemberView, ...]:
        """Return what the node believes of the members, itself first."""
        return self._call(MembersRequest(), MembersReply).members

    def locate(self, key: bytes) -> LocateReply:
        """Return where a block is: what the node knows, and what the owners of its stretch say, who are asked."""
        return self._call(LocateRequest(key), LocateReply)

    def ring(self) -> RingReply:
        """Return who owns how much of the ring, as the node sees it."""
        return self._call(RingRequest(), RingReply)

    def keys(
        self, action: int, *, key: bytes = b"", name: str = "", timeout_s: float = 10.0, force: bool = False
    ) -> KeysReply:
        """Have the node change or list the keys of all members; see `p2pkv.rotation.Rotation.start`.

        Raises:
            ConfigError: nothing was changed anywhere.
        """
        request = KeysRequest(action, int(timeout_s * 1000), key, name, force)
        return self._call(request, KeysReply, wait_s=timeout_s)

    def ping_peer(self, peer: str, *, timeout_s: float = 10.0, measure: bool = True) -> PathsReply:
        """Return how blocks of a member come here, and how fast.

        Raises:
            ConfigError: there is no such member.
        """
        request = PingPeerRequest(peer, int(timeout_s * 1000), measure)
        return self._call(request, PathsReply, wait_s=4 * timeout_s)

    def netcheck(self, *, timeout_s: float = 3.0, measure: bool = False) -> PathsReply:
        """Return who can be reached how, and who reaches this node."""
        return self._call(NetcheckRequest(int(timeout_s * 1000), measure), PathsReply, wait_s=60 + 4 * timeout_s)

    def condition(self) -> ConditionReply:
        """Return what the daemon's process has to work with."""
        return self._call(ConditionRequest(), ConditionReply)

    def scrub(self, rate_bytes_s: int) -> ScrubReply:
        """Have the daemon read its whole disk tier, at so many bytes a second; what is bad is a miss from then on.

        Takes as long as that takes.
        """
        return self._call(ScrubRequest(rate_bytes_s), ScrubReply, wait_s=_SCRUB_WAIT_S)

    def leave(self) -> None:
        """Have the node leave the mesh in good order; its daemon stops."""
        self._call(LeaveRequest(), Done)

    # -- for parts, see `p2pkv.client_parts` -----------------------------------------------------------------------

    def _with_staging(self, stride: int) -> Staging:
        if self._staging_bytes < stride:
            raise LocalUseError(
                f"part of {stride} bytes, staging memory of {self._staging_bytes}",
                hint="connect with a larger staging_bytes",
            )
        self._attach()
        assert self._staging is not None
        return self._staging

    def _current_arena(self) -> ArenaView:
        assert self._arena is not None
        return self._arena

    # -- the connection -----------------------------------------------------------------------------------------

    def _call(self, request: Request, kind: type[R], *, wait_s: float = 0.0) -> R:
        with self._lock:
            self._attach()
            try:
                self._send(request)
                reply, descriptors = self._receive(max(self._timeout_s, wait_s + _ANSWER_GRACE_S))
            except (OSError, MalformedMessage) as exc:
                self._disconnect()
                raise self._unreachable("the daemon went away" if isinstance(exc, OSError) else str(exc)) from exc
            for descriptor in descriptors:
                os.close(descriptor)
            if isinstance(reply, Failure):
                raise _error_of(reply)
            if not isinstance(reply, kind):
                self._disconnect()
                raise self._unreachable(f"the daemon answered {type(reply).__name__}")
            return reply

    def _attach(self) -> None:
        """Connect, unless connected."""
        with self._lock:
            if self._socket is not None:
                return
            if self._closed:
                raise LocalUseError("the client was closed")
            if self._elsewhere:
                raise DaemonUnreachable(
                    "this process was forked from the one that made the client",
                    socket=str(self.socket_path),
                    hint="call its reconnect()",
                )
            if time.monotonic() < self._retry_at:
                raise self._unreachable("the daemon went away")
            self._retry_at = time.monotonic() + _RECONNECT_S
            if self._staging is None and self._staging_bytes:
                self._staging = Staging(self._staging_bytes)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(self._timeout_s)
            try:
                connection.connect(str(self.socket_path))
                self._socket = connection
                self._send(Attach(LOCAL_PROTOCOL, self._name, self._staging_bytes))
                reply, descriptors = self._receive(self._timeout_s)
            except (OSError, MalformedMessage) as exc:
                connection.close()
                self._socket = None
                reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
                raise self._unreachable(f"no daemon answers ({reason})") from exc
            try:
                self._welcomed(reply, descriptors)
            except BaseException:
                self._disconnect()
                raise
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _welcomed(self, reply: Reply, descriptors: list[int]) -> None:
        if isinstance(reply, Failure):
            raise _error_of(reply)
        if not isinstance(reply, Welcome) or not descriptors:
            raise self._unreachable("something else than a p2pkv daemon answers")
        self._arena = _Arena(descriptors[0], reply.arena_bytes, reply.table_bytes)
        self.node_id, self.node_name = reply.node, reply.name
        self._retry_at = 0.0

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._arena = None

    def _unreachable(self, reason: str) -> DaemonUnreachable:
        return DaemonUnreachable(
            reason, socket=str(self.socket_path), hint="start one with `p2pkv serve`, or name its socket with --socket"
        )

    def _send(self, request: Request) -> None:
        assert self._socket is not None
        payload = encode(request)
        data = len(payload).to_bytes(LENGTH_BYTES, "little") + payload
        if isinstance(request, Attach) and self._staging is not None:
            sent = socket.send_fds(self._socket, [data], [self._staging.fd])
            data = data[sent:]
        self._socket.sendall(data)

    def _receive(self, timeout_s: float) -> tuple[Reply, list[int]]:
        """Return the next reply, and what came with it if that is the first; nothing comes behind it until it is asked for."""
        assert self._socket is not None
        if self._socket.gettimeout() != timeout_s:  # a call into the kernel each time
            self._socket.settimeout(timeout_s)
        reader = FrameReader(peer="local daemon", frame_bytes_max=LOCAL_MESSAGE_BYTES_MAX)
        descriptors: list[int] = []
        while (payload := reader.next_frame()) is None:
            if self._arena is None:
                data, arrived, _, _ = socket.recv_fds(self._socket, _READ_BYTES, 1)
                descriptors += arrived
            else:
                data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError("the daemon closed the connection")
            reader.feed(data)
        return decode_reply_untrusted(payload, peer="local daemon"), descriptors

    def __repr__(self) -> str:
        state = "closed" if self._closed else "attached" if self._socket is not None else "detached"
        return f"<Client {self.socket_path} {state}>"


_CLIENTS: "weakref.WeakSet[Client]" = weakref.WeakSet()


def _after_fork() -> None:
    for client in tuple(_CLIENTS):
        client._forked()  # noqa: SLF001 - ours


os.register_at_fork(after_in_child=_after_fork)


class _Arena:
    """A read-only mapping of the daemon's memory. It outlives the daemon as long as somebody holds a view of it."""

    def __init__(self, descriptor: int, arena_bytes: int, table_bytes: int) -> None:
        self._map = mmap.mmap(descriptor, arena_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        self._view = memoryview(self._map)
        self._slots = self._view[table_bytes:]
        self._table = np.frombuffer(self._view[:table_bytes], dtype="<u8")

    @property
    def whole(self) -> NDArray[np.uint8]:
        return np.frombuffer(self._view, dtype=np.uint8)

    def view(self, offset: int, length: int) -> memoryview:
        return self._slots[offset : offset + length]

    def generation(self, block: LeasedBlock) -> int:
        return self.generation_at(block.offset, block.length)

    def generation_at(self, offset: int, length: int) -> int:
        return generation(pages_of(self._table, offset, length))


def _chain(keys: Sequence[bytes]) -> bytes:
    if len(keys) > KEYS_PER_CHAIN_MAX:
        raise LocalUseError(f"chain of {len(keys)} blocks, limit {KEYS_PER_CHAIN_MAX}")
    return join_keys(keys)


def _error_of(failure: Failure) -> P2pkvError:
    """Return the daemon's error as the class it was there, as far as it can be made again from its text."""
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, CapacityError):
        return kind(failure.message.removesuffix(": host tier"), tier="host", hint=failure.hint)
    if isinstance(kind, type) and issubclass(kind, LocalUseError):
        return kind(failure.message, hint=failure.hint)
    return P2pkvError(f"{failure.kind}: {failure.message}", hint=failure.hint)
