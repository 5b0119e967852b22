"""Many real nodes on one virtual clock: a heap of (time, sequence, what happens), and nothing else that moves.

Every node is the `p2pkv.node.Node` that the agent drives, by the same verbs; every message is really encoded and
decoded. Time is in whole microseconds, ties are broken by the order of scheduling, and all chance comes from `Random`
objects seeded from one number. So a seed and a revision of the code are a run, and `trace_hash` says whether two runs
were the same one.
"""

import gc
import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from math import inf
from random import Random
from typing import Final, TypeVar

import msgspec

from p2pkv.acquires import Acquired
from p2pkv.blocks import BlockInfo, BlockKey
from p2pkv.config import Config
from p2pkv.effects import MemberChanged, SendDatagram, SendStream
from p2pkv.fetch import StartTransfer, StopTransfer
from p2pkv.node import Effect, Node
from p2pkv.sim.churn import Absence, absences
from p2pkv.sim.clock import Clock, draw_clock, to_us
from p2pkv.sim.faults import Faults
from p2pkv.sim.network import Network
from p2pkv.sim.stalls import Stalls
from p2pkv.transport.wire import DATAGRAM_BYTES_MAX, MemberRecord, decode_untrusted, encode

T = TypeVar("T")

FIRST: Final = 0
"""The node that all others join through."""
SOCKET_DATAGRAMS_MAX: Final = 256
"""Datagrams that wait in the socket of a node that does not read; further ones are lost. Linux keeps 208 KiB by default,
and counts 768 bytes for one of ours."""
_NEVER: Final = -1
_TRACED_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Change:
    """At `at_us` the node numbered `observer` changed its mind about the one numbered `subject`."""

    at_us: int
    observer: int
    subject: int
    state: int
    own: bool
    """Whether its own timers made it do so, and not a message: a verdict of its own."""
    boot: int
    """The life of the subject's process that this is about."""


@dataclass(slots=True)
class Traffic:
    """What all nodes together sent."""

    datagrams: int = 0
    datagram_bytes: int = 0
    stream_messages: int = 0
    stream_bytes: int = 0

    def snapshot(self) -> "Traffic":
        """Return what was sent until now."""
        return replace(self)


@dataclass(slots=True)
class _Place:
    """Where one node runs, or does not just now."""

    clock: Clock
    node: Node | None = None
    boot: int = 0
    started_us: int = 0
    wakes_us: int = _NEVER
    deadline_s: float = -inf
    """What `wakes_us` was set for."""
    held: int = 0
    """Datagrams that wait in its socket."""
    kept: tuple[BlockInfo, ...] = field(default=())
    """Blocks that outlive its process, for a restart with memory."""


class World:
    """`nodes` places for nodes, numbered from 0. Nothing happens but in `run`."""

    def __init__(
        self,
        *,
        nodes: int,
        seed: int,
        config: Config,
        faults: Faults,
        watch: Callable[[Change], None] | None = None,
    ) -> None:
        """Lay out the world; `watch` is called with every change of a belief, as it happens."""
        self.now_us = 0
        self.traffic = Traffic()
        self.bytes_sent = [0] * nodes
        """By each node, datagrams and streams."""
        self.bytes_sent_to = [0] * nodes
        self.events = 0
        self.network: Final = Network(faults, Random(f"{seed}/network"))
        self.on_transfer: Callable[[int, StartTransfer], None] | None = None
        """Called to move blocks to a node; without it every transfer is lost."""
        self.on_stop: Callable[[int, int], None] | None = None
        """Called to break off a transfer to a node."""
        self.on_acquired: Callable[[int, Acquired], None] | None = None
        """Called when an engine's acquire is over."""
        self.places_of_blocks: dict[BlockKey, tuple[int, BlockKey | None]] = {}
        """Depth and parent of every block that a restart with memory may find again."""
        self._seed = seed
        self._config = config
        self._faults = faults
        self._watch = watch
        clocks = Random(f"{seed}/clocks")
        drawn = partial(draw_clock, clocks, drift_ppm=faults.drift_ppm, offset_s=faults.clock_offset_s)
        self._places = [_Place(drawn()) for _ in range(nodes)]
        self._ids = [id_of(number) for number in range(nodes)]
        self._numbers = {address_of(number): number for number in range(nodes)}
        self._numbers_by_id = {node_id: number for number, node_id in enumerate(self._ids)}
        self._zones = {number: zone.name for zone in faults.zones for number in zone.nodes}
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._trace = blake2b(digest_size=16)
        self._untraced = bytearray()
        """What the trace is still to take: one large piece costs less than many small ones."""
        self._stalls = Stalls(faults)
        self._has_stalls = bool(self._stalls)
        self._own_verdict = False
        self.absences: tuple[Absence, ...] = ()
        """Who is gone when, of those that `Faults.churn` takes."""
        self._plan(faults, nodes)

    @property
    def size(self) -> int:
        """Places for nodes, whether one runs there or not."""
        return len(self._places)

    @property
    def trace_hash(self) -> str:
        """Digest of all that happened so far: each input of each node, its time and its bytes."""
        self._trace.update(self._untraced)
        self._untraced.clear()
        return self._trace.hexdigest()

    def start(self, number: int, at_s: float, *, memory: bool = False) -> None:
        """Have a node's process begin; with `memory` it has the blocks of its earlier life."""
        self.later(to_us(at_s), partial(self._start, number, memory))

    def crash(self, number: int, at_s: float) -> None:
        """Have a node's process end without a word."""
        self.later(to_us(at_s), partial(self._stop, number))

    def is_running(self, number: int) -> bool:
        """Whether the process is there now."""
        return self._places[number].node is not None

    def is_well(self, number: int) -> bool:
        """Whether the process is there, runs its timers, and reads and writes."""
        return self.is_running(number) and self._stalls.deaf_until(number, self.now_us) <= self.now_us

    def boot(self, number: int) -> int:
        """Return which life of the process this is, or the last was; 0 before the first."""
        return self._places[number].boot

    def started_us(self, number: int) -> int:
        """Return when the process began that is there now, or was there last."""
        return self._places[number].started_us

    def node(self, number: int) -> Node | None:
        """Return the node that runs at a place now, if one does."""
        return self._places[number].node

    def clock(self, number: int) -> Clock:
        """Return a node's clock."""
        return self._places[number].clock

    def running(self) -> list[tuple[int, Node]]:
        """Return the nodes that run now, by number."""
        return [(number, place.node) for number, place in enumerate(self._places) if place.node is not None]

    def number_of(self, node_id: str) -> int:
        """Undo `id_of`."""
        return self._numbers_by_id[node_id]

    def reaches(self, a: int, b: int) -> bool:
        """Whether the network lets two nodes talk now, both ways."""
        return self.network.connects(a, b, self.now_us)

    def run(self, until_s: float) -> None:
        """Let everything happen that is due before or at `until_s`."""
        until_us = to_us(until_s)
        heap = self._heap
        with _collector_paused():
            while heap and heap[0][0] <= until_us:
                self.now_us, _, happen = heapq.heappop(heap)
                happen()
        self.now_us = until_us

    # -- for what else moves in this world ------------------------------------------------------------------------

    def later(self, at_us: int, happen: Callable[[], None]) -> None:
        """Have `happen` called at a time; of several at one time the first scheduled comes first."""
        self._sequence += 1
        heapq.heappush(self._heap, (at_us, self._sequence, happen))

    def call(self, number: int, what: bytes, verb: Callable[[Node, float], tuple[T, Sequence[Effect]]]) -> T:
        """Run `verb` on a node that runs, carry out what it says, and return its result; `what` is for the trace."""
        place = self._places[number]
        assert place.node is not None
        self._note(what, number)
        result, effects = verb(place.node, place.clock.now_s(self.now_us))
        place.node.touch()
        self._perform(number, effects)
        self._arm(number, place)
        return result

    def tell(self, number: int, what: bytes, verb: Callable[[Node, float], Sequence[Effect]]) -> None:
        """Run a `verb` that has no result."""
        self.call(number, what, lambda node, now: (None, verb(node, now)))

    # -- processes ------------------------------------------------------------------------------------------------

    def _plan(self, faults: Faults, nodes: int) -> None:
        """Schedule the ends of processes, and their new beginnings."""
        for crash in faults.crashes:
            self.later(to_us(crash.at_s), partial(self._stop, crash.node))
        for leave in faults.leaves:
            self.later(to_us(leave.at_s), partial(self._leave, leave.node))
        for restart in faults.restarts:
            self.later(to_us(restart.at_s), partial(self._stop, restart.node))
            self.start(restart.node, restart.at_s + restart.down_s, memory=restart.memory)
        for place, churn in enumerate(faults.churn):
            random = Random(f"{self._seed}/churn/{place}")
            these = absences(churn, nodes=range(FIRST + 1, nodes), random=random)
            self.absences += these
            for gone in these:
                end = self._leave if gone.leaves else self._stop
                self.later(to_us(gone.from_s), partial(end, gone.node))
                self.start(gone.node, gone.until_s, memory=gone.memory)

    def _start(self, number: int, memory: bool) -> None:
        place = self._places[number]
        if place.node is not None:
            return
        place.boot += 1
        place.started_us = self.now_us
        self._note(b"start", number)
        place.node = self._make(number, place.boot)
        for other, generation in self.network.streams.reset(number) if place.boot > 1 else ():
            told_us = self.now_us + self.network.round_trip_us(number, other)
            self.later(told_us, partial(self._link_lost, other, number, generation))
        now = place.clock.now_s(self.now_us)
        for info in place.kept if memory else ():
            reservation = place.node.reserve(info, now)
            if reservation is not None:
                place.node.commit(reservation, now, *self.places_of_blocks.get(info.key, (None, None)))
        self._perform(number, place.node.on_time(now))
        self._arm(number, place)

    def _stop(self, number: int) -> None:
        place = self._places[number]
        if place.node is None:
            return
        self._note(b"stop", number)
        ledger, keys = place.node.ledger, place.node.ledger.keys()
        place.kept = tuple(held.info for key in keys if (held := ledger.get(key)) is not None)
        place.node, place.wakes_us = None, _NEVER

    def _leave(self, number: int) -> None:
        if self.is_running(number):
            self.tell(number, b"leave", lambda node, now: node.leave(now))
            self._stop(number)

    def _make(self, number: int, boot: int) -> Node:
        me = MemberRecord(
            id=self._ids[number],
            boot=boot,
            incarnation=0,
            state=0,
            name=self._ids[number],
            address=address_of(number),
            host_id=self._ids[number],
            zone=self._zones.get(number, ""),
            offered_bytes=self._config.host.capacity_bytes,
        )
        # The first knows nobody when the mesh begins; when it comes back it asks the next, as any node would.
        seeds = () if number == FIRST and boot == 1 else (address_of(FIRST if number != FIRST else FIRST + 1),)
        section = msgspec.structs.replace(self._config.node, join=seeds)
        config = msgspec.structs.replace(self._config, node=section)
        again = f"/{boot}" if boot > 1 else ""
        return Node(config, me, Random(f"{self._seed}/{number}{again}"))

    # -- inputs ---------------------------------------------------------------------------------------------------

    def _datagram(self, number: int, sender: int, data: bytes) -> None:
        place = self._places[number]
        if self._has_stalls:
            until_us = self._stalls.deaf_until(number, self.now_us)
            if until_us > self.now_us:
                place.held += 1
                if place.held <= SOCKET_DATAGRAMS_MAX:
                    self.later(until_us, partial(self._datagram, number, sender, data))
                return
            place.held = 0
        if place.node is not None:
            self._feed(b"datagram", number, place, sender, data)

    def _stream_message(self, number: int, sender: int, generation: int, data: bytes) -> None:
        place = self._places[number]
        if self._has_stalls:
            until_us = self._stalls.deaf_until(number, self.now_us)
            if until_us > self.now_us:
                self.later(until_us, partial(self._stream_message, number, sender, generation, data))
                return
        streams = self.network.streams
        if not streams.arrive(sender, number, generation, len(data), listens=place.node is not None):
            return
        if place.node is None:
            told_us = self.now_us + self.network.round_trip_us(number, sender)
            self.later(told_us, partial(self._link_lost, sender, number, streams.refuse(sender, number)))
            return
        self._feed(b"stream", number, place, sender, data)

    def _link_lost(self, number: int, to: int, generation: int) -> None:
        """Tell a node that its stream broke."""
        if self._has_stalls:
            until_us = self._stalls.deaf_until(number, self.now_us)
            if until_us > self.now_us:
                self.later(until_us, partial(self._link_lost, number, to, generation))
                return
        refused = self.network.streams.is_refused(number, to)
        if self.network.streams.broken(number, to, generation) and self.is_running(number):
            self.tell(number, b"lost", lambda node, now: node.on_link_lost(address_of(to), now, refused=refused))

    def _wake(self, number: int, at_us: int) -> None:
        place = self._places[number]
        if place.node is None or place.wakes_us != at_us:
            return  # the deadline has moved since
        if self._has_stalls:
            # When a node goes on, what has arrived comes before its timers, as in a shell that drains first.
            until_us = self._stalls.frozen_until(number, self.now_us)
            if until_us > self.now_us:
                place.wakes_us = until_us + 1
                self.later(until_us + 1, partial(self._wake, number, until_us + 1))
                return
        self._note(b"wake", number)
        place.wakes_us = _NEVER
        self._own_verdict = True
        self._perform(number, place.node.on_time(place.clock.now_s(self.now_us)))
        self._own_verdict = False
        self._arm(number, place)

    def _feed(self, what: bytes, number: int, place: _Place, sender: int, data: bytes) -> None:
        assert place.node is not None
        self._note(what, number, data)
        sender_id = self._ids[sender]
        message = decode_untrusted(data, peer=sender_id)
        effects = place.node.on_message(sender_id, message, place.clock.now_s(self.now_us))
        if effects:  # an answer to a ping, or nothing, as nearly always at rest
            self._perform(number, effects)
        self._arm(number, place)

    # -- effects --------------------------------------------------------------------------------------------------

    def _perform(self, number: int, effects: Sequence[Effect]) -> None:
        """Do what a shell would; what concerns logs has no part in this world."""
        if not effects:
            return
        leaves_us = self._stalls.mute_until(number, self.now_us) if self._has_stalls else self.now_us
        for effect in effects:
            if isinstance(effect, SendDatagram):
                self._send_datagram(number, effect, leaves_us)
                continue
            match effect:
                case SendStream(address=address, message=message):
                    self._send_stream(number, self._numbers[address], encode(message), leaves_us)
                case MemberChanged(record=record):
                    if self._watch is not None:
                        subject = self._numbers_by_id[record.id]
                        own = self._own_verdict
                        self._watch(Change(self.now_us, number, subject, record.state, own, record.boot))
                case StartTransfer():
                    if self.on_transfer is not None:
                        self.on_transfer(number, effect)
                case StopTransfer(transfer=transfer):
                    if self.on_stop is not None:
                        self.on_stop(number, transfer)
                case Acquired():
                    if self.on_acquired is not None:
                        self.on_acquired(number, effect)
                case _:
                    pass

    def _send_datagram(self, number: int, effect: SendDatagram, leaves_us: int) -> None:
        data = encode(effect.packet)
        size = len(data)
        assert size <= DATAGRAM_BYTES_MAX, f"datagram of {size} bytes from {id_of(number)}"
        traffic, to = self.traffic, self._numbers[effect.address]
        traffic.datagrams += 1
        traffic.datagram_bytes += size
        self.bytes_sent[number] += size
        self.bytes_sent_to[to] += size
        for arrives_us in self.network.datagram(number, to, leaves_us):
            self.later(arrives_us, partial(self._datagram, to, number, data))

    def _send_stream(self, number: int, to: int, data: bytes, leaves_us: int) -> None:
        self.traffic.stream_messages += 1
        self.traffic.stream_bytes += len(data)
        self.bytes_sent[number] += len(data)
        self.bytes_sent_to[to] += len(data)
        sent = self.network.stream(number, to, leaves_us, len(data))
        if sent is None:
            return
        if sent.breaks:
            self.later(sent.at_us, partial(self._link_lost, number, to, sent.generation))
        else:
            self.later(sent.at_us, partial(self._stream_message, to, number, sent.generation, data))

    def _arm(self, number: int, place: _Place) -> None:
        """See to it that the node wakes at its deadline, rounded up; one that has passed means as soon as possible."""
        assert place.node is not None
        deadline = place.node.next_deadline()
        if deadline == place.deadline_s and place.wakes_us > self.now_us:  # as after most messages
            return
        place.deadline_s = deadline
        if deadline == inf:
            place.wakes_us = _NEVER
            return
        at_us = max(self.now_us + 1, place.clock.world_us(deadline))
        if at_us != place.wakes_us:
            place.wakes_us = at_us
            self.later(at_us, partial(self._wake, number, at_us))

    def _note(self, what: bytes, number: int, data: bytes = b"") -> None:
        self.events += 1
        untraced = self._untraced
        untraced += b"%d %s %d %d %b" % (self.now_us, what, number, len(data), data)
        if len(untraced) > _TRACED_BYTES:
            self._trace.update(untraced)
            untraced.clear()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the collector of cycles from walking millions of records that are no garbage; cores make no cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def id_of(number: int) -> str:
    """Return the id of a node by its number."""
    return f"node-{number:04d}"


def address_of(number: int) -> str:
    """Return the address of a node by its number."""
    return f"{id_of(number)}:7710"
