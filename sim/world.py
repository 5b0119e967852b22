"""Many real nodes on one virtual clock: a heap of (time, sequence, node, input), and nothing else that moves.

Every node is the `p2pkv.node.Node` that the agent drives, by the same verbs; every message is really encoded and
decoded. Time is in whole microseconds, ties are broken by the order of scheduling, and all chance comes from `Random`
objects seeded from one number. So a seed and a revision of the code are a run, and `trace_hash` says whether two runs
were the same one.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import ceil, inf
from random import Random
from typing import Final, TypeAlias, TypeVar

import msgspec

from p2pkv.config import Config
from p2pkv.effects import MemberChanged, SendDatagram, SendStream
from p2pkv.fetch import StartTransfer
from p2pkv.node import Acquired, Effect, Node
from p2pkv.sim.faults import SECOND_US, Faults, to_us
from p2pkv.sim.network import Network
from p2pkv.sim.stalls import Stalls
from p2pkv.transport.wire import DATAGRAM_BYTES_MAX, AnyMessage, MemberRecord, decode_untrusted, encode

T = TypeVar("T")

FIRST: Final = 0
"""The node that all others join through."""
SOCKET_DATAGRAMS_MAX: Final = 256
"""Datagrams that wait in the socket of a node that does not read; further ones are lost. Linux keeps 208 KiB by default,
and counts 768 bytes for one of ours."""


@dataclass(frozen=True, slots=True)
class _Start:
    """The process of a node begins."""


@dataclass(frozen=True, slots=True)
class _Stop:
    """It is gone without a word."""


@dataclass(frozen=True, slots=True)
class _Wake:
    """Its deadline has come."""


@dataclass(frozen=True, slots=True)
class _Datagram:
    """A datagram arrives."""

    sender: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _StreamMessage:
    """A message arrives over a stream, unless that broke."""

    sender: int
    generation: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _LinkLost:
    """The node is told that its stream to an address broke."""

    address: str


@dataclass(frozen=True, slots=True)
class _Call:
    """Something outside of the nodes happens."""

    happen: Callable[[], None]


_Input: TypeAlias = _Start | _Stop | _Wake | _Datagram | _StreamMessage | _LinkLost | _Call


@dataclass(frozen=True, slots=True)
class Change:
    """At `at_us` the node numbered `observer` changed its mind about the one numbered `subject`."""

    at_us: int
    observer: int
    subject: int
    state: int
    own: bool
    """Whether its own timers made it do so, and not a message: a verdict of its own."""


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


class World:
    """`nodes` places for nodes, numbered from 0. Nothing happens but in `run`."""

    def __init__(
        self,
        *,
        nodes: int,
        seed: int,
        config: Config,
        faults: Faults,
        watch: Callable[[Change], None] = lambda _: None,
    ) -> None:
        """Lay out the world; `watch` is called with every change of a belief, as it happens."""
        self.now_us = 0
        self.traffic = Traffic()
        self.events = 0
        self.on_transfer: Callable[[int, StartTransfer], None] | None = None
        """Called to move blocks to a node; without it every transfer is lost."""
        self.on_acquired: Callable[[int, Acquired], None] | None = None
        """Called when an engine's acquire is over."""
        self._seed = seed
        self._config = config
        self._watch = watch
        self._nodes: list[Node | None] = [None] * nodes
        self._wakes_us: list[float] = [inf] * nodes
        self._numbers = {address_of(number): number for number in range(nodes)}
        self._numbers_by_id = {id_of(number): number for number in range(nodes)}
        self._network = Network(faults, Random(f"{seed}/network"), is_running=self.is_running)
        self._heap: list[tuple[int, int, int, _Input]] = []
        self._sequence = 0
        self._trace = blake2b(digest_size=16)
        self._stalls = Stalls(faults)
        self._held = [0] * nodes
        for crash in faults.crashes:
            self._schedule(to_us(crash.at_s), crash.node, _Stop())

    @property
    def size(self) -> int:
        """Places for nodes, whether one runs there or not."""
        return len(self._nodes)

    @property
    def trace_hash(self) -> str:
        """Digest of all that happened so far: each input of each node, its time and its bytes."""
        return self._trace.hexdigest()

    def start(self, number: int, at_s: float) -> None:
        """Have a node's process begin."""
        self._schedule(to_us(at_s), number, _Start())

    def is_running(self, number: int) -> bool:
        """Whether the process is there now."""
        return self._nodes[number] is not None

    def running(self) -> list[tuple[int, Node]]:
        """Return the nodes that run now, by number."""
        return [(number, node) for number, node in enumerate(self._nodes) if node is not None]

    def number_of(self, node_id: str) -> int:
        """Undo `id_of`."""
        return self._numbers_by_id[node_id]

    def reaches(self, a: int, b: int) -> bool:
        """Whether the network lets two nodes talk now, both ways."""
        return self._network.connects(a, b, self.now_us)

    def run(self, until_s: float) -> None:
        """Let everything happen that is due before or at `until_s`."""
        until_us = to_us(until_s)
        while self._heap and self._heap[0][0] <= until_us:
            self.now_us, _, number, event = heapq.heappop(self._heap)
            if not self._hold(number, event):
                self._happen(number, event)
        self.now_us = until_us

    # -- for what else moves in this world ----------------------------------------------------------------------

    def later(self, at_us: int, happen: Callable[[], None]) -> None:
        """Have `happen` called at a time; of several at one time the first scheduled comes first."""
        self._schedule(at_us, FIRST, _Call(happen))

    def call(self, number: int, what: bytes, verb: Callable[[Node, float], tuple[T, Sequence[Effect]]]) -> T:
        """Run `verb` on a node that runs, carry out what it says, and return its result; `what` is for the trace."""
        node = self._nodes[number]
        assert node is not None
        self._note(what, number)
        result, effects = verb(node, self.now_us / SECOND_US)
        self._perform(number, tuple(effects), own=False)
        self._arm(number, node)
        return result

    def tell(self, number: int, what: bytes, verb: Callable[[Node, float], Sequence[Effect]]) -> None:
        """Run a `verb` that has no result."""
        self.call(number, what, lambda node, now: (None, verb(node, now)))

    # -- inside -------------------------------------------------------------------------------------------------

    def _schedule(self, at_us: int, number: int, event: _Input) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at_us, self._sequence, number, event))

    def _hold(self, number: int, event: _Input) -> bool:
        """Keep an input from a node that cannot take it now, for later; say whether that was done.

        When a node goes on, what has arrived comes before its timers, as in a shell that drains first.
        """
        match event:
            case _Wake():
                until_us = self._stalls.frozen_until(number, self.now_us)
                if until_us > self.now_us and self._wakes_us[number] == self.now_us:
                    self._wakes_us[number] = until_us + 1
                    self._schedule(until_us + 1, number, event)
                return until_us > self.now_us
            case _Datagram() | _StreamMessage() | _LinkLost():
                until_us = self._stalls.deaf_until(number, self.now_us)
                if until_us <= self.now_us:
                    self._held[number] = 0
                    return False
                if isinstance(event, _Datagram):
                    self._held[number] += 1
                    if self._held[number] > SOCKET_DATAGRAMS_MAX:
                        return True
                self._schedule(until_us, number, event)
                return True
            case _Start() | _Stop() | _Call():
                return False

    def _happen(self, number: int, event: _Input) -> None:
        node = self._nodes[number]
        now = self.now_us / SECOND_US
        effects: tuple[Effect, ...] = ()
        match event:
            case _Start():
                assert node is None
                self._note(b"start", number)
                node = self._nodes[number] = self._make(number)
                effects = node.on_time(now)
            case _Stop():
                self._note(b"stop", number)
                self._nodes[number] = None
                return
            case _Wake():
                if node is None or self._wakes_us[number] != self.now_us:
                    return  # the deadline has moved since
                self._note(b"wake", number)
                self._wakes_us[number] = inf
                effects = node.on_time(now)
            case _Datagram(sender=sender, data=data):
                if node is None:
                    return
                self._note(b"datagram", number, data)
                effects = node.on_message(id_of(sender), self._decode(sender, data), now)
            case _StreamMessage(sender=sender, generation=generation, data=data):
                if not self._network.stream_delivers(sender, number, generation):
                    return
                if node is None or not self.reaches(sender, number):
                    told_us = self._network.break_stream(sender, number, self.now_us)
                    self._schedule(told_us, sender, _LinkLost(address_of(number)))
                    return
                self._note(b"stream", number, data)
                effects = node.on_message(id_of(sender), self._decode(sender, data), now)
            case _LinkLost(address=address):
                if node is None:
                    return
                self._note(b"lost", number, address.encode())
                effects = node.on_link_lost(address, now)
            case _Call(happen=happen):
                happen()
                return
        assert node is not None
        self._perform(number, effects, own=isinstance(event, _Wake))
        self._arm(number, node)

    def _perform(self, number: int, effects: tuple[Effect, ...], *, own: bool) -> None:
        """Do what a shell would; blocks are moved by whoever asked to be called for that."""
        leaves_us = self._stalls.mute_until(number, self.now_us)
        for effect in effects:
            match effect:
                case SendDatagram(address=address, packet=packet):
                    data = encode(packet)
                    assert len(data) <= DATAGRAM_BYTES_MAX, f"datagram of {len(data)} bytes from {id_of(number)}"
                    self.traffic.datagrams += 1
                    self.traffic.datagram_bytes += len(data)
                    to = self._numbers[address]
                    arrives_us = self._network.datagram(number, to, leaves_us)
                    if arrives_us is not None:
                        self._schedule(arrives_us, to, _Datagram(number, data))
                case SendStream(address=address, message=message):
                    data = encode(message)
                    self.traffic.stream_messages += 1
                    self.traffic.stream_bytes += len(data)
                    to = self._numbers[address]
                    arrives_us, generation = self._network.stream(number, to, leaves_us)
                    self._schedule(arrives_us, to, _StreamMessage(number, generation, data))
                case MemberChanged(record=record):
                    subject = self._numbers_by_id[record.id]
                    self._watch(Change(self.now_us, number, subject, record.state, own))
                case StartTransfer() if self.on_transfer is not None:
                    self.on_transfer(number, effect)
                case Acquired() if self.on_acquired is not None:
                    self.on_acquired(number, effect)
                case _:
                    pass

    def _arm(self, number: int, node: Node) -> None:
        """See to it that the node wakes at its deadline, rounded up; one that has passed means as soon as possible."""
        deadline = node.next_deadline()
        at_us = inf if deadline == inf else max(self.now_us + 1, ceil(deadline * SECOND_US))
        if at_us != self._wakes_us[number]:
            self._wakes_us[number] = at_us
            if at_us < inf:
                self._schedule(int(at_us), number, _Wake())

    def _make(self, number: int) -> Node:
        me = MemberRecord(
            id=id_of(number),
            boot=1,
            incarnation=0,
            state=0,
            name=id_of(number),
            address=address_of(number),
            host_id=id_of(number),
            offered_bytes=self._config.host.capacity_bytes,
        )
        join = () if number == FIRST else (address_of(FIRST),)
        section = msgspec.structs.replace(self._config.node, join=join)
        config = msgspec.structs.replace(self._config, node=section)
        return Node(config, me, Random(f"{self._seed}/{number}"))

    def _decode(self, sender: int, data: bytes) -> AnyMessage:
        return decode_untrusted(data, peer=id_of(sender))

    def _note(self, what: bytes, number: int, data: bytes = b"") -> None:
        self.events += 1
        self._trace.update(b"%d %s %d %d " % (self.now_us, what, number, len(data)))
        self._trace.update(data)


def id_of(number: int) -> str:
    """Return the id of a node by its number."""
    return f"node-{number:04d}"


def address_of(number: int) -> str:
    """Return the address of a node by its number."""
    return f"{id_of(number)}:7710"
