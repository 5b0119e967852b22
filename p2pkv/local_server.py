"""The daemon's side of the local socket: one session per client, one request at a time, answers in order.

What a client holds (leases, staging memory) ends with its connection, however that ends.
"""

import contextlib
import os
import socket
import time
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from typing import Final, TypeVar

import trio

from p2pkv import __version__
from p2pkv.acquires import FROM_DISK, FROM_OBJECT, Acquired
from p2pkv.blocks import KEY_BYTES, BlockInfo, BlockKey, split_keys
from p2pkv.errors import LocalUseError, MalformedMessage, P2pkvError, PeerGone, TierFull
from p2pkv.hand_over import DRAIN_S, FORMAT
from p2pkv.hints import Hints
from p2pkv.ledger import Reservation
from p2pkv.local_explain import explain_view, score_view
from p2pkv.local_parts import ArrivalBell, PartSession, parts_figures
from p2pkv.local_views import disk_view, duplicate_views, handed_view, member_views, object_view, source_views
from p2pkv.local_wire import (
    LOCAL_MESSAGE_BYTES_MAX,
    LOCAL_PROTOCOL,
    AcquireReply,
    AcquireRequest,
    Attach,
    ConditionReply,
    ConditionRequest,
    DeliverRequest,
    Done,
    EndRequest,
    ExpectRequest,
    ExplainRequest,
    Failure,
    FollowRequest,
    HandedReply,
    HandedRequest,
    HandOverReply,
    HandOverRequest,
    Holder,
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
    NetcheckRequest,
    PingPeerRequest,
    PinReply,
    PinRequest,
    PrefetchReply,
    PrefetchRequest,
    PublishReply,
    PublishRequest,
    PushRequest,
    Recorded,
    ReleaseRequest,
    Reply,
    Request,
    RingReply,
    RingRequest,
    RingShare,
    ScoreRequest,
    ScrubReply,
    ScrubRequest,
    ShardRequest,
    SourceName,
    StagedBlock,
    StatusReply,
    StatusRequest,
    WaitRequest,
    Welcome,
    decode_request_untrusted,
    encode,
)
from p2pkv.logs import Log
from p2pkv.mesh.members import MemberState
from p2pkv.mesh.placement import SLOTS
from p2pkv.mesh.ring import BOUND, Ring
from p2pkv.metrics import Metrics
from p2pkv.node import Effect, Located, Node
from p2pkv.paths import Paths
from p2pkv.planner import Cost
from p2pkv.runner import Runner
from p2pkv.staging import StagingReader
from p2pkv.tiers.disk.scrub import Scrubbed
from p2pkv.tiers.host import HostTier
from p2pkv.transport.framing import LENGTH_BYTES, FrameReader
from p2pkv.transport.shm import refuse_other_users
from p2pkv.transport.wire import MemberRecord

T = TypeVar("T")

_READ_BYTES: Final = 64 * 1024
_UNWATCHED_S: Final = 0.02
"""How long a client may wait for its answer before it is looked whether it still does."""
_SOURCES: Final = {
    "": SourceName("", "local"),
    FROM_DISK: SourceName("", "disk"),
    FROM_OBJECT: SourceName("", "object"),
}
"""Of blocks that no peer gave."""
_STAGED_AT_ONCE: Final = 64
"""Blocks copied per trip to a worker thread, so that a large publish lets others in between."""


@dataclass(frozen=True, slots=True)
class Served:
    """What the sessions of one node share."""

    runner: Runner
    tier: HostTier
    metrics: Metrics
    log: Log
    me: MemberRecord
    cluster: str
    path: Callable[[str], str]
    """Peer -> name of the transport that its blocks take, for the sources of fetched blocks."""
    protection: Callable[[], str]
    protected_by: Callable[[], dict[str, str]]
    keys: Callable[[KeysRequest], Awaitable[KeysReply]]
    """Leads a round over the keyrings of all members."""
    paths: Paths
    condition: Callable[[], ConditionReply]
    started_at: float
    leave: Callable[[float], None]
    """Ends the node, once leases are released or after so many seconds."""
    promoted: Callable[[Sequence[BlockKey], float], Awaitable[None]]
    """Waits until what keys have on the disk alone is in memory, for so many seconds at most."""
    scrub: Callable[[float], Awaitable[Scrubbed]]
    """Reads the whole disk tier at so many bytes a second."""
    state_dir: str = ""
    """Where id and boot number are kept, or nothing."""


class LocalServer:
    """All sessions of one node."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._numbers = count(1)
        self._waiting: dict[int, Callable[[Acquired], None]] = {}
        self._hints = served.runner.ask(lambda node: Hints(node.ledger, node.slot_bytes))
        self._locating: dict[int, tuple[trio.Event, list[Located]]] = {}
        served.runner.on_acquired = self._acquired
        served.runner.on_located = self._located
        self.bell: Final = ArrivalBell()
        served.runner.on_parts = self.bell.ring

    async def run(self, listener: socket.socket) -> None:
        """Serve clients on `listener` until cancelled."""
        listener.setblocking(False)
        accepting = trio.socket.from_stdlib_socket(listener)
        async with trio.open_nursery() as nursery:
            while True:
                connection, _ = await accepting.accept()
                session = _Session(self, self._served, connection, f"client:{next(self._numbers)}")
                nursery.start_soon(session.run)

    async def acquire(
        self,
        holder: str,
        keys: tuple[BlockKey, ...],
        *,
        first: int,
        deadline: float,
        cost: Cost | None,
        block_bytes: int,
        take: Callable[[Acquired], None],
        wait: Callable[[trio.Event], Awaitable[None]],
    ) -> None:
        """Have the node acquire `keys` for `holder`, and wait for the result, as `wait` does.

        `take` is called with it in the moment in which it is known, before this returns, and must not raise.

        Cancellation: what was begun ends, and leases at peers with it; `take` is not called any more.
        """
        event = trio.Event()

        def ended(acquired: Acquired) -> None:
            take(acquired)
            event.set()

        def verb(node: Node, now: float) -> tuple[int, tuple[Effect, ...]]:
            number, effects = node.acquire(
                keys, holder=holder, deadline=deadline, now=now, first=first, cost=cost, block_bytes=block_bytes
            )
            self._waiting[number] = ended
            return number, effects

        number = self._served.runner.call(verb)
        try:
            if not event.is_set():
                await wait(event)
        finally:
            self._waiting.pop(number, None)
            if not event.is_set():
                self._served.runner.tell(lambda node, now: node.cancel(number, now))

    def prefetch(self, holder: str, chain: tuple[BlockKey, ...], deadline: float, *, block_bytes: int = 0) -> int:
        """Have the node acquire a chain for `holder` and keep what comes until `deadline`; return of how many blocks.

        Raises:
            PinLimit: hints pin as much as they may, or `holder` has as many leases as it may have.
        """
        keys = self._hints.room_for(chain, block_bytes)

        def verb(node: Node, now: float) -> tuple[Effect, ...]:
            number, effects = node.acquire(keys, holder=holder, deadline=deadline, now=now, block_bytes=block_bytes)
            self._hints.begin(number, keys, holder=holder, deadline=deadline, block_bytes=block_bytes)
            return effects

        self._served.runner.tell(verb)
        return len(keys)

    def forget_hints(self, holder: str) -> None:
        """End what hints have begun and hold for an engine that is gone."""
        for number in self._hints.forget(holder):
            self._served.runner.tell(partial(_cancelled, number))
        self._served.runner.ask(lambda node: node.ledger.release_holder(holder))

    async def locate(self, key: BlockKey) -> Located:
        """Have the owners of a key's stretch asked where it is; takes `directory.timeout_s` at most."""
        event, result = trio.Event(), list[Located]()

        def verb(node: Node, now: float) -> tuple[int, tuple[Effect, ...]]:
            number, effects = node.locate_in_directory(key, now)
            self._locating[number] = (event, result)
            return number, effects

        number = self._served.runner.call(verb)
        try:
            await event.wait()
        finally:
            del self._locating[number]
        return result[0]

    def _located(self, located: Located) -> None:
        event, result = self._locating.get(located.locate, (None, []))
        result.append(located)
        if event is not None:  # or else the client went away meanwhile
            event.set()

    def _acquired(self, acquired: Acquired) -> None:
        waiter = self._waiting.get(acquired.acquire)
        if self._hints.waits_for(acquired.acquire):
            self._served.metrics.prefetched_blocks.inc(self._hints.on_acquired(acquired))
            return
        if waiter is None:
            lease = acquired.lease
            self._served.runner.ask(lambda node: node.ledger.release(lease.id, holder=lease.holder))
            return
        waiter(acquired)


class _Session:
    """One client's connection."""

    def __init__(self, server: LocalServer, served: Served, connection: trio.socket.SocketType, holder: str) -> None:
        self._server = server
        self._served = served
        self._connection = connection
        self._holder = holder
        self._reader = FrameReader(peer=holder, frame_bytes_max=LOCAL_MESSAGE_BYTES_MAX)
        self._descriptors: list[int] = []
        self._staging: StagingReader | None = None
        self._attached = False
        self._unsent = memoryview(b"")
        """Of an answer, what the socket has not taken yet."""
        self._parts = PartSession(
            runner=served.runner, tier=served.tier, holder=holder, bell=server.bell, promoted=served.promoted
        )

    async def run(self) -> None:
        """Answer requests until the client goes away or breaks the protocol."""
        log = self._served.log.bind(client=self._holder)
        self._served.metrics.clients.inc()
        try:
            while (payload := await self._next_frame()) is not None:
                request = decode_request_untrusted(payload, peer=self._holder)
                log.debug("request", kind=type(request).__name__)
                reply = await self._answered(request)
                if isinstance(reply, Welcome):
                    await self._welcome(reply)
                elif reply is not None:
                    self._begin_to_send(reply)
                await self._send_rest()
        except MalformedMessage as exc:
            self._served.metrics.malformed.labels("local").inc()
            log.warning("malformed request", reason=str(exc))
        except (OSError, PeerGone) as exc:
            log.debug("client lost", reason=str(exc))
        finally:
            self._served.metrics.clients.dec()
            self._connection.close()
            for descriptor in self._descriptors:
                os.close(descriptor)
            holder = self._holder
            self._parts.close()
            self._server.forget_hints(f"{holder}/hint")
            self._served.runner.tell(self._forget_hand_over)
            self._served.runner.ask(lambda node: node.ledger.release_holder(holder))
            self._served.runner.ask(lambda node: node.ledger.release_holder(f"{holder}/guard"))

    async def _wait(self, event: trio.Event) -> None:
        """Wait for what an acquire brings; that the client has hung up is looked for only when it takes long.

        Raises:
            PeerGone: it has.
        """
        with trio.move_on_after(_UNWATCHED_S):
            await event.wait()
            return
        await self._unless_gone(event.wait)

    async def _unless_gone(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work` returns, and cancel it if the client hangs up.

        A client asks one thing at a time, so the next that can be read is the end. One that sends more is not watched.

        Raises:
            PeerGone: it has hung up.
        """
        results: list[T] = []
        errors: list[P2pkvError] = []
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                try:
                    ended = not await self._connection.recv(1, socket.MSG_PEEK)
                except OSError:
                    ended = True
                if ended:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                results.append(await work())
            except P2pkvError as exc:  # out of the nursery it would be a group, which nobody answers the client with
                errors.append(exc)
            nursery.cancel_scope.cancel()
        if errors:
            raise errors[0]
        if not results:
            raise PeerGone("the client hung up before its answer came", peer=self._holder)
        return results[0]

    async def _answered(self, request: Request) -> Reply | None:
        """Return the reply, None if it is on its way; an error of ours becomes a `Failure`, and the session goes on."""
        try:
            return await self._answer(request)
        except (MalformedMessage, PeerGone):
            raise
        except P2pkvError as exc:
            return Failure(type(exc).__name__, str(exc)[:4096], exc.hint[:4096])

    async def _answer(self, request: Request) -> Reply | None:
        if isinstance(request, Attach):
            return self._attach(request)
        if not self._attached:
            raise MalformedMessage(f"{type(request).__name__} before Attach", peer=self._holder)
        match request:
            case MatchRequest(keys=keys):
                return self._match(_chain(keys, self._holder))
            case AcquireRequest():
                await self._acquire(request)
                return None
            case PrefetchRequest():
                deadline = trio.current_time() + request.timeout_ms / 1000
                chain = _chain(request.keys, self._holder)
                wanted = self._server.prefetch(f"{self._holder}/hint", chain, deadline, block_bytes=request.block_bytes)
                return PrefetchReply(wanted)
            case ReleaseRequest(lease=lease):
                self._served.runner.ask(lambda node: node.ledger.release(lease, holder=self._holder))
                return Done()
            case PinRequest():
                return self._pin(request)
            case PublishRequest():
                return await self._publish(request)
            case StatusRequest():
                return self._served.runner.ask(self._status)
            case MembersRequest():
                return MembersReply(self._served.runner.ask(lambda node: member_views(node, trio.current_time())))
            case LocateRequest(key=key):
                return await self._locate(BlockKey(key))
            case RingRequest():
                ring = self._served.runner.call(lambda node, now: (node.ring(now), ()))
                return self._served.runner.ask(lambda node: _ring_reply(node, ring))
            case ScoreRequest():
                return self._score(request)
            case ExplainRequest():
                return self._explain(request)
            case KeysRequest():
                return await self._served.keys(request)
            case ShardRequest() | DeliverRequest() | WaitRequest() | EndRequest() | ExpectRequest() | PushRequest():
                return await self._unless_gone(lambda: self._parts.answer(request, self._staging))
            case PingPeerRequest():
                paths = self._served.paths
                return await self._unless_gone(partial(paths.ping, paths.find(request.peer), request))
            case NetcheckRequest():
                return await self._unless_gone(partial(self._served.paths.netcheck, request))
            case ConditionRequest():
                return await trio.to_thread.run_sync(self._served.condition)
            case ScrubRequest(rate_bytes_s=rate):
                found = await self._unless_gone(partial(self._scrub, rate))
                return ScrubReply(found.blocks, found.read_bytes, dict(sorted(found.bad.items())))
            case LeaveRequest():
                self._served.leave(0.0)
                return Done()
            case HandOverRequest():
                return self._hand_over(request)
            case HandedRequest(first=first):
                return self._served.runner.call(partial(self._handed, first))
            case FollowRequest():
                self._served.runner.tell(self._follow)
                self._served.log.info("handed over, leaving", to=self._holder)
                self._served.leave(DRAIN_S)
                return Done()

    def _attach(self, request: Attach) -> Reply:
        if request.protocol != LOCAL_PROTOCOL:
            raise LocalUseError(
                f"the daemon speaks local protocol {LOCAL_PROTOCOL}, not {request.protocol}",
                hint="install the same p2pkv version in the engine's environment and the daemon's",
            )
        if self._attached:
            raise MalformedMessage("a second Attach", peer=self._holder)
        if request.staging_bytes:
            if not self._descriptors:
                raise LocalUseError("no staging memory came with Attach")
            self._staging = StagingReader(self._descriptors.pop(0), request.staging_bytes)
        self._attached = True
        me, tier = self._served.me, self._served.tier
        return Welcome(LOCAL_PROTOCOL, me.id, me.name, tier.arena_bytes, tier.table_bytes)

    def _explain(self, request: ExplainRequest) -> Reply:
        keys, cost = _chain(request.keys, self._holder), _cost(request.block_bytes, request.prefill_block_us)
        now = trio.current_time()
        return self._served.runner.ask(lambda node: explain_view(node, keys, cost, now, path=self._served.path))

    def _score(self, request: ScoreRequest) -> Reply:
        keys, cost = _chain(request.keys, self._holder), _cost(request.block_bytes, request.prefill_block_us)
        now = trio.current_time()
        return self._served.runner.ask(lambda node: score_view(node, keys, cost, request.limit, now))

    def _match(self, keys: tuple[BlockKey, ...]) -> Reply:
        match = self._served.runner.ask(lambda node: node.match(keys, trio.current_time()))
        holders = tuple(Holder(record.id, record.name, depth) for record, depth in match.holders)
        return MatchReply(match.local, match.reachable, holders)

    async def _acquire(self, request: AcquireRequest) -> None:
        keys = _chain(request.keys, self._holder)
        cost = _cost(request.block_bytes, request.prefill_block_us)
        deadline = trio.current_time() + request.timeout_ms / 1000
        results: list[Acquired] = []

        def take(acquired: Acquired) -> None:
            results.append(acquired)
            self._begin_to_send(self._acquire_reply(acquired))

        await self._server.acquire(
            self._holder,
            keys,
            first=request.first,
            deadline=deadline,
            cost=cost,
            block_bytes=request.block_bytes,
            take=take,
            wait=self._wait,
        )
        self._count(len(keys) - request.first, results[0])

    def _acquire_reply(self, acquired: Acquired) -> Reply:
        held = acquired.lease.blocks
        numbers = {peer: number for number, peer in enumerate(dict.fromkeys(acquired.sources))}
        tier = self._served.tier
        generations = (
            tier.generations([one.slot for one in held])
            if len(held) > 1
            else [tier.generation(one.slot) for one in held]
        )
        blocks = tuple(
            [
                LeasedBlock(
                    key=one.info.key,
                    namespace=one.info.namespace,
                    offset=one.slot.offset,
                    length=one.info.length,
                    segment_bytes=one.info.segment_bytes,
                    generation=generation,
                    digest=one.info.digest,
                    source=numbers[peer],
                )
                for one, generation, peer in zip(held, generations, acquired.sources, strict=True)
            ]
        )
        sources = tuple(self._source(peer) for peer in numbers)
        return AcquireReply(acquired.lease.id, blocks, sources, acquired.reason)

    def _source(self, peer: str) -> SourceName:
        own = _SOURCES.get(peer)
        return own if own is not None else SourceName(self._name(peer), self._served.path(peer))

    def _name(self, peer: str) -> str:
        record = self._served.runner.ask(lambda node: node.membership.member(peer))
        return record.name if record is not None else peer

    async def _locate(self, key: BlockKey) -> Reply:
        location = self._served.runner.call(lambda node, now: (node.locate(key, now), ()))
        located = await self._server.locate(key)
        names = self._served.runner.ask(lambda node: {record.id: record.name for record in node.membership.members()})
        info = location.held.info if location.held is not None else None
        return LocateReply(
            local=info is not None,
            length=info.length if info is not None else 0,
            digest=info.digest.hex() if info is not None else "",
            claimed_by=tuple(Holder(record.id, record.name, 1) for record in location.claimed_by),
            owners=tuple(Holder(record.id, record.name, 0) for record in location.owners),
            anchor=located.anchor.hex(),
            place=located.place,
            recorded=tuple(
                Recorded(claim.holder, names.get(claim.holder, ""), claim.blocks, claim.tier, names[claim.owner])
                for claim in located.claims
                if claim.owner in names
            ),
            silent=tuple(names.get(owner, owner) for owner in located.silent),
        )

    def _count(self, asked: int, acquired: Acquired) -> None:
        metrics = self._served.metrics
        metrics.lookup_blocks.inc(max(0, asked))
        disk, stored = acquired.sources.count(FROM_DISK), acquired.sources.count(FROM_OBJECT)
        local = acquired.sources.count("")
        remote = len(acquired.sources) - local - disk - stored
        metrics.hit_blocks.labels("remote").inc(remote)
        metrics.hit_blocks.labels("disk").inc(disk)
        metrics.hit_blocks.labels("object").inc(stored)
        metrics.hit_blocks.labels("local").inc(local)
        metrics.lookups.labels("remote" if remote or stored else "local" if acquired.sources else "miss").inc()

    def _pin(self, request: PinRequest) -> PinReply:
        chain, ttl_s, now = _chain(request.keys, self._holder), request.ttl_ms / 1000, trio.current_time()
        if not chain:
            raise MalformedMessage("a pin of nothing", peer=self._holder)
        if not ttl_s:
            ended = self._served.runner.ask(lambda node: node.unpin(chain[-1]))
            return PinReply(len(chain) if ended else 0, 0)
        pinned = self._served.runner.ask(lambda node: node.pin(chain, deadline=now + ttl_s, now=now))
        return PinReply(pinned.blocks, pinned.size)

    async def _publish(self, request: PublishRequest) -> Reply:
        stored = present = refused = 0
        reason = hint = ""
        if self._staging is None:
            raise LocalUseError("publishing needs staging memory, and none came with Attach")
        for block in request.blocks:
            if block.offset + block.length > self._staging.size or block.length % block.segment_bytes:
                raise LocalUseError(f"staged block of {block.length} bytes at {block.offset} is out of bounds")
        depths = _depths(request)
        for start in range(0, len(request.blocks), _STAGED_AT_ONCE):
            places: list[tuple[StagedBlock, Reservation]] = []
            for block in request.blocks[start : start + _STAGED_AT_ONCE]:
                try:
                    reservation = self._reserve(request.namespace, block)
                except TierFull as exc:
                    refused, reason, hint = refused + 1, str(exc), exc.hint
                    continue
                if reservation is None:
                    present += 1
                else:
                    places.append((block, reservation))
            good = await self._store(self._staging, places, depths)
            stored += good
            if good < len(places):
                refused, reason = refused + len(places) - good, "bytes do not have the digest they were announced with"
        chain = [BlockKey(block.key) for block in request.blocks]
        self._served.runner.ask(lambda node: node.ledger.renew(chain))
        metrics = self._served.metrics
        for result, amount in (("stored", stored), ("present", present), ("refused", refused)):
            metrics.published_blocks.labels(result).inc(amount)
        return PublishReply(stored, present, refused, reason, hint)

    def _hand_over(self, request: HandOverRequest) -> Reply:
        try:
            refuse_other_users(self._connection, peer=self._holder)
        except PeerGone as exc:
            raise LocalUseError(
                "memory is handed over to a process of the same user only", hint="start it as the user of this daemon"
            ) from exc
        if request.format != FORMAT:
            return HandOverReply(FORMAT, 0)
        blocks = self._served.runner.call(lambda node, now: (node.hand_over.begin(self._holder, now), ()))
        self._served.log.info("handing over", to=self._holder, blocks=blocks)
        return HandOverReply(FORMAT, blocks)

    def _handed(self, first: int, node: Node, now: float) -> tuple[Reply, tuple[Effect, ...]]:
        found, following = node.hand_over.blocks(self._holder, first, now)
        generations = self._served.tier.generations([one.held.slot for one in found])
        blocks = tuple(handed_view(one, number) for one, number in zip(found, generations, strict=True))
        return HandedReply(following, blocks), ()

    def _follow(self, node: Node, now: float) -> tuple[Effect, ...]:
        node.hand_over.follow(self._holder, now)
        return ()

    def _forget_hand_over(self, node: Node, _: float) -> tuple[Effect, ...]:
        node.hand_over.forget(self._holder)
        return ()

    async def _scrub(self, rate_bytes_s: int) -> Scrubbed:
        return await self._served.scrub(rate_bytes_s)

    def _reserve(self, namespace: bytes, block: StagedBlock) -> Reservation | None:
        info = BlockInfo(BlockKey(block.key), namespace, block.length, block.segment_bytes, block.digest)
        return self._served.runner.call(lambda node, now: (node.reserve(info, now), ()))

    async def _store(
        self,
        staging: StagingReader,
        places: list[tuple[StagedBlock, Reservation]],
        depths: Mapping[bytes, tuple[int, BlockKey | None]],
    ) -> int:
        """Copy, verify and commit; return how many were good. What is not good, or cancelled, is given back."""
        tier, runner = self._served.tier, self._served.runner
        views = [tier.begin(reservation.slot, block.length) for block, reservation in places]

        def copy_all() -> list[bool]:
            return [staging.copy_verified(block, view) for (block, _), view in zip(places, views, strict=True)]

        results = [False] * len(places)
        try:
            results = await trio.to_thread.run_sync(copy_all)  # not abandoned on cancel: the places are being written
        finally:
            for (_, reservation), good in zip(places, results, strict=True):
                tier.seal(reservation.slot)
                if good:
                    depth, parent = depths.get(reservation.info.key, (None, None))
                    runner.tell(partial(_committed, reservation, depth, parent))
                else:
                    runner.tell(partial(_aborted, reservation))
                    self._served.metrics.integrity_failures.labels("staging").inc()
        return sum(results)

    def _status(self, node: Node) -> StatusReply:
        served, figures = self._served, node.statistics()
        states: dict[str, int] = {}
        for record in node.membership.members():
            name = MemberState(record.state).name.lower()
            states[name] = states.get(name, 0) + 1
        ledger = figures.ledger
        return StatusReply(
            node=served.me.id,
            name=served.me.name,
            cluster=served.cluster,
            address=served.me.address,
            version=__version__,
            uptime_s=round(time.monotonic() - served.started_at, 3),
            protection=served.protection(),
            protected_by=served.protected_by(),
            members=states,
            seeds=dict(node.membership.seeds()),
            tier={
                "capacity_bytes": ledger.capacity_bytes,
                "used_bytes": ledger.used_bytes,
                "blocks": ledger.blocks,
                "pinned_blocks": ledger.pinned_blocks,
                "leases": ledger.leases,
                "evictions": ledger.evictions,
            },
            summary=asdict(node.summaries.statistics(trio.current_time())),
            directory=asdict(node.directory.statistics()),
            fetch={
                "fetches": figures.fetch.fetches,
                "in_flight": figures.fetch.in_flight,
                "shared_blocks": figures.fetch.shared_blocks,
                "shed_blocks": figures.fetch.shed_blocks,
                "shed_acquires": figures.shed_acquires,
                "admitted": figures.admitted_blocks,
                "passed": figures.passed_blocks,
                "hedges": figures.fetch.hedges,
                "hedges_denied": figures.fetch.hedges_denied,
                "cancelled": figures.fetch.cancelled,
                "renewals": figures.fetch.renewals,
                "lent_bytes": figures.lent_bytes,
                "lent_window_bytes": figures.lent_window_bytes,
                "leases_shed": figures.shed_leases,
                **{f"blocks_{outcome}": number for outcome, number in sorted(figures.fetch.outcomes.items())},
            },
            counters=served.metrics.snapshot(),
            boot=served.me.boot,
            state_dir=served.state_dir,
            duplicates=duplicate_views(node, trio.current_time()),
            sources=source_views(node, trio.current_time()),
            parts=parts_figures(node),
            disk=disk_view(figures.disk),
            object=object_view(figures.object),
        )

    # -- bytes ---------------------------------------------------------------------------------------------------

    async def _next_frame(self) -> bytes | None:
        while (payload := self._reader.next_frame()) is None:
            data, ancillary, _, _ = await self._connection.recvmsg(_READ_BYTES, socket.CMSG_SPACE(4))
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    self._take_descriptors(content)
            if not data:
                self._reader.finish()
                return None
            self._reader.feed(data)
        return payload

    def _take_descriptors(self, content: bytes) -> None:
        """Keep the one that may come with `Attach`; a client that sends more must not use ours up."""
        arrived = array("i")
        arrived.frombytes(content[: len(content) // arrived.itemsize * arrived.itemsize])
        self._descriptors += arrived
        keep = 0 if self._attached else 1
        for descriptor in self._descriptors[keep:]:
            os.close(descriptor)
        del self._descriptors[keep:]

    def _begin_to_send(self, reply: Reply) -> None:
        """Send what the socket takes of a reply now: the engine need not wait for the turn of this session's task.

        An error is left for `_send_rest` to find.
        """
        payload = encode(reply)
        self._unsent = memoryview(len(payload).to_bytes(LENGTH_BYTES, "little") + payload)
        with contextlib.suppress(OSError):
            self._unsent = self._unsent[os.write(self._connection.fileno(), self._unsent) :]

    async def _welcome(self, welcome: Welcome) -> None:
        """Send what comes with the arena's descriptor."""
        payload = encode(welcome)
        data = memoryview(len(payload).to_bytes(LENGTH_BYTES, "little") + payload)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [self._served.tier.fd]))]
        self._unsent = data[await self._connection.sendmsg([data], rights) :]

    async def _send_rest(self) -> None:
        while self._unsent:
            self._unsent = self._unsent[await self._connection.send(self._unsent) :]


def _depths(request: PublishRequest) -> dict[bytes, tuple[int, BlockKey | None]]:
    """Return depth and parent of each block, if the request says that they are a chain."""
    if request.first_depth < 0:
        return {}
    keys = [BlockKey(block.key) for block in request.blocks]
    parents = [BlockKey(request.parent) if request.parent else None, *keys]
    return {key: (request.first_depth + i, parents[i]) for i, key in enumerate(keys)}


def _committed(
    reservation: Reservation, depth: int | None, parent: BlockKey | None, node: Node, now: float
) -> tuple[Effect, ...]:
    node.commit(reservation, now, depth, parent)
    return ()


def _cancelled(number: int, node: Node, now: float) -> tuple[Effect, ...]:
    return node.cancel(number, now)


def _aborted(reservation: Reservation, node: Node, _: float) -> tuple[Effect, ...]:
    node.ledger.abort(reservation)
    return ()


def _cost(block_bytes: int, prefill_block_us: int) -> Cost | None:
    return Cost(block_bytes, prefill_block_us / 1e6) if block_bytes and prefill_block_us else None


def _chain(keys: bytes, client: str) -> tuple[BlockKey, ...]:
    if len(keys) % KEY_BYTES:
        raise MalformedMessage(f"keys of {len(keys)} bytes", peer=client)
    return split_keys(keys)


def _ring_reply(node: Node, ring: Ring) -> RingReply:
    records = {record.id: record for record in node.membership.members()}
    owners = min(max(1, node.config.directory.owners), ring.owners_max)
    shares, kept = ring.shares(), ring.shares(owners)
    members = [
        RingShare(
            id=member,
            name=records[member].name,
            zone=records[member].zone,
            host_id=records[member].host_id,
            offered_bytes=records[member].offered_bytes,
            due=ring.due(member),
            share=shares[member],
            kept=kept[member],
            self=member == node.id,
        )
        for member in ring.members
        if member in records
    ]
    members.sort(key=lambda one: (-one.share, one.name, one.id))
    return RingReply(tuple(members), owners, BOUND, SLOTS, ring.fingerprint().hex())
