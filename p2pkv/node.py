"""One node's mind, sans-IO: membership, summaries, books, links and fetches, composed into one core.

The agent and the simulator drive only this, by the same verbs, so that nothing that decides is written twice. What
one core has to say to another is routed here and nowhere else. Verbs run to completion without waiting and return what
the outside shall do; peer input never raises out of `on_message`.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from random import Random
from typing import Final, TypeAlias

import msgspec

from p2pkv.acquires import FROM_DISK, FROM_OBJECT, Acquired, Acquires, AskDirectory, Reused
from p2pkv.admission import Admission
from p2pkv.announced import Announced
from p2pkv.assemblies import CloseSlot, OpenSlot, PartsArrived
from p2pkv.blocks import BlockInfo, BlockKey, split_keys
from p2pkv.config import Config
from p2pkv.costs import SATURATED_PERCENT, TIERS, Prices
from p2pkv.demotions import WriteToDisk
from p2pkv.disk_moves import CloseDisk, DiskMoves, DiskStatistics
from p2pkv.effects import MemberChanged, Note, Resolve, SendDatagram, SendStream
from p2pkv.errors import TierFull
from p2pkv.eviction import make_policy
from p2pkv.fetch import FetchEnded, Outcome, StartTransfer, StopTransfer
from p2pkv.fetches import Fetches, FetchStatistics
from p2pkv.grants import Grants, nothing_granted
from p2pkv.hand_over import HandOver
from p2pkv.index.anchors import anchor_of
from p2pkv.index.directory import Directory
from p2pkv.index.exchange import Summaries
from p2pkv.index.inquiry import Claim, Heard
from p2pkv.ledger import Held, Lease, Ledger, LedgerStatistics, Place, Reservation
from p2pkv.links import Links
from p2pkv.mesh.members import MemberState
from p2pkv.mesh.membership import Membership
from p2pkv.mesh.metadata import offered_by_tier, speaks_with_us
from p2pkv.mesh.ring import Ring
from p2pkv.mesh.ring_view import RingView
from p2pkv.nearness import Nearness, nearness
from p2pkv.neighbours import MapArena, Neighbours
from p2pkv.object_moves import ObjectMoves, ObjectStatistics
from p2pkv.own_keyring import StoreKeyring
from p2pkv.part_pulls import StartPull, StopPull
from p2pkv.parts import Parts
from p2pkv.pins import HOLDER as PINS
from p2pkv.pins import Pinned, Pins
from p2pkv.planner import Cost
from p2pkv.plans import PLANS_MAX, Decision, Plans
from p2pkv.promotions import Promoted, ReadFromDisk
from p2pkv.rotation import Rotation, RoundEnded
from p2pkv.run_reads import GetRun, Recalled
from p2pkv.run_writes import PutRun
from p2pkv.scores import Scores, Seat
from p2pkv.slots import Slot, blocks_max
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.wire import (
    AnyMessage,
    DirectoryAnswer,
    DirectoryAsk,
    DirectoryPut,
    DirectoryResend,
    KeyCommand,
    KeyReport,
    LeaseGrant,
    LeaseRelease,
    LeaseRenew,
    LeaseRequest,
    ListDifference,
    ListDigest,
    MemberRecord,
    Packet,
    Ping,
    PushAnswer,
    PushCancel,
    PushCredit,
    PushDigests,
    PushDone,
    PushOffer,
    PushPull,
    PushReady,
    SummaryDelta,
    SummaryPage,
    SummaryRequest,
    SummaryVersions,
)

_LOAD_FRESH_S: Final = 60.0
"""What a peer said of its load longer ago is not counted on."""
_REVIEWED_AT_ONCE: Final = 64
"""Blocks of the daemon before that are announced in one go."""
_PROMISED_MAX: Final = 1024
"""Questions of peers that wait for the disk at a time; a further one is answered with what is in memory."""
_BLOCK_BYTES_EXPECTED: Final = 256 * 1024
"""Size of block that the summary is laid out for when nothing else is said; smaller blocks fill it sooner."""


@dataclass(frozen=True, slots=True)
class Match:
    """How much of a chain can be had, as far as this node knows."""

    local: int
    """Blocks of the prefix that are here: certain."""
    reachable: int
    """Blocks of the prefix that are here or that some peer claims: a Bloom filter's word, not a promise."""
    holders: tuple[tuple[MemberRecord, int], ...]
    """Peers and how many blocks of the chain's head each claims, deepest first."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where one key is, as far as this node knows."""

    held: Held | None
    claimed_by: tuple[MemberRecord, ...]
    owners: tuple[MemberRecord, ...]
    """Members that the ring makes responsible for the key."""


@dataclass(frozen=True, slots=True)
class Located:
    """The owners of a key's stretch have been asked where it is; what they say is hearsay like a summary's claim."""

    locate: int
    anchor: bytes
    place: int
    """Of the key in its stretch; a holder has it if it has more blocks than that."""
    claims: tuple[Claim, ...]
    asked: tuple[str, ...]
    silent: tuple[str, ...]
    """Of those asked, who did not answer in time."""


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """Figures of all cores."""

    ledger: LedgerStatistics
    fetch: FetchStatistics
    unknown_senders: int
    refused_leases: int
    shed_leases: int
    """Lease requests refused because too much was leased already."""
    shed_acquires: int
    admitted_blocks: int
    """Fetched ones that stayed."""
    passed_blocks: int
    """And those that did not."""
    lent_bytes: int
    """Leased to peers now."""
    lent_window_bytes: int
    """And how much may be."""
    disk: DiskStatistics
    object: ObjectStatistics


Effect: TypeAlias = (
    SendDatagram
    | SendStream
    | Resolve
    | MemberChanged
    | Note
    | StartTransfer
    | StopTransfer
    | Acquired
    | Located
    | MapArena
    | StoreKeyring
    | RoundEnded
    | OpenSlot
    | CloseSlot
    | PartsArrived
    | StartPull
    | StopPull
    | ReadFromDisk
    | WriteToDisk
    | CloseDisk
    | Promoted
    | PutRun
    | GetRun
)
"""What comes out of a node."""


class Node:
    """The composed core. `me` is this node's own record, with its real address in it."""

    def __init__(
        self,
        config: Config,
        me: MemberRecord,
        random: Random,
        *,
        ring: KeyRing | None = None,
        generations: Callable[[Sequence[Slot]], list[int]] | None = None,
    ) -> None:
        """Begin alone and empty.

        `generations` reads the generation of each slot of the arena; without it peers on this machine are not told
        where blocks lie, and are sent them.
        """
        self.config: Final = config
        self.id: Final = me.id
        self._me = me
        self.ledger: Final = Ledger(
            capacity_bytes=config.host.capacity_bytes,
            chunk_bytes=config.host.chunk_bytes,
            leases_max=config.fetch.leases_max,
            policy=make_policy(
                config.policy.eviction,
                capacity=partial(blocks_max, config.host.capacity_bytes, config.host.chunk_bytes),
                ttl_s=config.policy.idle_s or inf,
            ),
        )
        self._pins = Pins(self.ledger, share_max=config.policy.pinned_share_max)
        self.membership: Final = Membership(
            me=me, cluster=config.node.cluster, config=config.mesh, join=config.node.join, random=random
        )
        tier_bytes = config.host.capacity_bytes + (config.disk.capacity_bytes if config.disk.path else 0)
        blocks_expected = config.summary.blocks_expected or max(1, tier_bytes // _BLOCK_BYTES_EXPECTED)
        self.summaries: Final = Summaries(
            node_id=me.id,
            epoch=me.boot,
            config=config.summary,
            blocks_expected=blocks_expected,
            zone=me.zone,
            host_id=me.host_id,
        )
        self.directory: Final = Directory(node_id=me.id, boot=me.boot, config=config.directory)
        self._announced: Final = Announced(self.summaries, self.directory)
        self.disk: Final = DiskMoves(
            config.disk,
            host=self.ledger,
            reserve=self.reserve,
            arrived=partial(self._commit_promoted, FROM_DISK),
            worth=self._is_worth_writing,
        )
        self.hand_over: Final = HandOver(self.ledger, self._announced.place)
        self._inherited: deque[tuple[BlockKey, Place]] = deque()
        """Of the daemon before, what is here and not announced yet, nor looked for on the disk."""
        self._promised: dict[int, tuple[str, LeaseRequest, float]] = {}
        """Peers whose answer waits for the disk, by promotion: what they asked, and when."""
        self._near: dict[str, Nearness] = {}  # of the usable members
        self._usables: dict[str, MemberRecord] = {}
        self.links: Final = Links(
            assumed_bandwidth_bytes_s=config.fetch.assumed_bandwidth_bytes_s,
            cooldown_s=config.fetch.cooldown_s,
            nearness=self._nearness,
        )
        self.rotation: Final = Rotation(
            own_id=me.id, ring=ring, members=self.membership.members, first_request=me.boot * 1024 % 2**52
        )
        self._neighbours = Neighbours(own_id=me.id, host_id=me.host_id if generations is not None else "")
        self._fetches = Fetches(
            config=config.fetch,
            links=self.links,
            mapped=self._neighbours.is_mapped,
            saturated=lambda peer, now: self._load_of(peer, now) >= SATURATED_PERCENT,
        )
        self._admission = Admission(config.host.admit_fetched)
        self._grants = Grants(config=config.fetch, ledger=self.ledger, generations=generations)
        prices = Prices(
            links=self.links,
            record=self._usable,
            nearness=self._nearness,
            load=self._load_of,
            queued=self._fetches.queued_bytes,
            trusted=self.summaries.is_trusted,
        )
        self._plans = Plans(prices)
        self._scores = Scores(prices, self.links)
        self.objects: Final = ObjectMoves(
            config.object,
            host=self.ledger,
            reserve=self.reserve,
            arrived=partial(self._commit_promoted, FROM_OBJECT),
            usual_cost=self._plans.usual_cost,
        )
        self._acquires = Acquires(
            config,
            ledger=self.ledger,
            summaries=self.summaries,
            fetches=self._fetches,
            plans=self._plans,
            addresses=self._address_of,
            promote=self.disk.promote,
            objects=self.objects,
        )
        self.parts: Final = Parts(
            config,
            ledger=self.ledger,
            links=self.links,
            reserve=self.reserve,
            commit=self.commit,
            claims=self.summaries.claims,
            usable=self._usable,
            mapped=self._neighbours.is_mapped,
        )
        self._locate_ids = 0
        self._questions: dict[int, int | tuple[int, bytes, int]] = {}
        """What the directory was asked for: the number of an acquire, or number, anchor and place of a locate."""
        self._rings = RingView(self.membership.members)
        self._boots: dict[str, int] = {}  # of the usable members
        self._unknown_senders = 0
        self._rest_due: float | None = None
        """When a core other than membership has something to do; None after what may have brought that forward."""

    def touch(self) -> None:
        """Take that one of the cores was used directly, past the verbs of this one, so that deadlines are looked up anew.

        Most messages of a mesh at rest concern membership alone, and asking all the others after each of them would take
        longer than the message.
        """
        self._rest_due = None

    # -- the three verbs of every core --------------------------------------------------------------------------

    def on_message(self, sender: str, message: AnyMessage, now: float) -> tuple[Effect, ...]:
        """Take a message that the shell has decoded and whose sender's id it knows."""
        if isinstance(message, Packet):
            effects = self.membership.on_message(sender, message, now)
            return self._route(effects, now) if effects else ()
        if isinstance(message, SummaryDelta | SummaryPage | SummaryRequest | SummaryVersions):
            return self._on_summary(sender, message, now)
        self._rest_due = None
        match message:
            case PushPull() | ListDigest() | ListDifference() | Ping():
                return self._route(self.membership.on_message(sender, message, now), now)
            case DirectoryPut() | DirectoryResend() | DirectoryAsk() | DirectoryAnswer():
                return self._route(self.directory.on_message(sender, message, now), now)
            case LeaseRequest():
                return self._asked_for_lease(sender, message, now)
            case LeaseGrant(request=request) if self.parts.deliveries.asked(request):
                return self.parts.on_grant(sender, message, now)
            case LeaseGrant():
                judged = self._fetches.judge(sender, message)
                effects = self.summaries.on_answer(sender, judged.confirmed, judged.contradicted, now)
                return self._route((*effects, *self._fetches.on_grant(sender, message, now)), now)
            case LeaseRelease(lease=lease):
                self._grants.on_release(sender, lease, now)
                return ()
            case LeaseRenew():
                self._grants.on_renew(sender, message, now)
                return ()
            case PushOffer() | PushAnswer() | PushReady() | PushCredit() | PushDigests() | PushDone() | PushCancel():
                return self.parts.on_message(sender, message, now) if self._known(sender) is not None else ()
            case KeyCommand():
                record = self._known(sender)
                return self.rotation.on_command(record, message) if record is not None else ()
            case KeyReport():
                return self.rotation.on_report(sender, message, now)
            case _:  # handshakes and pulls are the transport's
                return ()

    def on_time(self, now: float) -> tuple[Effect, ...]:
        """Let time pass. Calling early, late or twice is harmless; a shell feeds what has arrived before."""
        effects = self._route(self.membership.on_time(now), now)
        if self._rest_due is None or now >= self._rest_due:
            self._rest_due = None
            effects += self._do_rest(now)
        return effects

    def _do_rest(self, now: float) -> tuple[Effect, ...]:
        """Let time pass for all cores but membership."""
        self._grants.on_time(now)
        self.hand_over.on_time(now)
        self.ledger.expire(now)
        for key in self.ledger.drop_idle(now):
            self._left_memory(key, now)
        effects = self._route(self.summaries.on_time(now), now)
        effects += self._route(self._neighbours.on_time(now), now)
        if self.directory.wants_table and now >= self._rings.due():
            self.ring(now)
        effects += self._route(self.directory.on_time(now), now)
        effects += self.rotation.on_time(now)
        effects += self.parts.on_time(now)
        effects += self._route(self.disk.on_time(now), now)
        effects += self._route(self.objects.on_time(now), now)
        self._review(now)
        return effects + self._route(self._fetches.on_time(now), now)

    def next_deadline(self) -> float:
        """Return when to call `on_time` next, on the scale of `now`; recompute after every call of anything."""
        rest_due = self._rest_due
        if rest_due is None:
            rest_due = self._rest_due = self._find_rest_due()
        members_due = self.membership.next_deadline()
        return members_due if members_due < rest_due else rest_due  # noqa: FURB136 - min() takes three times as long

    def _find_rest_due(self) -> float:
        return min(
            self.summaries.next_deadline(),
            self.directory.next_deadline(),
            self._rings.due() if self.directory.wants_table else float("inf"),
            self._fetches.next_deadline(),
            self._neighbours.next_deadline(),
            self.rotation.next_deadline(),
            self.parts.next_deadline(),
            self.ledger.next_deadline(),
            self.disk.next_deadline(),
            self.hand_over.next_deadline(),
            -float("inf") if self._inherited else float("inf"),
            self.objects.next_deadline(),
        )

    # -- reports of the shell -----------------------------------------------------------------------------------

    def on_link_lost(self, address: str, now: float, *, reason: str = "", refused: bool = False) -> tuple[Effect, ...]:
        """Take that a stream to `address` could not be opened or broke; what was queued on it is lost.

        With `refused` the machine there answered that nobody listens: the process is gone, and not only silent.
        """
        self._rest_due = None
        before = dict(self.membership.seeds()).get(address)
        effects = self._route(self.membership.on_link_lost(address, now, refused=refused), now)
        if before != "unreachable" and dict(self.membership.seeds()).get(address) == "unreachable":
            facts = (("seed", address), ("reason", reason))
            effects += (Note("seed unreachable, it is tried again", facts, warning=True),)
        effects += self._route(self.summaries.on_link_lost(address, now), now)
        effects += self._route(self.directory.on_link_lost(address, now), now)
        for record in self.membership.alive():
            if record.address == address:
                effects += self._route(self._fetches.on_peer_lost(record.id, now), now)
                effects += self.parts.on_link_lost(record.id, now)
        return effects

    def on_resolved(
        self, source: str, addresses: tuple[str, ...], now: float, *, complaint: str = ""
    ) -> tuple[Effect, ...]:
        """Take the addresses that a source of seeds gave, and a complaint about what else it said."""
        return self._route(self.membership.on_resolved(source, addresses, now, complaint=complaint), now)

    def on_resolve_failed(self, source: str, reason: str, now: float) -> tuple[Effect, ...]:
        """Take that a source of seeds could not be looked up."""
        return self._route(self.membership.on_resolve_failed(source, reason, now), now)

    def on_mapped(self, peer: str, now: float) -> tuple[Effect, ...]:  # noqa: ARG002 - every verb takes the time
        """Take that the arena of `peer`, which is on this machine, can be read from here."""
        self._rest_due = None
        self._neighbours.on_mapped(peer)
        return ()

    def on_unmapped(self, peer: str, now: float) -> tuple[Effect, ...]:
        """Take that it cannot, or no longer; its blocks come over the network meanwhile."""
        self._rest_due = None
        self._neighbours.on_unmapped(peer, now)
        return ()

    def on_block(self, transfer: int, key: BlockKey, outcome: Outcome, now: float) -> tuple[Effect, ...]:
        """Take the end of one block's way; after "ok" it was committed."""
        return self.on_blocks(transfer, (key,), outcome, now)

    def on_blocks(self, transfer: int, keys: Sequence[BlockKey], outcome: Outcome, now: float) -> tuple[Effect, ...]:
        """Take that the ways of some blocks ended alike; after "ok" they were committed."""
        self._rest_due = None
        if outcome == "ok":
            for key in keys:
                self._acquires.on_arrived(key)
                self.ledger.let_pass(key)
        return self._route(self._fetches.on_blocks(transfer, keys, outcome, now), now)

    def on_transfer_ended(self, transfer: int, outcome: Outcome, now: float) -> tuple[Effect, ...]:
        """Take the end of a transfer; blocks not reported before end with `outcome`."""
        self._rest_due = None
        return self._route(self._fetches.on_transfer_ended(transfer, outcome, now), now)

    def on_disk_ready(self, books: Ledger, places: dict[BlockKey, Place], now: float) -> tuple[Effect, ...]:
        """Take that the disk works, and what is on it; see `DiskMoves.on_ready`."""
        self._rest_due = None
        return self._route(self.disk.on_ready(books, places, now), now)

    def on_disk_failed(self, problem: str, now: float) -> tuple[Effect, ...]:
        """Take that the disk does not work."""
        self._rest_due = None
        return self._route(self.disk.on_failed(problem, now), now)

    def on_disk_written(
        self, move: int, problem: str, now: float, *, full: bool = False, took_s: float = 0.0
    ) -> tuple[Effect, ...]:
        """Take the end of a write, with what was in its way."""
        self._rest_due = None
        return self._route(self.disk.on_written(move, problem, now, full=full, took_s=took_s), now)

    def on_disk_read(
        self, move: int, verdict: str, now: float, *, problem: str = "", took_s: float = 0.0
    ) -> tuple[Effect, ...]:
        """Take the end of a read: "ok" if the block is in its place and verified, and what the disk said instead of it."""
        self._rest_due = None
        return self._route(self.disk.on_read(move, verdict, now, problem=problem, took_s=took_s), now)

    def on_object_put(
        self, move: int, result: str, now: float, *, problem: str = "", took_s: float = 0.0
    ) -> tuple[Effect, ...]:
        """Take the end of a put, and why the object store is out of service, if it is."""
        self._rest_due = None
        return self._route(self.objects.on_put(move, result, now, problem=problem, took_s=took_s), now)

    def on_object_got(
        self, get: GetRun, verdict: str, infos: Sequence[BlockInfo], now: float, *, problem: str = ""
    ) -> tuple[tuple[Reservation | None, ...], tuple[Effect, ...]]:
        """Take what came of a question to the object store: blocks that have their digests, in order.

        Return a place for each, None where none is needed or there is none. If there is any, `on_object_placed` follows.
        """
        self._rest_due = None
        last = get.run.keys[-1]
        places, effects = self.objects.on_got(get.move, verdict, infos, now, last=last, problem=problem)
        return places, self._route(effects, now)

    def on_object_placed(self, move: int, now: float) -> tuple[Effect, ...]:
        """Take that blocks of the object store are in their places."""
        self._rest_due = None
        return self._route(self.objects.on_placed(move, now), now)

    def on_object_checked(self, problem: str, now: float) -> tuple[Effect, ...]:
        """Take that the object store was looked at, and why it is out of service, if it is."""
        self._rest_due = None
        return self._route(self.objects.on_checked(problem, now), now)

    def promote(self, keys: Sequence[BlockKey], until: float, now: float) -> tuple[int | None, tuple[Effect, ...]]:
        """Begin to bring what a chain's prefix has on the disk alone; `Promoted` with the number ends it, at `until` at the latest.

        None: there is nothing to bring.
        """
        self._rest_due = None
        number, effects = self.disk.promote(keys, until, now)
        return number, self._route(effects, now)

    # -- storing ------------------------------------------------------------------------------------------------

    def reserve(self, info: BlockInfo, now: float) -> Reservation | None:
        """Return a place for a block, or None if it is here or on its way.

        Raises:
            TierFull: there is no room, or memory is handed over; nothing was evicted.
        """
        self._rest_due = None
        if self.hand_over.is_under_way and self.ledger.get(info.key) is None:
            raise TierFull(
                "memory is being handed over to another daemon",
                tier="host",
                hint="it will store again when that is done",
            )
        reservation = self.ledger.reserve(info)
        if reservation is not None:
            for key in reservation.evicted:
                self._left_memory(key, now)
            self.disk.on_reserved(reservation.slot.size)
        else:
            self._reuse([info.key], now)  # published here, too
        return reservation

    def commit(
        self, reservation: Reservation, now: float, depth: int | None = None, parent: BlockKey | None = None
    ) -> None:
        """Make a block that is in place and verified findable, here and soon on other nodes.

        `depth`, the number of blocks before it in its chain, and `parent`, the last of them, decide how it is announced;
        for a block that an acquire asked for they are known here.
        """
        self._rest_due = None
        key = reservation.info.key
        if depth is None:
            depth, parent = self._acquires.place_of(key)
        self.ledger.on_time(now)
        self.ledger.commit(reservation, parent=parent)
        self._stored(key, (depth, parent), now)

    def commit_fetched(self, reservation: Reservation, now: float) -> None:
        """Make a block that came from a peer findable: for good, or for those alone who wait for it, as is decided here."""
        key = reservation.info.key
        for _ in range(self._acquires.waiting_for(key) - 1):
            self._admission.note_use(key)
        if self._admission.admits(key, room=not reservation.evicted and self.ledger.has_room()):
            self.commit(reservation, now)
        else:
            self._rest_due = None
            self.ledger.commit(reservation, passing=self._acquires.place_of(key))

    def inherit(self, blocks: Sequence[tuple[BlockInfo, Slot, Place]]) -> None:
        """Take the verified blocks that the daemon before had in memory, those used last first. Nothing was stored yet."""
        self._rest_due = None
        parents = {info.key: place[1] for info, _, place in blocks}
        self.ledger.restore([(info, slot) for info, slot, _ in reversed(blocks)], parents)
        self._inherited += [(info.key, place) for info, _, place in blocks]

    # -- finding and fetching -----------------------------------------------------------------------------------

    def match(self, keys: Sequence[BlockKey], now: float | None = None) -> Match:
        """Return how much of a chain is here and how much peers claim, without asking anybody.

        With `now`, claims end where the peer itself said lately that it has no more.
        """
        local = self.ledger.prefix(keys)
        claims = self.summaries.longest(keys) if now is None else self.summaries.claims(keys, now)
        usable = self._usables
        found = sorted([(-depth, peer) for peer, depth in claims.items() if depth and peer in usable])
        reachable = self.disk.prefix(keys) if self.disk.books is not None else local
        if found:
            reachable = max(reachable, -found[0][0])
        for _ in range(PLANS_MAX if 0 < reachable < len(keys) and usable else 0):
            behind = self.summaries.longest(keys, reachable)
            if now is not None:
                behind = self.summaries.without_absent(behind, keys, now, reachable)
            further = max((depth for peer, depth in behind.items() if peer in usable), default=0)
            if further <= reachable:
                break
            reachable = further
        return Match(local, reachable, tuple([(usable[peer], -depth) for depth, peer in found]))

    def acquire(
        self,
        keys: Sequence[BlockKey],
        *,
        holder: str,
        deadline: float,
        now: float,
        first: int = 0,
        cost: Cost | None = None,
        block_bytes: int = 0,
    ) -> tuple[int, tuple[Effect, ...]]:
        """Bring the longest usable prefix of a chain here and pin it; `Acquired` with the returned id says the result.

        The `first` blocks of the chain are the engine's own already: they are neither brought nor pinned, but they
        count when peers are asked how deep they hold the chain. `block_bytes` is how long a block is, if that is known: an
        object store has names for runs of blocks, and which blocks are a run follows from it.

        Raises:
            PinLimit: `holder` has as many leases as it may have.
        """
        self._rest_due = None
        self.ledger.on_time(now)
        number, effects = self._acquires.start(
            keys, holder=holder, deadline=deadline, now=now, first=first, cost=cost, block_bytes=block_bytes
        )
        return number, self._route(effects, now)

    def cancel(self, acquire: int, now: float) -> tuple[Effect, ...]:
        """Take that the engine of an acquire has gone away: what was begun for it ends, and no `Acquired` comes."""
        self._rest_due = None
        return self._route(self._acquires.cancel(acquire), now)

    def slot_bytes(self, key: BlockKey, block_bytes: int = 0) -> int:
        """Return how much memory a block takes, or would take if it is of `block_bytes`, or else of the usual length."""
        held = self.ledger.get(key) or self.disk.get(key)
        length = held.info.length if held is not None else block_bytes or self._plans.block_bytes
        return self.ledger.slots.size_class(min(length, self.ledger.slots.chunk_bytes))

    def explain(
        self, keys: Sequence[BlockKey], now: float, cost: Cost | None = None
    ) -> tuple[Decision, Decision | None]:
        """Return what the plan for a chain from its root would be, and what it last was if that is remembered."""
        return self._acquires.explain(keys, now, cost)

    def score(self, keys: Sequence[BlockKey], now: float, cost: Cost | None = None, *, limit: int) -> tuple[Seat, ...]:
        """Return where a chain would best be computed, nobody being asked; see `Scores`.

        Without `cost` the figures of the engine heard of last are taken, if there was one.
        """
        chain = tuple(dict.fromkeys(keys))
        here, on_disk = self.ledger.prefix(chain), 0
        if self.disk.books is not None:
            on_disk = self.disk.prefix(chain)
        claims = self.summaries.claims(chain, now)
        return self._scores.of(
            blocks=len(chain),
            claims={peer: depth for peer, depth in claims.items() if peer in self._usables},
            members={
                peer: (record, self._load_of(peer, now), " or ".join(offered_by_tier(record)))
                for peer, record in self._usables.items()
            },
            own=(self._me.id, self._me.name, max(here, on_disk), TIERS.index("disk") if on_disk > here else 0),
            cost=cost or self._plans.usual_cost(),
            block_bytes=self._plans.block_bytes,
            limit=limit,
            now=now,
        )

    def pin(self, chain: Sequence[BlockKey], *, deadline: float, now: float) -> Pinned:
        """Keep what is here of a chain's head from being evicted until `deadline`; see `Pins.pin`.

        Raises:
            PinLimit: as much is pinned as may be.
        """
        self._rest_due = None
        self.ledger.on_time(now)
        for key in chain[: self.ledger.prefix(chain)]:
            self._stay(key, now)
        return self._pins.pin(chain, deadline)

    def unpin(self, tip: BlockKey) -> bool:
        """End the pin of the chain whose last block is `tip`; say whether there was one."""
        self._rest_due = None
        return self._pins.unpin(tip)

    def left_alone(self, keys: Sequence[BlockKey], now: float) -> tuple[tuple[MemberRecord, int, str], ...]:
        """Return the peers that claim some of a chain and are not asked just now: how much they claim, and why not."""
        found = []
        for record, depth in self.match(keys, now).holders:
            busy_s, state = self.links.busy_s(record.id, now), self.links.state(record.id, now)
            if busy_s:
                found.append((record, depth, f"busy, to be asked again in {busy_s * 1000:.0f} ms"))
            elif not self.links.usable(record.id, now):
                found.append((record, depth, f"failed lately (breaker {state})"))
        return tuple(found)

    def grant(
        self, sender: str, request: LeaseRequest, now: float, *, on_bulk_stream: bool = False
    ) -> LeaseGrant | None:
        """Return the answer to a peer's question, None to a stranger's; one that came `on_bulk_stream` is answered there."""
        self._rest_due = None
        if self._known(sender) is None:
            return None
        if self.hand_over.is_leaving:
            return nothing_granted(request, 0.0, reason="this node is leaving")
        self.ledger.on_time(now)
        if self.ledger.has_passing:  # what is wanted elsewhere, too, is kept
            self._reuse(split_keys(request.keys), now)
        return self._grants.on_request(sender, request, now, on_bulk_stream=on_bulk_stream)

    def release_peer(self, peer: str) -> None:
        """End all leases of a peer whose process is gone."""
        self._rest_due = None
        self._grants.on_gone(peer)

    def find_lease(self, lease_id: int, peer: str) -> Lease | None:
        """Return a lease that `peer` holds on blocks of ours, for its pull."""
        return self._grants.find(peer, lease_id)

    def locate(self, key: BlockKey, now: float) -> Location:
        """Return where a key is, as far as this node knows."""
        claimed = tuple(record for peer in self.summaries.holders(key) if (record := self._usable(peer)) is not None)
        anchor, _ = self.directory.place(key) or (anchor_of(key), 0)
        names = self.ring(now).owners(anchor, self.config.directory.owners)
        owners = tuple(record for peer in names if (record := self.membership.member(peer)))
        return Location(self.ledger.get(key), claimed, owners)

    def locate_in_directory(self, key: BlockKey, now: float) -> tuple[int, tuple[Effect, ...]]:
        """Ask the owners of a key's stretch where it is; `Located` with the returned id says the result.

        A key that is not held here is taken for the first of its stretch, as its place in a chain is not known.
        """
        self._rest_due = None
        self._locate_ids += 1
        anchor, place = self.directory.place(key) or (anchor_of(key), 0)
        self.ring(now)
        question, effects = self.directory.ask([anchor], now + self.config.directory.timeout_s, now)
        if question is None:
            return self._locate_ids, (Located(self._locate_ids, anchor, place, (), (), ()),)
        self._questions[question] = (self._locate_ids, anchor, place)
        return self._locate_ids, self._route(effects, now)

    def ring(self, now: float) -> Ring:
        """Return the ring of the members of now, or of a second ago while many change."""
        self._rest_due = None
        if self._rings.ring is None or now >= self._rings.due():
            built = self._rings.build(now)
            if built is not None:
                self.directory.on_table(*built, now)
        assert self._rings.ring is not None
        return self._rings.ring

    def update_self(
        self, now: float, *, offered: Mapping[str, int] | None = None, load: int | None = None
    ) -> tuple[Effect, ...]:
        """Say what this node offers by tier, bytes, and how busy it is, percent; see `Membership.update_self`."""
        self._rest_due = None
        return self._route(self.membership.update_self(now, offered=offered, load=load), now)

    def leave(self, now: float) -> tuple[Effect, ...]:
        """Say goodbye, so that nobody has to find out."""
        self._rest_due = None
        return self._route(self.membership.leave(now), now)

    def is_read(self) -> bool:
        """Say whether an engine or a peer has leased anything, or a tier reads it."""
        return self.ledger.statistics().leases > len(self.ledger.leases_of(PINS))

    def statistics(self) -> NodeStatistics:
        """Return the figures of now."""
        return NodeStatistics(
            ledger=self.ledger.statistics(),
            fetch=self._fetches.statistics(),
            unknown_senders=self._unknown_senders,
            refused_leases=self._grants.refused,
            shed_leases=self._grants.shed,
            shed_acquires=self._acquires.shed,
            admitted_blocks=self._admission.admitted,
            passed_blocks=self._admission.passed,
            lent_bytes=self._grants.lent_bytes,
            lent_window_bytes=self._grants.window_bytes,
            disk=self.disk.statistics(),
            object=self.objects.statistics(),
        )

    # -- inside -------------------------------------------------------------------------------------------------

    def _on_summary(
        self, sender: str, message: SummaryDelta | SummaryPage | SummaryRequest | SummaryVersions, now: float
    ) -> tuple[Effect, ...]:
        """Take a message that concerns summaries alone: nothing else can be due sooner for it."""
        record = self._known(sender)
        if record is None:
            return ()
        effects = self._route(self.summaries.on_message(sender, record.address, message, now), now)
        if self._rest_due is not None:
            self._rest_due = min(self._rest_due, self.summaries.next_deadline())
        return effects

    def _known(self, sender: str) -> MemberRecord | None:
        """Return the sender's record; only members are listened to beyond membership itself."""
        record = self.membership.member(sender)
        if record is None:
            self._unknown_senders += 1
        return record

    def _left_memory(self, key: BlockKey, now: float) -> None:
        """Take that a block has gone from host memory, and have others hear that it is not here any more, unless it is on the disk."""
        self.disk.on_evicted(key)
        self.objects.on_evicted(key)
        if not self.disk.holds(key):
            self._announced.remove([key], now)

    def _usable(self, peer: str) -> MemberRecord | None:
        return self._usables.get(peer)

    def _reuse(self, keys: Sequence[BlockKey], now: float) -> None:
        """Keep those of `keys` that are only passing and are wanted again."""
        for key in keys:
            if self.ledger.passing(key) is not None and self._admission.admits(key, room=False):
                self._stay(key, now)

    def _stay(self, key: BlockKey, now: float) -> None:
        """Have a block stay that was only passing, if it was."""
        place = self.ledger.passing(key)
        if place is not None:
            self.ledger.admit(key)
            self._stored(key, place, now)

    def _stored(self, key: BlockKey, place: Place, now: float) -> None:
        """Announce a block that is in host memory for good, and have it written to where it is not yet."""
        self._announced.add(key, now, *place)
        self.disk.on_stored(key, place)
        self.objects.on_stored(key, place, now)

    def _commit_promoted(self, source: str, reservation: Reservation, place: Place, now: float) -> None:
        """Make a block of another tier findable in memory: for good unless an engine alone wants it, and for the first time."""
        key = reservation.info.key
        room = not reservation.evicted and self.ledger.has_room()
        stays = not self._acquires.waiting_for(key) or self._admission.admits(key, room=room)
        self.ledger.commit(reservation, passing=None if stays else place, parent=place[1])
        if stays:
            self._stored(key, place, now)
        self._acquires.on_arrived(key, source=source)
        self.ledger.let_pass(key)

    def _is_worth_writing(self, held: Held) -> bool:
        """Say whether reading a block back takes less time than the engine heard of last would take to compute it."""
        cost = self._plans.usual_cost()
        if cost is None or not cost.block_bytes:
            return True
        return self.disk.read_s(held.info.length) < cost.prefill_block_s * held.info.length / cost.block_bytes

    def _review(self, now: float) -> None:
        """Announce what the disk has come to have, and take back what it has lost, some at a time."""
        for _ in range(min(_REVIEWED_AT_ONCE, len(self._inherited))):
            key, place = self._inherited.popleft()
            if self.ledger.get(key) is not None:
                self._stored(key, place, now)
        for key in self.disk.take_review():
            in_memory = self.ledger.get(key) is not None and self.ledger.passing(key) is None
            if in_memory or self.disk.holds(key):
                self._announced.add(key, now, *self.disk.place(key))
            else:
                self._announced.remove([key], now)

    def _asked_for_lease(self, sender: str, request: LeaseRequest, now: float) -> tuple[Effect, ...]:
        """Answer a peer's question, when what it asked for and is on the disk has been read or half of its patience is over."""
        if self.disk.books is not None and len(self._promised) < _PROMISED_MAX and self._known(sender) is not None:
            patience_s = min(request.remaining_ms / 1000, self.config.fetch.answer_timeout_s) / 2
            promotion, effects = self.disk.promote(split_keys(request.keys), now + patience_s, now)
            if promotion is not None:
                self._promised[promotion] = (sender, request, now)
                return self._route(effects, now)
        grant = self.grant(sender, request, now)
        if grant is None:
            return ()
        return (SendStream(self._address_of(sender), grant, now + grant.lease_ms / 1000),)

    def _promoted(self, effect: Promoted, promotion: int, now: float) -> tuple[Effect, ...]:
        """Go on for whoever waits for a promotion; one that nobody here waits for is the shell's."""
        promised = self._promised.pop(promotion, None)
        if promised is not None:
            sender, request, asked_at = promised
            left_ms = max(0, request.remaining_ms - int((now - asked_at) * 1000))
            grant = self.grant(sender, msgspec.structs.replace(request, remaining_ms=left_ms), now)
            if grant is None:
                return ()
            return (SendStream(self._address_of(sender), grant, now + grant.lease_ms / 1000),)
        effects = self._acquires.on_promoted(promotion, now)
        return (effect,) if effects is None else self._route(effects, now)

    def _address_of(self, peer: str) -> str:
        record = self.membership.member(peer)
        return record.address if record is not None else ""

    def _nearness(self, peer: str) -> Nearness:
        return self._near.get(peer, Nearness.FAR)

    def _load_of(self, peer: str, now: float) -> int:
        """Return how busy a peer is, percent, 0 if it has not said so lately."""
        load = self.membership.load_of(peer)
        return load.percent if load is not None and now - load.heard_at <= _LOAD_FRESH_S else 0

    def _route(self, effects: Sequence[object], now: float) -> tuple[Effect, ...]:
        """Carry what one core says to those it concerns, and let through what is for the outside."""
        if not effects:
            return ()
        first = effects[0]
        if len(effects) == 1 and (  # nearly all, in a mesh at rest and under load
            isinstance(first, SendDatagram)
            or (isinstance(first, SendStream) and not isinstance(first.message, PushPull | ListDigest | ListDifference))
        ):
            return (first,)
        self._rest_due = None
        out: list[Effect] = []
        compared: dict[str, None] = {}
        """Whom the member list goes to: our versions of summaries go along."""
        for effect in effects:
            match effect:
                case MemberChanged(record=record):
                    out.append(effect)
                    self._rings.changed(now)
                    # Whoever speaks no version of ours would refuse our streams: it is no reader, and nothing is read.
                    exchanged = (
                        record
                        if speaks_with_us(record)
                        else msgspec.structs.replace(record, state=int(MemberState.DEAD))
                    )
                    out += self._route(self.summaries.on_member(exchanged, now), now)
                    out += self._route(self.directory.on_member(exchanged), now)
                    usable = exchanged.state <= MemberState.SUSPECT
                    if usable:
                        self._near[record.id] = nearness(self._me, record)
                        self._usables[record.id] = record
                    else:
                        self._near.pop(record.id, None)
                        self._usables.pop(record.id, None)
                    out += self._neighbours.on_member(
                        record.id, host_id=record.host_id, boot=record.boot, usable=usable
                    )
                    if self._has_ended(record):
                        if record.state < MemberState.DEAD:
                            out += self._route(self.directory.on_restarted(record.id, now), now)
                        out += self._route(self._fetches.forget(record.id, now), now)
                        self.links.forget(record.id)
                        self._grants.on_gone(record.id)
                        out += self.parts.on_gone(record.id, now)
                case FetchEnded():
                    out += self._route(self._acquires.on_fetch_ended(effect, now), now)
                case Reused(keys=keys):
                    self._reuse(keys, now)
                case Promoted(promotion=promotion):
                    out += self._promoted(effect, promotion, now)
                case Recalled(recall=recall, verdict=verdict):
                    out += self._route(self._acquires.on_recalled(recall, verdict, now), now)
                case AskDirectory():
                    out += self._ask(effect, now)
                case Heard():
                    out += self._heard(effect, now)
                case SendStream(address=address, message=PushPull() | ListDigest() | ListDifference()):
                    out.append(effect)
                    compared[address] = None
                case (
                    SendDatagram()
                    | SendStream()
                    | Resolve()
                    | Note()
                    | StartTransfer()
                    | StopTransfer()
                    | Acquired()
                    | Located()
                    | MapArena()
                    | ReadFromDisk()
                    | WriteToDisk()
                    | CloseDisk()
                    | PutRun()
                    | GetRun()
                ):
                    out.append(effect)
                case _:
                    raise AssertionError(f"no route for {effect!r}")
        for address in compared:
            out += self.summaries.versions_for(address, now)
        return tuple(out)

    def _has_ended(self, record: MemberRecord) -> bool:
        """Whether a member's process is gone: it died, it left, or another start of it has taken its place."""
        if record.state >= MemberState.DEAD:
            self._boots.pop(record.id, None)
            return True
        before = self._boots.get(record.id, record.boot)
        self._boots[record.id] = record.boot
        return record.boot != before

    def _ask(self, ask: AskDirectory, now: float) -> tuple[Effect, ...]:
        """Ask the directory for an acquire, which goes on at once if there is nobody to ask."""
        self.ring(now)
        question, effects = self.directory.ask(ask.anchors, ask.until, now)
        if question is None:
            return self._route(self._acquires.on_heard(ask.acquire, (), now), now)
        self._questions[question] = ask.acquire
        return self._route(effects, now)

    def _heard(self, heard: Heard, now: float) -> tuple[Effect, ...]:
        """Go on with what the directory was asked for."""
        asked = self._questions.pop(heard.question)
        if isinstance(asked, int):
            return self._route(self._acquires.on_heard(asked, heard.claims, now), now)
        number, anchor, place = asked
        return (Located(number, anchor, place, heard.claims, heard.asked, heard.silent),)
