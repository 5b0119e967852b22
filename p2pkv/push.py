"""Pushes, sans-IO: a node that computes blocks offers them to one that will need them, layer by layer as they are made.

    sender                                             receiver
    PushOffer(keys, layers x heads) ------------------> places reserved, for as long as something comes
                     <---------------------- PushAnswer(taken, credits | refusal)
    PushReady(layer, blocks), one credit -------------> pulls that part, verifies it where it lies, shows it
                     <---------------------- PushCredit
    PushDigests, when all is announced ---------------> stores what has them
                     <---------------------- PushDone

The bytes are pulled by the receiver, over the same streams as a fetch: so only the receiver ever writes to its places,
and giving one back needs nobody's word. Credits bound what is announced, and keep the link busy across the round trip.
Either side may cancel, die or fall silent at any time: the other gives back what it held, at the latest when its own
deadline has passed. Both bounds are durations, never a time of the other's clock.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from p2pkv.assemblies import UNKNOWN_DIGEST, Assemblies, Assembly, AssemblyEffect, Ending, PartsArrived
from p2pkv.blocks import DIGEST_BYTES, KEY_BYTES, BlockKey, join_keys, split_keys
from p2pkv.config import PartsConfig
from p2pkv.effects import SendStream
from p2pkv.errors import CapacityError, LayoutMismatch, LocalUseError, TierFull
from p2pkv.layouts import Grid, Part
from p2pkv.ledger import Held, Ledger
from p2pkv.part_pulls import PulledBlock, StartPull, StopPull
from p2pkv.slots import Slot
from p2pkv.transport.wire import (
    KEYS_PER_LEASE_MAX,
    AnyMessage,
    MemberRecord,
    PushAnswer,
    PushCancel,
    PushCredit,
    PushDigests,
    PushDone,
    PushOffer,
    PushReady,
    bit_positions,
    bitmap,
)

RUN_BYTES: Final = 8 * 2**20
"""Announced with one credit when blocks are pushed whole: long enough for a link, short enough to see progress."""
OUTGOING_MAX: Final = 256
"""Pushes of this node that an engine may still ask about; the oldest that is over goes first."""
NAMESPACES_MAX: Final = 256
"""That engines of this node expect pushes of."""
PUSH_S_MAX: Final = 3600.0
"""No push is given more time than this, whatever its sender says."""
_REASON_CHARACTERS_MAX: Final = 128

PushState: TypeAlias = Literal["offered", "accepted", "stored", "over"]
PushEffect: TypeAlias = AssemblyEffect | SendStream | StartPull | StopPull


@dataclass(frozen=True, slots=True)
class PushProgress:
    """How far a push of this node is. `over` means it will not be stored, for `reason`."""

    state: PushState
    taken: int
    """Blocks that the receiver reserved places for; the others were there already."""
    layers: int
    """Layers of all taken blocks that are there and verified."""
    reason: str


@dataclass(slots=True)
class _Outgoing:
    number: int
    peer: str
    address: str
    keys: tuple[BlockKey, ...]
    grid: Grid
    holder: str
    by_layer: bool
    deadline: float
    lease: int
    sources: tuple[Held | Assembly, ...]
    state: PushState = "offered"
    reason: str = ""
    taken: tuple[int, ...] = ()
    credits: int = 0
    announced: int = 0
    """Layers, or blocks, in the order they go."""
    acknowledged: int = 0
    waiting: list[int] = field(default_factory=list)
    """Layers, or blocks, of each announcement that is not acknowledged."""
    has_closed: bool = False
    """Whether the digests were sent."""


@dataclass(slots=True)
class _Incoming:
    number: int
    peer: str
    address: str
    grid: Grid
    deadline: float
    idle_at: float
    """When it is given up unless something comes before."""
    assemblies: dict[int, Assembly]
    """By position in the offer."""
    pulls: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class PushStatistics:
    """Totals since start, and how many are under way now."""

    sent: int
    sending: int
    received: int
    receiving: int
    refused: int
    """Offers that this node refused."""
    cancelled: int
    """Pushes to this node that ended before their end."""


class Pushes:
    """All pushes of one node, both ways."""

    def __init__(
        self,
        *,
        config: PartsConfig,
        ledger: Ledger,
        assemblies: Assemblies,
        usable: Callable[[str], MemberRecord | None],
        ids: Iterator[int],
    ) -> None:
        """`ids` gives numbers for pushes and pulls that no other core of the node uses."""
        self._config = config
        self._ledger = ledger
        self._assemblies = assemblies
        self._usable = usable
        self._ids = ids
        self._expected: dict[bytes, set[str]] = {}
        """Namespace -> the engines that may ask for its blocks."""
        self._outgoing: dict[int, _Outgoing] = {}
        self._incoming: dict[tuple[str, int], _Incoming] = {}
        self._pulls: dict[int, tuple[_Incoming, Part, tuple[Assembly, ...]]] = {}
        self._counts = dict.fromkeys(("sent", "received", "refused", "cancelled"), 0)

    # -- engines ------------------------------------------------------------------------------------------------

    def expect(self, namespace: bytes, holder: str) -> None:
        """Take that an engine of this node computes with blocks of `namespace`: pushes of them are welcome.

        Raises:
            LocalUseError: engines of this node expect as many namespaces as they may.
        """
        if namespace not in self._expected and len(self._expected) >= NAMESPACES_MAX:
            raise LocalUseError(f"pushes of {NAMESPACES_MAX} namespaces are expected already")
        self._expected.setdefault(namespace, set()).add(holder)

    def start(
        self,
        peer: str,
        keys: Sequence[BlockKey],
        namespace: bytes,
        grid: Grid,
        *,
        holder: str,
        by_layer: bool,
        deadline: float,
        now: float,
        place: tuple[int | None, BlockKey | None] = (None, None),
    ) -> tuple[int, tuple[PushEffect, ...]]:
        """Offer blocks that are here, or that ranks of this node are just writing, to a peer.

        Raises:
            LocalUseError: `peer` is none that blocks can be sent to, a block is not here, or there are too many.
            LayoutMismatch: a block has another layout or namespace.
            PinLimit, CapacityError: `holder` has as many leases, or the node as many pushes, as it may have.
        """
        record = self._usable(peer)
        if record is None:
            raise LocalUseError(f"no member to push to: {peer}")
        if not 0 < len(keys) <= KEYS_PER_LEASE_MAX:
            raise LocalUseError(f"a push of {len(keys)} blocks, must be between 1 and {KEYS_PER_LEASE_MAX}")
        sources = tuple(self._source(key, namespace, grid) for key in keys)
        self._forget_oldest()
        deadline = min(deadline, now + PUSH_S_MAX)
        held = [one.info.key for one in sources if isinstance(one, Held)]
        lease = self._ledger.lease(held, holder=holder, deadline=deadline).id
        for one in sources:
            if isinstance(one, Assembly):
                one.leases.append(lease)
        push = _Outgoing(
            next(self._ids), peer, record.address, tuple(keys), grid, holder, by_layer, deadline, lease, sources
        )
        self._outgoing[push.number] = push
        self._counts["sent"] += 1
        depth, parent = place
        offer = PushOffer(
            push=push.number,
            namespace=namespace,
            keys=join_keys(keys),
            layers=grid.layers,
            heads=grid.heads,
            segment_bytes=grid.segment_bytes,
            remaining_ms=int((deadline - now) * 1000),
            first_depth=-1 if depth is None else depth,
            parent=parent or b"",
        )
        return push.number, (SendStream(push.address, offer),)

    def progress(self, number: int) -> PushProgress:
        """Return how far a push of this node is."""
        push = self._outgoing.get(number)
        if push is None:
            return PushProgress("over", 0, 0, "forgotten")
        steps = push.acknowledged if push.by_layer else push.grid.layers * (push.state == "stored")
        return PushProgress(push.state, len(push.taken), steps, push.reason)

    def cancel(self, number: int, holder: str) -> tuple[PushEffect, ...]:
        """Take that an engine wants a push to end, and does not ask about it again."""
        push = self._outgoing.get(number)
        if push is None or push.holder != holder:
            return ()
        effects = self._give_up(push, "cancelled by its sender", tell=True)
        del self._outgoing[number]
        return effects

    def on_holder_gone(self, holder: str) -> tuple[PushEffect, ...]:
        """Take that an engine went away."""
        for namespace in [namespace for namespace, engines in self._expected.items() if holder in engines]:
            self._expected[namespace].discard(holder)
            if not self._expected[namespace]:
                del self._expected[namespace]
        mine = [number for number, push in self._outgoing.items() if push.holder == holder]
        return tuple(effect for number in mine for effect in self.cancel(number, holder))

    # -- the sender's side --------------------------------------------------------------------------------------

    def readable(self, peer: str, number: int, position: int, part: Part) -> tuple[Slot, Grid] | None:
        """Return where a block of a push to `peer` lies, if `part` of it may be read now."""
        push = self._outgoing.get(number)
        if push is None or push.peer != peer or push.state != "accepted" or position not in push.taken:
            return None
        source = push.sources[position]
        if not push.grid.holds(part):
            return None
        if not _shows(source, part):
            return None
        return (source.slot if isinstance(source, Held) else source.reservation.slot), push.grid

    def on_arrived(self, now: float) -> tuple[PushEffect, ...]:
        """Take that segments of some block here became visible, or will not: announce what can be announced."""
        del now
        active = [push for push in self._outgoing.values() if push.state == "accepted"]
        return tuple(effect for push in active for effect in self._announce(push))

    def on_message(self, sender: str, message: AnyMessage, now: float) -> tuple[PushEffect, ...]:
        """Take what a member says of a push, of its own or of ours."""
        match message:
            case PushOffer():
                return self._on_offer(sender, message, now)
            case PushReady():
                return self._on_ready(sender, message, now)
            case PushDigests():
                return self._on_digests(sender, message, now)
            case PushAnswer():
                return self._on_answer(sender, message)
            case PushCredit():
                return self._on_credit(sender, message)
            case PushDone(push=number):
                push = self._mine(sender, number)
                return self._finish(push, "stored", "") if push is not None and push.has_closed else ()
            case PushCancel(push=number, offered=True, reason=reason):
                coming = self._incoming.get((sender, number))
                return self._drop(coming, "cancelled", reason, tell=False) if coming is not None else ()
            case PushCancel(push=number, reason=reason):
                push = self._mine(sender, number)
                return self._finish(push, "over", reason) if push is not None else ()
            case _:
                return ()

    def on_gone(self, peer: str, reason: str) -> tuple[PushEffect, ...]:
        """Take that a peer is gone, or that what was said to it may be lost."""
        effects: list[PushEffect] = []
        for push in [push for push in self._outgoing.values() if push.peer == peer]:
            effects += self._give_up(push, reason, tell=True)
        for coming in [coming for coming in self._incoming.values() if coming.peer == peer]:
            effects += self._drop(coming, "cancelled", reason, tell=True)
        return tuple(effects)

    def on_time(self, now: float) -> tuple[PushEffect, ...]:
        """Let time pass: give up what is late, whoever is to blame."""
        effects: list[PushEffect] = []
        for push in tuple(self._outgoing.values()):
            if push.deadline <= now:
                effects += self._give_up(push, "late", tell=True)
        for coming in tuple(self._incoming.values()):
            if min(coming.deadline, coming.idle_at) <= now:
                effects += self._drop(coming, "expired", "nothing came for too long", tell=True)
        return tuple(effects)

    def next_deadline(self) -> float:
        """Return when `on_time` will have something to do; infinity if never."""
        if not self._outgoing and not self._incoming:  # asked after every message, and mostly so
            return float("inf")
        ours = (push.deadline for push in self._outgoing.values() if push.state in {"offered", "accepted"})
        theirs = (min(coming.deadline, coming.idle_at) for coming in self._incoming.values())
        return min((*ours, *theirs), default=float("inf"))

    def statistics(self) -> PushStatistics:
        """Return the figures of now."""
        sending = sum(push.state in {"offered", "accepted"} for push in self._outgoing.values())
        counts = self._counts
        return PushStatistics(
            counts["sent"],
            sending,
            counts["received"],
            len(self._incoming),
            counts["refused"],
            counts["cancelled"],
        )

    def _mine(self, peer: str, number: int) -> _Outgoing | None:
        """Return a push of this node to `peer` that is under way."""
        push = self._outgoing.get(number)
        under_way = push is not None and push.peer == peer and push.state in {"offered", "accepted"}
        return push if under_way else None

    def _source(self, key: BlockKey, namespace: bytes, grid: Grid) -> Held | Assembly:
        held, coming = self._ledger.get(key), self._assemblies.get(key)
        info = held.info if held is not None else coming.reservation.info if coming is not None else None
        if info is None or (coming is not None and coming.has_failed):
            raise LocalUseError(f"block {key.hex()[:16]} is not here", hint="publish it, or its first shard, before")
        if (info.namespace, info.length, info.segment_bytes) != (namespace, grid.block_bytes, grid.segment_bytes):
            raise LayoutMismatch(f"block {key.hex()[:16]} is of another namespace or layout")
        source = held or coming
        assert source is not None
        return source

    def _forget_oldest(self) -> None:
        """Make room for one more.

        Raises:
            CapacityError: all are under way.
        """
        if len(self._outgoing) < OUTGOING_MAX:
            return
        over = next((push.number for push in self._outgoing.values() if push.state in {"stored", "over"}), None)
        if over is None:
            raise CapacityError(f"{OUTGOING_MAX} pushes are under way", tier="host")
        del self._outgoing[over]

    def _on_answer(self, peer: str, answer: PushAnswer) -> tuple[PushEffect, ...]:
        push = self._outgoing.get(answer.push)
        taken = tuple(bit_positions(answer.taken))
        if push is None or push.peer != peer or push.state in {"stored", "over"}:
            record = self._usable(peer)  # it holds places for nothing
            return (SendStream(record.address, PushCancel(answer.push, offered=True)),) if record and taken else ()
        if push.state == "accepted":
            return ()
        if answer.refusal:
            return self._finish(push, "over", answer.refusal)
        if not taken:
            return self._finish(push, "stored", "")
        if taken[-1] >= len(push.keys):
            return self._give_up(push, "an answer that makes no sense", tell=True)
        push.state, push.taken, push.credits = "accepted", taken, answer.credits
        return (*self._announce(push), PartsArrived())

    def _on_credit(self, peer: str, message: PushCredit) -> tuple[PushEffect, ...]:
        push = self._mine(peer, message.push)
        if push is None or message.credits > len(push.waiting):
            return ()
        push.credits += message.credits
        for _ in range(message.credits):
            push.acknowledged += push.waiting.pop(0)
        return (*self._announce(push), PartsArrived())

    def _announce(self, push: _Outgoing) -> tuple[PushEffect, ...]:
        """Announce what is ready and paid for; when it is all, say what the blocks must be."""
        effects: list[PushEffect] = []
        sources = [push.sources[position] for position in push.taken]
        lost = next((one for one in sources if isinstance(one, Assembly) and one.has_failed), None)
        if lost is not None:
            return self._give_up(push, f"a block was not completed here: {lost.ended}", tell=True)
        while push.credits:
            ready = self._next_ready(push)
            if ready is None:
                break
            push.credits -= 1
            count = ready.layers if push.by_layer else len(bit_positions(ready.wanted))
            push.announced += count
            push.waiting.append(count)
            effects.append(SendStream(push.address, ready))
        last = push.grid.layers if push.by_layer else len(push.taken)
        digests = [one.info.digest if isinstance(one, Held) else one.digest for one in sources]
        if push.announced == last and not push.has_closed and UNKNOWN_DIGEST not in digests:
            push.has_closed = True
            effects.append(SendStream(push.address, PushDigests(push.number, b"".join(digests))))
        return tuple(effects)

    def _next_ready(self, push: _Outgoing) -> PushReady | None:
        """Return the next announcement, if it can be made yet."""
        grid = push.grid
        if push.by_layer:
            if push.announced == grid.layers:
                return None
            layer = grid.whole.layer(push.announced)
            if not all(_shows(push.sources[i], layer) for i in push.taken):
                return None
            return PushReady(push.number, bitmap(list(push.taken)), layer.first_layer, 1)
        run: list[int] = []
        for position in push.taken[push.announced :]:
            source = push.sources[position]
            if not _shows(source, grid.whole) or (len(run) + 1) * grid.block_bytes > RUN_BYTES:
                break
            run.append(position)
        first = push.taken[push.announced : push.announced + 1]
        if not run and first and grid.block_bytes > RUN_BYTES:  # larger than a run is: alone then
            source = push.sources[first[0]]
            run = list(first) if _shows(source, grid.whole) else []
        return PushReady(push.number, bitmap(run), 0, grid.layers) if run else None

    def _give_up(self, push: _Outgoing, reason: str, *, tell: bool) -> tuple[PushEffect, ...]:
        if push.state in {"stored", "over"}:
            return ()
        said = PushCancel(push.number, offered=True, reason=reason[:_REASON_CHARACTERS_MAX])
        return (*self._finish(push, "over", reason), *((SendStream(push.address, said),) if tell else ()))

    def _finish(self, push: _Outgoing, state: PushState, reason: str) -> tuple[PushEffect, ...]:
        push.state, push.reason = state, reason
        self._ledger.release(push.lease, holder=push.holder)
        return (PartsArrived(),)

    # -- the receiver's side ------------------------------------------------------------------------------------

    def is_pull(self, pull: int) -> bool:
        """Say whether a pull is one of a push."""
        return pull in self._pulls

    def _on_offer(self, peer: str, offer: PushOffer, now: float) -> tuple[PushEffect, ...]:
        record = self._usable(peer)
        if record is None or (peer, offer.push) in self._incoming:
            return ()
        refusal = ""
        grid = _grid_untrusted(offer)
        if grid is None or not offer.keys or len(offer.keys) % KEY_BYTES or not offer.remaining_ms:
            refusal = "an offer that makes no sense"
        elif offer.namespace not in self._expected:
            refusal = "unknown namespace: no engine here expects its blocks"
        elif len(self._incoming) >= self._config.pushes_max:
            refusal = f"busy: {len(self._incoming)} pushes are coming"
        if refusal or grid is None:
            self._counts["refused"] += 1
            return (SendStream(record.address, PushAnswer(offer.push, b"", 0, refusal)),)
        deadline = now + min(offer.remaining_ms / 1000, PUSH_S_MAX)
        effects: list[PushEffect] = []
        taken: dict[int, Assembly] = {}
        for position, key in enumerate(split_keys(offer.keys)):
            try:
                assembly, more = self._assemblies.open(
                    key,
                    offer.namespace,
                    grid,
                    origin="push",
                    deadline=deadline,
                    now=now,
                    place=_chain_place(offer, position),
                )
            except TierFull as exc:
                refusal = f"full: {exc}"[:_REASON_CHARACTERS_MAX]
                break
            if assembly is not None:
                effects += more
                taken[position] = assembly
        if not taken:
            self._counts["refused"] += bool(refusal)
            return (*effects, SendStream(record.address, PushAnswer(offer.push, b"", 0, refusal)))
        idle_at = now + self._config.reservation_s
        self._incoming[peer, offer.push] = _Incoming(offer.push, peer, record.address, grid, deadline, idle_at, taken)
        answer = PushAnswer(offer.push, bitmap(list(taken)), self._config.push_credits)
        return (*effects, SendStream(record.address, answer), PartsArrived())

    def _on_ready(self, peer: str, ready: PushReady, now: float) -> tuple[PushEffect, ...]:
        coming = self._incoming.get((peer, ready.push))
        if coming is None:
            return self._not_known(peer, ready.push)
        part = Part(ready.first_layer, ready.layers, 0, coming.grid.heads)
        positions = bit_positions(ready.wanted)
        if not positions or not coming.grid.holds(part) or not set(positions) <= coming.assemblies.keys():
            return self._drop(coming, "cancelled", "what was announced is not what was taken", tell=True)
        mine = [coming.assemblies[position] for position in positions]
        mask = coming.grid.mask(part)
        if any(one.claimed & mask or one.ended for one in mine):  # announced twice
            return ()
        if len(coming.pulls) >= self._config.push_credits:
            return self._drop(coming, "cancelled", "more was announced than there was credit for", tell=True)
        for one in mine:
            self._assemblies.claim(one, part)
            self._assemblies.begin_writing(one)
        pull = next(self._ids)
        coming.pulls.add(pull)
        self._pulls[pull] = (coming, part, tuple(mine))
        blocks = tuple(
            PulledBlock(position, one.reservation.slot, UNKNOWN_DIGEST)
            for position, one in zip(positions, mine, strict=True)
        )
        start = StartPull(
            pull=pull,
            peer=peer,
            address=coming.address,
            pushed=True,
            lease=ready.push,
            grid=coming.grid,
            part=part,
            cut=False,
            blocks=blocks,
            by_layer=False,
            deadline=coming.deadline,
        )
        coming.idle_at = now + self._config.reservation_s
        return (start,)

    def _on_digests(self, peer: str, message: PushDigests, now: float) -> tuple[PushEffect, ...]:
        coming = self._incoming.get((peer, message.push))
        if coming is None:
            return self._not_known(peer, message.push)
        if len(message.digests) != DIGEST_BYTES * len(coming.assemblies):
            return self._drop(coming, "cancelled", "digests that do not fit what was taken", tell=True)
        coming.idle_at = now + self._config.reservation_s
        effects: list[PushEffect] = []
        for number, assembly in enumerate(coming.assemblies.values()):
            digest = message.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
            effects += self._assemblies.expect(assembly, digest, now)
        return (*effects, *self._settle(coming))

    def on_part(self, pull: int, index: int, part: Part, digests: bytes, now: float) -> tuple[PushEffect, ...]:
        """Take that a part of a pull's block number `index` was verified in its place."""
        coming, _, assemblies = self._pulls[pull]
        coming.idle_at = now + self._config.reservation_s
        return self._assemblies.verified(assemblies[index], part, digests, now)

    def on_pull_ended(self, pull: int, outcome: str, now: float) -> tuple[PushEffect, ...]:
        """Take the end of a pull, "ok" or what was in its way."""
        del now
        coming, _, assemblies = self._pulls.pop(pull)
        coming.pulls.discard(pull)
        effects: list[PushEffect] = []
        known = self._incoming.get((coming.peer, coming.number)) is coming
        if known and outcome == "ok":
            effects.append(SendStream(coming.address, PushCredit(coming.number, 1)))
            effects += self._settle(coming)
        elif known:
            why: Ending = "corrupt" if outcome == "corrupt" else "cancelled"
            effects += self._drop(coming, why, f"it could not be pulled: {outcome}", tell=True)
        for assembly in assemblies:
            effects += self._assemblies.end_writing(assembly)
        return tuple(effects)

    def _settle(self, coming: _Incoming) -> tuple[PushEffect, ...]:
        """End a push that has come to its end."""
        states = {assembly.ended for assembly in coming.assemblies.values()}
        if states == {"stored"}:
            del self._incoming[coming.peer, coming.number]
            self._counts["received"] += 1
            return (SendStream(coming.address, PushDone(coming.number)),)
        if states <= {"", "stored"}:
            return ()
        return self._drop(coming, "cancelled", "a block had not its digest, or came too late", tell=True)

    def _drop(self, coming: _Incoming, why: Ending, reason: str, *, tell: bool) -> tuple[PushEffect, ...]:
        """Give back what is not stored; a place that is being written to, when its writer has ended."""
        del self._incoming[coming.peer, coming.number]
        self._counts["cancelled"] += 1
        effects: list[PushEffect] = [StopPull(pull) for pull in coming.pulls]
        for assembly in coming.assemblies.values():
            effects += self._assemblies.end(assembly, why)
        if tell:
            said = PushCancel(coming.number, offered=False, reason=reason[:_REASON_CHARACTERS_MAX])
            effects.append(SendStream(coming.address, said))
        return tuple(effects)

    def _not_known(self, peer: str, number: int) -> tuple[PushEffect, ...]:
        """Tell a sender that goes on with a push that is over here, so that it does not wait for its deadline."""
        record = self._usable(peer)
        if record is None:
            return ()
        return (SendStream(record.address, PushCancel(number, offered=False, reason="the reservation is over")),)


def _shows(source: Held | Assembly, part: Part) -> bool:
    """Say whether `part` of a block can be read now."""
    return isinstance(source, Held) or source.has(part)


def _grid_untrusted(offer: PushOffer) -> Grid | None:
    try:
        return Grid(offer.layers, offer.heads, offer.segment_bytes)
    except LayoutMismatch:
        return None


def _chain_place(offer: PushOffer, position: int) -> tuple[int | None, BlockKey | None]:
    """Return depth and parent of an offered block, where the offer says them."""
    if offer.first_depth < 0:
        return None, None
    before = offer.keys[(position - 1) * KEY_BYTES : position * KEY_BYTES] if position else offer.parent
    return offer.first_depth + position, BlockKey(before) if before else None
