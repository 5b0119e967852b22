"""One node: its core, its memory, its sockets, wired together in one nursery. Constructs; decides nothing."""

import contextlib
import hashlib
import secrets
import socket
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import trio

from p2pkv.blocks import split_keys
from p2pkv.checkup import checks
from p2pkv.config import Config, format_address, parse_address
from p2pkv.direct_asks import DirectAsks
from p2pkv.discovery.base import Found
from p2pkv.discovery.shell import Discovery, check_entries, resolvers
from p2pkv.disk_moves import DiskStatistics
from p2pkv.disk_tier import DiskTier
from p2pkv.echoes import Echoes
from p2pkv.errors import CannotListen, ConfigError, FabricError, MalformedMessage, PeerError, SealRefused
from p2pkv.fabric import fabric_end
from p2pkv.generations import Place
from p2pkv.guard import Guard, own_certificate, refuse_exposed
from p2pkv.host_condition import condition
from p2pkv.identity import Identity
from p2pkv.layouts import Grid
from p2pkv.ledger import Held
from p2pkv.load import LoadGauge
from p2pkv.local_server import LocalServer, Served
from p2pkv.local_socket import LocalSocket
from p2pkv.local_wire import CheckView, ConditionReply
from p2pkv.logs import logger
from p2pkv.mesh.members import MemberState
from p2pkv.mesh.metadata import weights_texts
from p2pkv.mesh.sources import scheme_of
from p2pkv.metrics import Metrics
from p2pkv.neighbourhood import Neighbourhood
from p2pkv.node import Node
from p2pkv.object_moves import ObjectStatistics
from p2pkv.object_tier import ObjectTier
from p2pkv.own_certificate import OwnCertificate
from p2pkv.part_transfer import PartTransfers
from p2pkv.paths import Paths
from p2pkv.probes import PROBE_LEASE, ProbeBlocks
from p2pkv.protection import Protection
from p2pkv.runner import Runner
from p2pkv.take_over import Inherited, host_tier
from p2pkv.tiers.host import HostTier
from p2pkv.transfer import Transfers
from p2pkv.transport.arena import PeerArena
from p2pkv.transport.base import Bodies, Offered
from p2pkv.transport.choices import Choice
from p2pkv.transport.choose import ChosenTransport
from p2pkv.transport.direct import answer_direct
from p2pkv.transport.fabric_end import FabricEnd
from p2pkv.transport.fabric_serve import refuse_fabric, serve_fabric
from p2pkv.transport.fabrics import PROTECTED_BY, fabrics_of
from p2pkv.transport.nixl_pull import NixlTransport
from p2pkv.transport.sealed_stream import Channel
from p2pkv.transport.shm import ShmTransport, socket_name
from p2pkv.transport.streams import ControlStreams
from p2pkv.transport.tcp import TcpTransport, serve_bulk
from p2pkv.transport.tls import TlsStream
from p2pkv.transport.udp import Datagrams, bind_both, numeric_target
from p2pkv.transport.widths import Widths
from p2pkv.transport.wire import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    FabricOffer,
    Hello,
    LeaseRelease,
    LeaseRequest,
    MemberRecord,
    PullParts,
)

CONTROL: Final = 0
BULK: Final = 1
_BULK_IDLE_S: Final = 300.0
_INCOMING_MAX: Final = 4096
"""Streams of other nodes at a time; a further one is closed at once."""
_DIRECT_WAIT_S: Final = 0.5
"""How long a question on a bulk stream waits for the disk."""
_GAUGES_S: Final = 1.0
_LET_GO_S: Final = 5.0
_DRAIN_LOOK_S: Final = 0.02
_DUPLICATE_FRESH_S: Final = 600.0
"""How long the metric counts another process with our id after it was last heard of; it is told ten times as often."""


class Agent:
    """A node, ready to run. All that can fail for a reason of the configuration fails here, before anything runs."""

    def __init__(self, config: Config, inherited: Inherited | None = None) -> None:
        """Bind the sockets and take the memory, or the one that has blocks of the daemon before.

        Raises:
            ConfigError: an address is wrong, or a bind needs `insecure`.
            CannotListen: a port or socket is taken.
            FabricError: there is not enough memory, or no NIXL where that is asked for.
            LocalUseError: the folder of `node.state_dir` is damaged, or another daemon's. In all cases nothing stays
                bound or held.
        """
        self._protection, certificate = check_settings(config)
        self.config: Final = config
        host, port = parse_address(config.node.bind, what="node.bind")
        with contextlib.ExitStack() as made:
            self.local: Final = LocalSocket(config.node.socket)
            made.callback(self.local.close)
            udp, self._tcp = bind_both(host, port)
            made.callback(self._tcp.close)
            self._datagrams = Datagrams(udp)
            made.callback(self._datagrams.close)
            self.identity: Final = Identity.of(
                config.node.state_dir, port=port, node_id=certificate.node if certificate is not None else ""
            )
            made.callback(self.identity.close)
            self.me: Final = _own_record(config, self._tcp, self.identity)
            made_resolvers = resolvers(config.node, self.me)
            self.tier: Final = inherited.tier if inherited is not None else host_tier(config)
            made.callback(self.tier.close)
            self.tier.fill()
            self._disk = DiskTier(config.disk, host=self.tier)
            made.callback(self._disk.close)
            self._objects = ObjectTier(config.object, host=self.tier)
            made.pop_all()
        self._discovery = Discovery(made_resolvers, found=self._seeds_found, failed=self._lookup_failed)
        self.metrics: Final = Metrics()
        self.log: Final = logger(config.log).bind(node=self.me.name)
        node = Node(
            config,
            self.me,
            Random(secrets.randbits(64)),
            ring=self._protection.ring,
            generations=self.tier.generations if config.fetch.shared_memory else None,
        )
        if inherited is not None:
            node.inherit(inherited.blocks)
            self._tell_inherited(inherited)
        timeout_s = config.fetch.connect_timeout_s
        self._guard = Guard(
            config,
            node_id=self.me.id,
            protection=self._protection,
            certificate=certificate,
            hello=lambda: self._hello(CONTROL),
        )
        self._streams = ControlStreams(
            hello=lambda: self._hello(CONTROL),
            connect_timeout_s=timeout_s,
            on_lost=self._link_lost,
            on_overdue=self.metrics.overdue.labels("message").inc,
            ring=self._protection.rings,
            certified=self._guard.certified,
        )
        shm = self._shm = ShmTransport(
            hello=lambda: self._hello(BULK),
            connect_timeout_s=timeout_s,
            keys=self._guard.keys,
            control_address=self._control_address,
        )
        tcp = self._bulk_tcp = TcpTransport(
            hello=lambda: self._hello(BULK),
            connect_timeout_s=timeout_s,
            keys=self._guard.keys,
            widths=Widths(config.transport.tcp_connections),
        )
        self.fabric: Final = self._on_fabric() if "nixl" in config.transport.prefer else None
        self._nixl = nixl = (
            NixlTransport(
                self.fabric, hello=lambda: self._hello(BULK), connect_timeout_s=timeout_s, keys=self._guard.keys
            )
            if self.fabric is not None
            else None
        )
        self._bulk = ChosenTransport(
            shm=shm, tcp=tcp, nixl=nixl, cluster=config.node.cluster, prefer=config.transport.prefer
        )
        self.runner: Final = Runner(
            node,
            datagrams=self._datagrams,
            streams=self._streams,
            metrics=self.metrics,
            log=self.log,
            seal=self._protection.datagrams(node_id=self.me.id, boot=self.me.boot),
        )
        self._disk.attach(self.runner, self.metrics, self.log)
        self._objects.attach(self.runner, self.metrics, self.log)
        self._probes = ProbeBlocks(self.runner, self.tier)
        self._loopback: Final = _is_loopback(host)
        self._load = LoadGauge(capacity_bytes_s=config.fetch.assumed_bandwidth_bytes_s)
        self._neighbourhood = self._with_neighbours(shm) if config.fetch.shared_memory else None
        self._leaving = trio.Event()
        self._drain_s = 0.0
        self._server = LocalServer(
            Served(
                runner=self.runner,
                tier=self.tier,
                metrics=self.metrics,
                log=self.log,
                me=self.me,
                cluster=config.node.cluster,
                path=self._bulk.path,
                protection=lambda: self._protection.text(loopback=_is_loopback(host)),
                protected_by=self._protected_by,
                keys=lambda request: self._protection.carry_out(self.runner, request),
                paths=Paths(
                    self.runner,
                    me=self.me,
                    bound=config.node.bind,
                    echoes=Echoes(self.runner, me=self.me, cluster=config.node.cluster),
                    transport=self._bulk,
                    probes=self._probes,
                    protection=self._protection_of,
                    skew_s=lambda node: self._guard.skews_s().get(node),
                ),
                condition=self._condition,
                started_at=time.monotonic(),
                leave=self.leave,
                promoted=self._disk.promoted,
                scrub=self._disk.scrub,
                state_dir=str(self.identity.folder or ""),
            )
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled or told to leave; say goodbye either way, then give everything back."""
        transfers = Transfers(
            runner=self.runner, tier=self.tier, transport=self._bulk, metrics=self.metrics, log=self.log
        )
        direct = DirectAsks(
            runner=self.runner,
            transfers=transfers,
            transport=self._bulk,
            tcp=self._bulk_tcp,
            streams=self._streams,
            metrics=self.metrics,
            log=self.log,
        )
        parts = PartTransfers(
            runner=self.runner,
            tier=self.tier,
            connect=self._bulk_tcp.open_stream,
            arena_of=self._arena_of,
            metrics=self.metrics,
            log=self.log,
        )
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._streams.run)
                self._protection.attach(self.runner, nursery)
                await nursery.start(self._discovery.run)
                self.runner.on_resolve = self._discovery.start
                parts.attach(nursery)
                direct.attach(nursery, asks=self.fabric is None)  # on a fabric even few bytes go over that
                if self._neighbourhood is not None:
                    await nursery.start(self._neighbourhood.run)
                nursery.start_soon(self.runner.run)
                nursery.start_soon(self._accept)
                nursery.start_soon(self._server.run, self.local.socket)
                nursery.start_soon(self._disk.run)
                nursery.start_soon(self._objects.run)
                nursery.start_soon(self._show_gauges)
                nursery.start_soon(self._let_go, parts)
                nursery.start_soon(partial(self._guard.run, log=self.log, metrics=self.metrics))
                task_status.started()
                try:
                    await self._leaving.wait()
                finally:
                    self.runner.tell(lambda node, now: node.leave(now))
                with trio.move_on_after(self._drain_s):
                    while self.runner.ask(Node.is_read):  # noqa: ASYNC110 - no core says so
                        await trio.sleep(_DRAIN_LOOK_S)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await parts.aclose()
                await self._bulk.aclose()
            self.close()

    def _tell_inherited(self, inherited: Inherited) -> None:
        for result, count in inherited.counts.items():
            self.metrics.taken_over_blocks.labels(result).inc(count)
        log = self.log.info if inherited.counts["ok"] or not inherited.problem else self.log.warning
        reason = {"reason": inherited.problem} if inherited.problem else {}
        log("took over from the daemon before", **inherited.counts, took_s=round(inherited.took_s, 3), **reason)

    def _on_fabric(self) -> FabricEnd:
        """Return this node's end of the fabric.

        Raises:
            FabricError: the library is not there, or does not take the memory. Nothing stays bound or held.
        """
        try:
            return fabric_end(self.me, self.tier, self.config.transport)
        except FabricError:
            self.local.close()
            self._tcp.close()
            self._datagrams.close()
            self._objects.close()
            self._disk.close()
            self.tier.close()
            self.identity.close()
            raise

    def _with_neighbours(self, shm: ShmTransport) -> Neighbourhood | None:
        try:
            return Neighbourhood(
                runner=self.runner,
                tier=self.tier,
                shm=shm,
                open_places=self._open_places,
                cluster=self.config.node.cluster,
                me=self.me,
                welcome=self._guard.welcome_neighbour,
                metrics=self.metrics,
                log=self.log,
            )
        except CannotListen as exc:  # a double of this node has the name; all comes over TCP then
            self.log.warning("no shared memory on this machine", reason=str(exc))
            return None

    def _protected_by(self) -> dict[str, str]:
        """Return what protects what goes between nodes, with a line for each fabric that this node is on."""
        by = self._guard.protected_by(loopback=self._loopback)
        on = fabrics_of(self.fabric.facts) if self.fabric is not None else ()
        return by | {f"fabric {fabric}": PROTECTED_BY[fabric] for fabric in on}

    def _protection_of(self, choice: Choice) -> str:
        """Return what protects blocks on their way."""
        names = {"tcp": "blocks over TCP", "shm": "shared memory", "nixl": f"fabric {choice.fabric}"}
        return self._protected_by()[names[choice.transport]]

    def _condition(self) -> ConditionReply:
        names = {record.id: record.name for record in self.runner.ask(lambda node: node.membership.members())}
        found = condition(
            self.config,
            arena_huge_bytes=self.tier.huge_bytes,
            fabric=self.fabric,
            loopback=self._loopback,
            keyring=self._protection.ring is not None,
            certificate_left_s=self._guard.certificate_left_s(),
            skews_s=tuple((names.get(node, node), skew) for node, skew in self._guard.skews_s().items()),
            object_problem=self.runner.ask(lambda node: node.objects.statistics().reason),
        )
        return ConditionReply(tuple(CheckView(one.name, one.state, one.text, one.hint) for one in checks(found)))

    def leave(self, drain_s: float = 0.0) -> None:
        """Have `run` say goodbye and return, once what is leased has been released or after `drain_s`."""
        self._drain_s = drain_s
        self._leaving.set()

    def close(self) -> None:
        """Give sockets and memory back; `run` does it itself."""
        if self._neighbourhood is not None:
            self._neighbourhood.close()
        self.local.close()
        self._tcp.close()
        self._datagrams.close()
        if self.fabric is not None:  # before its memory goes: what is read after that ends the reader's peer, this one
            self.fabric.close()
        self._objects.close()
        self._disk.close()
        self.tier.close()
        self.identity.close()

    def _link_lost(self, address: str, error: PeerError) -> None:
        self.runner.link_lost(address, error)  # the runner is made after the streams that report to it

    def _seeds_found(self, source: str, found: Found) -> None:
        self.runner.tell(lambda node, now: node.on_resolved(source, found.addresses, now, complaint=found.complaint))

    def _lookup_failed(self, source: str, reason: str) -> None:
        self.metrics.lookup_failures.labels(scheme_of(source)).inc()
        self.runner.tell(lambda node, now: node.on_resolve_failed(source, reason, now))

    def _control_address(self, peer: str) -> str:
        record = self.runner.ask(lambda node: node.membership.member(peer))
        return record.address if record is not None else ""

    def _hello(self, purpose: int) -> Hello:
        return Hello(self.config.node.cluster, self.me.id, self.me.address, purpose, bulk=self._protection.bulk_bits)

    async def _accept(self) -> None:
        self._tcp.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._tcp))
        limit = trio.CapacityLimiter(_INCOMING_MAX)

        async def serve(stream: trio.SocketStream) -> None:
            try:
                limit.acquire_on_behalf_of_nowait(stream)
            except trio.WouldBlock:
                self.log.warning("stream refused", reason=f"{_INCOMING_MAX} are open")
                await trio.aclose_forcefully(stream)
                return
            try:
                await self._serve_stream(stream)
            finally:
                limit.release_on_behalf_of(stream)
                await trio.aclose_forcefully(stream)

        await trio.serve_listeners(serve, [listener])

    async def _serve_stream(self, stream: trio.SocketStream) -> None:
        """Serve one caller; whatever it does ends here, in the log."""
        peer = "unknown"
        try:
            peer = format_address(*stream.socket.getpeername()[:2])
            with trio.fail_after(self.config.fetch.connect_timeout_s):
                hello, channel = await self._guard.welcome(stream, peer=peer)
            if hello.purpose == BULK and not isinstance(channel, TlsStream):
                await serve_bulk(
                    channel,
                    peer=hello.node,
                    open_lease=self._open_lease,
                    idle_s=_BULK_IDLE_S,
                    block_s=self.config.fetch.lease_s,
                    open_part=self._open_part,
                    on_sent=partial(self._sent, TcpTransport.name),
                    on_overdue=self.metrics.overdue.labels("blocks").inc,
                    on_fabric=partial(self._serve_fabric, channel, hello.node),
                    on_request=partial(self._answer_direct, hello.node),
                )
            else:
                await self._guard.serve_control(channel, peer=hello.node, deliver=self.runner.deliver)
        except SealRefused as exc:
            self.runner.seal_refused("stream", exc)
        except PeerError as exc:
            if isinstance(exc, MalformedMessage):
                self.metrics.malformed.labels("stream").inc()
            self.log.warning("caller refused", address=peer, reason=str(exc))
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            self.log.info("caller lost", address=peer, reason=type(exc).__name__)

    async def _serve_fabric(self, channel: Channel, peer: str, offer: FabricOffer) -> None:
        if self.fabric is None:
            await refuse_fabric(channel, "nixl is not in transport.prefer here")
            return
        await serve_fabric(
            channel,
            offer,
            peer=peer,
            end=self.fabric,
            open_lease=self._open_lease,
            open_places=self._open_places,
            idle_s=_BULK_IDLE_S,
            block_s=self.config.fetch.lease_s,
            on_sent=partial(self._sent, NixlTransport.name),
            on_overdue=self.metrics.overdue.labels("blocks").inc,
        )

    async def _answer_direct(self, peer: str, stream: trio.SocketStream, request: LeaseRequest) -> bool:
        """Answer a question on the stream that it came on, with its blocks if they are few, and end their lease then."""
        await self._disk.promoted(split_keys(request.keys), min(request.remaining_ms / 1000, _DIRECT_WAIT_S))
        grant = self.runner.call(lambda node, now: (node.grant(peer, request, now, on_bulk_stream=True), ()))
        if grant is None:
            return False
        bodies = self._open_lease(peer, grant.lease) if grant.direct else None
        try:
            await answer_direct(stream, grant, bodies or ())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        finally:
            if grant.direct:
                self.runner.tell(lambda node, now: node.on_message(peer, LeaseRelease(grant.lease), now))
        if grant.direct:
            self._sent(TcpTransport.name, sum(grant.lengths))
        return True

    def _sent(self, transport: str, count: int) -> None:
        self.metrics.transfer_bytes.labels("sent", transport).inc(count)
        self._load.sent(count)

    def _open_places(self, peer: str, lease_id: int) -> list[Place] | None:
        if lease_id == PROBE_LEASE:
            return self._probes.places(trio.current_time())
        lease = self.runner.ask(lambda node: node.find_lease(lease_id, peer))
        if lease is None:
            return None
        slots = [held.slot for held in lease.blocks]
        generations = self.tier.generations(slots)
        return [Place(slot.offset, one) for slot, one in zip(slots, generations, strict=True)]

    def _open_lease(self, peer: str, lease_id: int) -> Bodies | None:
        if lease_id == PROBE_LEASE:
            return self._probes.offered(trio.current_time())
        lease = self.runner.ask(lambda node: node.find_lease(lease_id, peer))
        return _Bodies(lease.blocks, self.tier) if lease is not None else None

    def _open_part(self, peer: str, ask: PullParts, position: int) -> tuple[memoryview, Grid] | None:
        found = self.runner.ask(lambda node: node.parts.readable(peer, ask, position))
        return (self.tier.read(found[0], found[1].block_bytes), found[1]) if found is not None else None

    async def _arena_of(self, peer: str) -> PeerArena | None:
        """Return the arena of a peer on this machine, if it is mapped."""
        if not self._shm.is_open(peer):
            return None
        with contextlib.suppress(PeerError):
            return await self._shm.open(peer, socket_name(self.config.node.cluster, peer))
        return None

    async def _let_go(self, parts: PartTransfers) -> None:
        """Give up connections to peers that are gone: no event says so of those that nobody uses."""
        while True:
            await trio.sleep(_LET_GO_S)
            self._bulk_tcp.let_go_of_closed()
            if self._nixl is not None:
                await self._nixl.let_go_of_closed()
            parts.let_go_of_closed()

    async def _show_gauges(self) -> None:
        evicted = lost = 0
        skipped, unrecalled = Counter[str](), Counter[str]()
        while True:
            statistics = self.runner.ask(lambda node: node.statistics())
            figures, disk = statistics.ledger, statistics.disk.ledger
            self.metrics.disk_serving.set(disk is not None)
            reasons, others = _skipped(statistics.disk), _not_recalled(statistics.object)
            for reason, count in (reasons - skipped).items():
                self.metrics.disk_skipped.labels(reason).inc(count)
            for reason, count in (others - unrecalled).items():
                self.metrics.object_skipped.labels(reason).inc(count)
            skipped, unrecalled = reasons, others
            if disk is not None:
                self.metrics.tier_bytes.labels("disk").set(disk.used_bytes)
                self.metrics.tier_capacity_bytes.labels("disk").set(disk.capacity_bytes)
                self.metrics.tier_blocks.labels("disk").set(disk.blocks)
            self.metrics.tier_bytes.labels("host").set(figures.used_bytes)
            self.metrics.tier_capacity_bytes.labels("host").set(figures.capacity_bytes)
            self.metrics.tier_blocks.labels("host").set(figures.blocks)
            self.metrics.evictions.labels("host").inc(figures.evictions - evicted)
            evicted = figures.evictions
            load = self._load.percent(trio.current_time())
            offered = {"host": figures.capacity_bytes}
            if disk is not None:
                offered["disk"] = disk.capacity_bytes
            self.runner.tell(partial(Node.update_self, offered=offered, load=load))
            now = trio.current_time()
            self._probes.give_back(now)
            twins = self.runner.ask(lambda node: node.membership.duplicates())
            for use, count in zip(("busy", "idle"), self._bulk_tcp.open_connections(), strict=True):
                self.metrics.bulk_connections.labels(use).set(count)
            self.metrics.bulk_connections_lost.inc(self._bulk_tcp.connections_lost - lost)
            lost = self._bulk_tcp.connections_lost
            self.metrics.duplicate_ids.set(sum(now - twin.heard_at < _DUPLICATE_FRESH_S for twin in twins))
            states = [record.state for record in self.runner.ask(lambda node: node.membership.members())]
            for state in MemberState:
                self.metrics.members.labels(state.name.lower()).set(states.count(state))
            await trio.sleep(_GAUGES_S)


class _Bodies:
    """The blocks of a lease as a sequence that looks each up when it is sent, for leases are opened once per block."""

    def __init__(self, blocks: Sequence[Held], tier: HostTier) -> None:
        self._blocks = blocks
        self._tier = tier

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, position: int) -> Offered:
        held = self._blocks[position]
        body = self._tier.read(held.slot, held.info.length)
        return Offered(body, held.info.segment_bytes, held.info.digest)


def check_settings(config: Config) -> tuple[Protection, OwnCertificate | None]:
    """Find what is wrong with settings, as far as nothing has to be bound or held for that; return what was read for it.

    Raises:
        ConfigError: something is.
    """
    host, _ = parse_address(config.node.bind, what="node.bind")
    check_entries(config.node.join)
    _weights(config)
    protection, certificate = Protection(config.security), own_certificate(config)
    refuse_exposed(config, loopback=_is_loopback(host), keyring=protection.ring is not None, certificate=certificate)
    return protection, certificate


def _skipped(disk: DiskStatistics) -> Counter[str]:
    demotions, promotions = disk.demotions, disk.promotions
    return Counter(lost=demotions.lost, cheaper_to_compute=demotions.cheap, given_up=promotions.given_up)


def _not_recalled(objects: ObjectStatistics) -> Counter[str]:
    writes, reads = objects.writes, objects.reads
    return Counter(
        lost=writes.lost,
        cheaper_to_compute=writes.cheap,
        not_worth_asking=objects.not_worth_asking,
        unknown_length=objects.unknown_lengths,
        shed=reads.shed,
    )


def _is_loopback(host: str) -> bool:
    target = numeric_target(format_address(host, 1))
    return host == "localhost" or (target is not None and (target[0].startswith("127.") or target[0] == "::1"))


def _own_record(config: Config, listener: socket.socket, identity: Identity) -> MemberRecord:
    """Return what this node says of itself at start."""
    host, port = listener.getsockname()[:2]
    address = format_address(host, port)
    if config.node.advertise:
        name, advertised_port = parse_address(config.node.advertise, what="node.advertise")
        try:
            numeric = socket.getaddrinfo(name, advertised_port, type=socket.SOCK_DGRAM)[0][4]
        except OSError as exc:
            raise ConfigError(f"node.advertise is {config.node.advertise!r} ({exc})", hint="give an address") from exc
        address = format_address(str(numeric[0]), advertised_port or port)
    for further in config.node.also_at:
        parse_address(further, what="node.also_at")
    return MemberRecord(
        id=identity.id,
        boot=identity.boot,
        incarnation=0,
        state=MemberState.ALIVE,
        name=config.node.name or f"{socket.gethostname()[:48]}:{port}",
        address=address,
        host_id=_host_id(),
        zone=config.node.zone,
        offered_bytes=config.host.capacity_bytes,
        rack=config.node.rack,
        also_at=config.node.also_at,
        protocol_min=PROTOCOL_MIN,
        protocol_max=PROTOCOL_MAX,
        weights=weights_texts(_weights(config)),
    )


def _weights(config: Config) -> dict[str, str]:
    pairs = [text.partition("=") for text in config.node.weights]
    if not all(weights_id and epoch for weights_id, _, epoch in pairs):
        raise ConfigError(
            f"node.weights is {list(config.node.weights)!r}, must be weights_id=weights_epoch",
            hint="for example llama-3-8b@main=0",
        )
    return {weights_id: epoch for weights_id, _, epoch in pairs}


def _host_id() -> str:
    """Return what is equal on two nodes of one running machine, or nothing: a digest of the kernel's boot id.

    48 bits, for it is in every record: two of 1,000 machines share one with a chance of 2 in a billion.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return ""
    return hashlib.blake2b(boot_id, digest_size=6, person=b"p2pkv.host").hexdigest()
