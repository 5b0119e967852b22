"""The trio half of a node's core: feeds it, carries its effects out, fires its timers, decides nothing.

There is one `Runner` per node and it alone touches the core. Its calls do not wait, so each runs to completion
between two checkpoints: no lock is needed and no cancellation can fall into the middle. The timer loop also owns the
gossip socket, and after a stall it listens before it lets timers fire, or else every peer that answered in time would
be suspected for our own slowness.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import trio

from p2pkv.acquires import Acquired
from p2pkv.assemblies import CloseSlot, OpenSlot, PartsArrived
from p2pkv.demotions import WriteToDisk
from p2pkv.disk_moves import CloseDisk
from p2pkv.effects import MemberChanged, Note, Resolve, SendDatagram, SendStream
from p2pkv.errors import MalformedMessage, PeerError, PeerRefused, SealRefused, VersionMismatch
from p2pkv.fetch import StartTransfer, StopTransfer
from p2pkv.logs import Log
from p2pkv.mesh.members import MemberState, is_usable
from p2pkv.metrics import Metrics
from p2pkv.neighbours import MapArena
from p2pkv.node import Effect, Located, Node
from p2pkv.own_keyring import StoreKeyring
from p2pkv.part_pulls import StartPull, StopPull
from p2pkv.promotions import Promoted, ReadFromDisk
from p2pkv.rotation import RoundEnded
from p2pkv.run_reads import GetRun
from p2pkv.run_writes import PutRun
from p2pkv.transport.base import DatagramSocket
from p2pkv.transport.seal import DatagramSeal, NoSeal
from p2pkv.transport.streams import ControlStreams
from p2pkv.transport.subkeys import sender_digest
from p2pkv.transport.wire import Ack, AnyMessage, LeaseRequest, Packet, decode_untrusted, encode

T = TypeVar("T")

_COMPLAINT_PERIOD_S: Final = 1.0
"""What is refused is always counted, and logged at most this often."""

_LOOP_REST_S: Final = 0.001
"""Shortest time between two timer rounds, so that a deadline in the past cannot spin the loop."""


def _ignore(_: object) -> None:
    """Stand in until the agent says who carries out transfers and who waits for acquires."""


class Runner:
    """Owns one `Node`."""

    def __init__(
        self,
        node: Node,
        *,
        datagrams: DatagramSocket,
        streams: ControlStreams,
        metrics: Metrics,
        log: Log,
        seal: DatagramSeal | NoSeal | None = None,
    ) -> None:
        """`seal` is what datagrams are sealed with; None: nothing is."""
        self._node = node
        self._datagrams = datagrams
        self._streams = streams
        self._metrics = metrics
        self._log = log
        self._seal = seal or NoSeal()
        self._timer: trio.CancelScope | None = None
        self._timekeeper: trio.lowlevel.Task | None = None
        """Whoever sets the timer anew, while there is nothing to set."""
        self._complain_at = 0.0
        self.on_transfer: Callable[[StartTransfer], None] = _ignore
        """Called to start moving blocks."""
        self.on_ask: Callable[[str, LeaseRequest, float], bool] = lambda _address, _request, _until: False
        """Called with a question whose blocks may come right behind its answer; says whether it was put where they can."""
        self.on_stop: Callable[[int], None] = _ignore
        """Called to break off a transfer."""
        self.on_resolve: Callable[[str], None] = _ignore
        """Called to look up a source of seeds."""
        self.on_acquired: Callable[[Acquired], None] = _ignore
        """Called when an engine's acquire is over."""
        self.on_map: Callable[[str], None] = _ignore
        """Called to map the arena of a peer on this machine."""
        self.on_located: Callable[[Located], None] = _ignore
        """Called when owners have been asked for a key."""
        self.on_store: Callable[[StoreKeyring], None] = _ignore
        """Called to put a changed keyring on disk."""
        self.on_ack: Callable[[int], None] = _ignore
        """Called with the number of each ping that was answered, whoever sent it."""
        self.on_round: Callable[[RoundEnded], None] = _ignore
        """Called when a round of keys is over."""
        self.on_slot: Callable[[OpenSlot | CloseSlot], None] = _ignore
        """Called to mark a slot as being written, or as not."""
        self.on_pull: Callable[[StartPull | StopPull], None] = _ignore
        """Called to begin to bring parts of blocks, or to stop."""
        self.on_disk: Callable[[ReadFromDisk | WriteToDisk | CloseDisk], None] = _ignore
        """Called to move a block between memory and disk, or to let the disk be."""
        self.on_object: Callable[[PutRun | GetRun], None] = _ignore
        """Called to put a run of blocks into the object store, or to get one."""
        self.on_promoted: Callable[[Promoted], None] = _ignore
        """Called when what a part of the shell wanted from the disk is in memory."""
        self.on_parts: Callable[[PartsArrived], None] = _ignore
        """Called when an engine may have something to look at."""

    # -- calls of other tasks -----------------------------------------------------------------------------------

    def call(self, verb: Callable[[Node, float], tuple[T, Sequence[Effect]]]) -> T:
        """Run `verb` on the core, carry out what it says, and return its result. Does not wait.

        A verb that raises has changed nothing and its error reaches the caller.
        """
        try:
            result, effects = verb(self._node, trio.current_time())
        finally:
            self._node.touch()
        self._perform(effects)
        return result

    def tell(self, verb: Callable[[Node, float], Sequence[Effect]]) -> None:
        """Run a `verb` that has no result."""
        effects = verb(self._node, trio.current_time())
        self._node.touch()
        self._perform(effects)

    def ask(self, verb: Callable[[Node], T]) -> T:
        """Run a `verb` that changes nothing."""
        return verb(self._node)

    def deliver(self, sender: str, message: AnyMessage) -> None:
        """Take a message that came over a stream from the greeted `sender`."""
        if isinstance(message, Packet) and isinstance(message.body, Ack):
            self.on_ack(message.body.seq)
        self.tell(lambda node, now: node.on_message(sender, message, now))

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry out what another part of the shell has to say."""
        self._perform(effects)

    def link_lost(self, address: str, error: PeerError) -> None:
        """Take that a control stream failed."""
        self._metrics.links_lost.inc()
        if isinstance(error, SealRefused):
            self.seal_refused("stream", error)
        elif isinstance(error, VersionMismatch):
            self._complain("stream refused", error)
        self._log.debug("link lost", address=address, reason=str(error))
        refused = isinstance(error, PeerRefused)
        self.tell(lambda node, now: node.on_link_lost(address, now, reason=str(error), refused=refused))

    # -- the loop -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Receive gossip and fire timers until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_timer)
            while True:
                with trio.CancelScope(deadline=self._next_deadline()) as self._timer:
                    await self._datagrams.wait()
                self._timer = None
                for data, source in self._datagrams.drain():
                    self._take_datagram(data, source)
                self.tell(lambda node, now: node.on_time(now))

    async def _keep_timer(self) -> None:
        """Set the timer anew when something has happened: once for all of it, and behind whoever waits for an answer.

        A fetch of 64 blocks is 128 verbs, and asking every core for its next deadline after each took a third of its time.
        """

        def stop(_: object) -> trio.lowlevel.Abort:
            self._timekeeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            self._timekeeper = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(stop)
            await trio.lowlevel.checkpoint()
            if self._timer is not None:
                self._timer.deadline = self._next_deadline()

    def _next_deadline(self) -> float:
        return max(self._node.next_deadline(), trio.current_time() + _LOOP_REST_S)

    def _take_datagram(self, data: bytes, source: str) -> None:
        self._metrics.datagrams.labels("received").inc()
        try:
            opened, sender = self._seal.open_untrusted(data, peer=source)
            message = decode_untrusted(opened, peer=source)
            if not isinstance(message, Packet):
                raise MalformedMessage(f"{type(message).__name__} in a datagram", peer=source)
            if sender and sender_digest(message.sender) != sender:
                raise SealRefused("sender", peer=source)
        except MalformedMessage as exc:
            self._metrics.malformed.labels("datagram").inc()
            self._complain("malformed datagram", exc)
            return
        except SealRefused as exc:
            self.seal_refused("datagram", exc)
            return
        if isinstance(message.body, Ack):
            self.on_ack(message.body.seq)
        self.tell(lambda node, now: node.on_message(message.sender, message, now))

    def seal_refused(self, channel: str, error: SealRefused) -> None:
        """Count and, now and then, log what was refused because of its seal."""
        self._metrics.seal_refused.labels(channel, error.reason).inc()
        self._complain(f"{channel} refused", error)

    def _complain(self, event: str, error: PeerError) -> None:
        """Log something refused, but not each of a flood: anybody who reaches the port could fill the disk."""
        now = trio.current_time()
        if now >= self._complain_at:
            self._complain_at = now + _COMPLAINT_PERIOD_S
            hint = {"hint": error.hint} if error.hint else {}
            self._log.warning(event, reason=str(error), **hint)

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendDatagram(address=address, packet=packet):
                    self._datagrams.send_bytes(address, self._seal.seal(encode(packet)))
                    self._metrics.datagrams.labels("sent").inc()
                case SendStream(address=address, message=LeaseRequest(direct_bytes=size) as request, until=until) if (
                    size and self.on_ask(address, request, until)
                ):
                    pass
                case SendStream(address=address, message=message, until=until):
                    self._streams.send_nowait(address, message, until)
                case Resolve(source=source):
                    self.on_resolve(source)
                case StartTransfer():
                    self.on_transfer(effect)
                case StopTransfer(transfer=transfer):
                    self.on_stop(transfer)
                case Acquired():
                    self.on_acquired(effect)
                case MapArena(peer=peer):
                    self.on_map(peer)
                case Located():
                    self.on_located(effect)
                case StoreKeyring():
                    self.on_store(effect)
                case RoundEnded():
                    self.on_round(effect)
                case OpenSlot() | CloseSlot():
                    self.on_slot(effect)
                case StartPull() | StopPull():
                    self.on_pull(effect)
                case ReadFromDisk() | WriteToDisk() | CloseDisk():
                    self.on_disk(effect)
                case PutRun() | GetRun():
                    self.on_object(effect)
                case Promoted():
                    self.on_promoted(effect)
                case PartsArrived():
                    self.on_parts(effect)
                case MemberChanged(record=record, before=before):
                    self._seal.expect(record.id, record.boot)
                    known = "unknown" if before is None else MemberState(before).name.lower()
                    state = MemberState(record.state).name.lower()
                    level = self._log.warning if record.state == MemberState.DEAD else self._log.info
                    if before is None and not is_usable(record):  # history, of which a new node hears all
                        level = self._log.debug
                    level("member changed", member=record.name, address=record.address, before=known, now=state)
                case Note(event=event, facts=facts, warning=warning):
                    (self._log.warning if warning else self._log.info)(event, **dict(facts))
        if self._timekeeper is not None:
            keeper, self._timekeeper = self._timekeeper, None
            trio.lowlevel.reschedule(keeper)  # and not by a message to the loop, which is a socket written and read
