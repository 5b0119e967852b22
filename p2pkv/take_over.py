"""Taking the place of a daemon that runs: its blocks are copied out of its memory while it still serves, then it is told to end.

    connect -> its memory stays as it is -> copy and compare, those used last first -> it leaves -> its sockets, folders and disk are free

Memory is not inherited but copied, because an arena is sealed against mappings that write, for good (decision 43). So a machine
needs room for both; where it has less, what was used last is copied as far as there is room. Nothing here runs beside an event loop.
"""

import contextlib
import os
import select
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from p2pkv.blocks import KEY_BYTES, BlockInfo, BlockKey
from p2pkv.config import Config, default_socket
from p2pkv.errors import (
    FabricError,
    LocalUseError,
    MalformedMessage,
    P2pkvError,
    PeerError,
    PeerGone,
    TierFull,
    VersionMismatch,
)
from p2pkv.generations import Place as Spot
from p2pkv.hand_over import DRAIN_S, FORMAT, PATIENCE_S
from p2pkv.ledger import Place
from p2pkv.local_wire import (
    LOCAL_MESSAGE_BYTES_MAX,
    LOCAL_PROTOCOL,
    Attach,
    Done,
    Failure,
    FollowRequest,
    HandedBlock,
    HandedReply,
    HandedRequest,
    HandOverReply,
    HandOverRequest,
    LeaveRequest,
    Reply,
    Request,
    Welcome,
    decode_reply_untrusted,
    encode,
)
from p2pkv.slots import PAGE_BYTES, Slot, Slots, chunk_size
from p2pkv.tiers.host import HostTier, available_bytes
from p2pkv.transport.arena import PeerArena
from p2pkv.transport.base import Wanted
from p2pkv.transport.framing import LENGTH_BYTES, FrameReader
from p2pkv.transport.shm import refuse_other_users
from p2pkv.transport.wire import ArenaOffer

R = TypeVar("R", bound=Reply)

ANSWER_S: Final = 10.0
"""How long the daemon before may take for an answer."""
COPY_S: Final = 20.0
"""Of one answer's blocks, before the next question: it gives a successor up that is silent for `PATIENCE_S`."""
ALL_S: Final = 900.0
"""Of all copying; what has not come by then is left. A machine without other work copies a TiB in that time."""
END_S: Final = DRAIN_S + 60.0
"""How long it may take to end: its disk may be slow."""
SPARE_BYTES: Final = 256 * 2**20
"""Of memory, left for the rest of the machine while there are two arenas."""
MEMORY_S: Final = 5.0
"""How long the rest of the memory may take to become free once it has ended."""
_ENDING_S: Final = 1.0
"""Between the last word of a process that was killed and its end."""
_READ_BYTES: Final = 256 * 1024
_BEFORE: Final = "the daemon before"
_CREDENTIALS: Final = struct.Struct("3i")

assert COPY_S + ANSWER_S <= PATIENCE_S


@dataclass(slots=True)
class Inherited:
    """Memory with blocks of the daemon before, each of which has its digest."""

    tier: HostTier
    blocks: list[tuple[BlockInfo, Slot, Place]] = field(default_factory=list)
    """Those used last first."""
    counts: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(("ok", "absent", "corrupt", "no_room"), 0))
    )
    """What came of the blocks that it had."""
    problem: str = ""
    """Why no more came, or empty."""
    took_s: float = 0.0


def host_tier(config: Config, *, filled: bool = True) -> HostTier:
    """Return the memory of a node: what is configured, less a last chunk that would be cut off.

    Raises:
        FabricError: the machine does not have it.
    """
    chunk_bytes = chunk_size(config.host.capacity_bytes, config.host.chunk_bytes)
    return HostTier(
        config.host.capacity_bytes // chunk_bytes * chunk_bytes,
        huge_pages=config.host.huge_pages,
        numa_node=config.host.numa_node,
        filled=filled,
    )


def take_over(config: Config) -> Inherited | None:
    """Take over from the daemon that serves `node.socket`, which has ended when this returns; None if there is none.

    Whatever it has and says, what comes of it is fewer blocks.

    Raises:
        LocalUseError: it is another user's, speaks another local protocol, or does not end. It serves on, if it can.
    """
    began = time.monotonic()
    before = Predecessor.find(Path(config.node.socket) if config.node.socket else default_socket())
    if before is None:
        return None
    inherited: Inherited | None = None
    problem = ""
    try:
        try:
            count = before.begin()
            inherited = Inherited(host_tier(config, filled=False))
            inherit(before, count, inherited, _slots(config))
        except (PeerError, FabricError) as exc:
            problem = str(exc)
        before.follow(handing_over=inherited is not None)
        before.wait_ended()
    except BaseException:
        if inherited is not None:
            inherited.tier.close()
        raise
    finally:
        before.close()
    if inherited is None:
        inherited = Inherited(host_tier(config))
    else:
        _wait_for_memory(inherited.tier)
    inherited.problem = inherited.problem or problem
    inherited.took_s = time.monotonic() - began
    return inherited


class _Ended(Exception):
    """The daemon has ended while it was being connected to."""


class Predecessor:
    """A connection to the daemon before."""

    def __init__(self, connection: socket.socket, path: Path) -> None:
        """Use `find`."""
        self._socket = connection
        self._path = path
        self._reader = FrameReader(peer=_BEFORE, frame_bytes_max=LOCAL_MESSAGE_BYTES_MAX)
        self._descriptors: list[int] = []
        self.pid: Final = _pid(connection)
        self._process = -1
        self.is_there = True
        """Whether it has answered so far."""
        self._offer: ArenaOffer | None = None
        self._arena: PeerArena | None = None

    @classmethod
    def find(cls, path: Path) -> "Predecessor | None":
        """Return a connection to the daemon at `path`, None if nobody answers there.

        Raises:
            LocalUseError: it is another user's, of another PID namespace, or speaks another local protocol.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(ANSWER_S)
        try:
            connection.connect(str(path))
        except OSError as exc:
            connection.close()
            if isinstance(exc, FileNotFoundError | ConnectionRefusedError):
                return None
            raise LocalUseError(
                f"cannot take over from the daemon at {path} ({exc.strerror or exc})",
                hint="stop it, and start without it",
            ) from exc
        before = cls(connection, path)
        try:
            before._attach()
        except _Ended:
            before.close()
            return None
        except BaseException:
            before.close()
            raise
        return before

    @property
    def arena(self) -> PeerArena:
        """Its memory, which stays mapped when it is gone.

        Raises:
            MalformedMessage: it is not what it was announced to be.
        """
        if self._arena is None:
            assert self._offer is not None
            self._arena = PeerArena(self._descriptors.pop(), self._offer, peer=_BEFORE)
        return self._arena

    def begin(self) -> int:
        """Have its memory stay as it is; return how many blocks it has.

        Raises:
            PeerError: it does not hand over, or not in our format.
            LocalUseError: not to us.
        """
        reply = self._ask(HandOverRequest(FORMAT), HandOverReply)
        if reply.format != FORMAT:
            raise VersionMismatch(f"it hands over in format {reply.format}, this program takes {FORMAT}", peer=_BEFORE)
        return reply.blocks

    def blocks(self, first: int) -> HandedReply:
        """Return some of its blocks from number `first` on.

        Raises:
            P2pkvError: it is gone, or has given us up.
        """
        return self._ask(HandedRequest(first), HandedReply)

    def follow(self, *, handing_over: bool) -> None:
        """Have it end; without `handing_over` as `p2pkv leave` does. One that is gone already has."""
        if self.is_there:
            with contextlib.suppress(PeerGone, MalformedMessage):
                self._ask(FollowRequest() if handing_over else LeaveRequest(), Done)
            return
        anew = Predecessor.find(self._path)  # it hung up on a question that it does not know, or is gone
        if anew is not None:
            anew.follow(handing_over=False)
            anew.close()

    def wait_ended(self) -> None:
        """Wait until its process is gone, and sockets, folders and disk are free.

        Raises:
            LocalUseError: it does not end.
        """
        if self._process >= 0 and not select.select([self._process], [], [], END_S)[0]:
            raise LocalUseError(
                f"the daemon before (pid {self.pid}) does not end within {END_S:g} s",
                hint="find out what it waits for, a disk perhaps, before you kill it",
            )

    def close(self) -> None:
        """Hang up. What it still does then it does as if we had never been there."""
        self._socket.close()
        for descriptor in (*self._descriptors, self._process):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptors, self._process, self._arena = [], -1, None

    # -- inside -------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        try:
            refuse_other_users(self._socket, peer=_BEFORE)
        except PeerGone as exc:
            raise LocalUseError(f"the daemon at {self._path} is another user's", hint="choose with --socket") from exc
        try:
            self._process = os.pidfd_open(self.pid)
        except ProcessLookupError as exc:
            raise _Ended from exc
        except OSError as exc:
            raise LocalUseError(
                f"cannot see the process of the daemon at {self._path}",
                hint="take over from within its PID namespace (its container), or stop it first",
            ) from exc
        try:
            welcome = self._ask(Attach(LOCAL_PROTOCOL, f"successor, pid {os.getpid()}", 0), Welcome)
        except (PeerGone, MalformedMessage) as exc:
            if select.select([self._process], [], [], _ENDING_S)[0]:
                raise _Ended from exc
            raise LocalUseError(f"no p2pkv daemon is at {self._path} ({exc})", hint="choose with --socket") from exc
        if not self._descriptors:
            raise LocalUseError(f"no p2pkv daemon is at {self._path}", hint="choose with --socket")
        self._offer = ArenaOffer(0, welcome.arena_bytes, welcome.table_bytes)

    def _ask(self, request: Request, kind: type[R]) -> R:
        """Return the answer to a question.

        Raises:
            PeerGone, MalformedMessage: there is none, or none that makes sense; `is_there` is False from then on.
            LocalUseError: what the daemon says instead.
        """
        try:
            payload = encode(request)
            self._socket.sendall(len(payload).to_bytes(LENGTH_BYTES, "little") + payload)
            while (answer := self._reader.next_frame()) is None:
                data, arrived, _, _ = socket.recv_fds(self._socket, _READ_BYTES, 1)
                self._descriptors += arrived
                if not data:
                    raise PeerGone("it has hung up", peer=_BEFORE)
                self._reader.feed(data)
            reply = decode_reply_untrusted(answer, peer=_BEFORE)
            if not isinstance(reply, kind | Failure):
                raise MalformedMessage(f"{type(reply).__name__} in answer to {type(request).__name__}", peer=_BEFORE)
        except OSError as exc:
            self.is_there = False
            raise PeerGone(f"no answer ({exc.strerror or exc})", peer=_BEFORE) from exc
        except (PeerGone, MalformedMessage):
            self.is_there = False
            raise
        if isinstance(reply, Failure):
            raise LocalUseError(reply.message, hint=reply.hint)
        return reply


def inherit(before: Predecessor, count: int, into: Inherited, slots: Slots) -> None:
    """Copy what the daemon before has, those used last first, as far as there is room and time.

    Each block has its digest or is left out. It does not matter if the daemon dies meanwhile: what it has named is still there.
    """
    arena, first, limit = before.arena, 0, time.monotonic() + ALL_S
    if count > arena.capacity_bytes // PAGE_BYTES:
        into.problem = f"{count} blocks in {arena.capacity_bytes} bytes make no sense"
        return
    copying = _Copying(arena, into, slots)
    while first < count and not into.problem:
        try:
            reply = before.blocks(first)
        except P2pkvError as exc:
            into.problem = str(exc)
            return
        if not first < reply.next <= count:
            into.problem = f"block {reply.next} after block {first} makes no sense"
            return
        first, until = reply.next, min(limit, time.monotonic() + COPY_S)
        for block in reply.blocks:
            if time.monotonic() > until:
                into.problem = into.problem or "copying takes too long"
            into.counts[copying.take(block)] += 1
    if into.problem:
        into.counts["no_room"] += count - first


class _Copying:
    """Copies blocks out of one arena into another, of which `slots` are the books."""

    def __init__(self, arena: PeerArena, into: Inherited, slots: Slots) -> None:
        self._arena, self._into, self._slots = arena, into, slots
        self._seen = set[bytes]()
        self._chunks = set[int]()
        """Those that have their memory."""

    def take(self, block: HandedBlock) -> str:
        """Copy one block to a place of its own, and say what came of it."""
        spot = Spot(block.offset, block.generation)
        if block.key in self._seen or block.length % block.segment_bytes or not self._arena.holds(spot, block.length):
            return "absent"
        self._seen.add(block.key)
        slot = self._slot(block.length)
        if slot is None:
            return "no_room"
        body = self._into.tier.begin(slot, block.length)
        wanted = Wanted(0, block.length, block.segment_bytes, block.digest, body)
        (outcome,) = self._arena.copy_verified([(wanted, spot)])
        self._into.tier.seal(slot)
        if outcome != "ok":
            self._slots.give_back(slot)
            return outcome
        info = BlockInfo(BlockKey(block.key), block.namespace, block.length, block.segment_bytes, block.digest)
        depth = block.depth if block.depth >= 0 else None
        parent = BlockKey(block.parent) if len(block.parent) == KEY_BYTES else None
        self._into.blocks.append((info, slot, (depth, parent)))
        return "ok"

    def _slot(self, length: int) -> Slot | None:
        """Return a place that has its memory, if there is one."""
        if self._into.problem:
            return None
        try:
            slot = self._slots.take(self._slots.size_class(length))
        except TierFull:
            return None
        if slot is None:
            return None
        chunk, chunk_bytes = self._slots.chunk_of(slot), self._slots.chunk_bytes
        if chunk not in self._chunks:
            if available_bytes() - SPARE_BYTES < chunk_bytes:
                self._slots.give_back(slot)
                self._into.problem = "no memory for more while there are two arenas"
                return None
            self._into.tier.fill_part(chunk * chunk_bytes, chunk_bytes)
            self._chunks.add(chunk)
        return slot


def _slots(config: Config) -> Slots:
    """Return the books of an empty arena, as those of the node will be."""
    return Slots(capacity_bytes=config.host.capacity_bytes, chunk_bytes=config.host.chunk_bytes)


def _wait_for_memory(tier: HostTier) -> None:
    """Wait a little for what engines still hold of the memory before; who makes the node says it if that was in vain."""
    until = time.monotonic() + MEMORY_S
    while tier.arena_bytes - tier.taken_bytes() > available_bytes() and time.monotonic() < until:
        time.sleep(0.05)


def _pid(connection: socket.socket) -> int:
    """Return the process that listens at the other end; 0 if it is in another PID namespace."""
    pid, _, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid)
