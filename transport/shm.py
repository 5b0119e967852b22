"""Block bytes between two nodes of one machine: the receiver copies them out of the owner's arena by itself.

The owner listens on an abstract Unix socket named after its node, so nothing is left behind by `kill -9`, and a node in
another network namespace, a container of its own, is simply not reached. Both ends ask the kernel whose process the
other is and talk to none of another user's. After the greeting the owner sends its arena's descriptor once; from then on
a pull costs one message for any number of blocks, and none if the places came with the lease.
"""

import contextlib
import hashlib
import os
import socket
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from p2pkv.errors import MalformedMessage, PeerGone, PeerTooSlow
from p2pkv.fetch import Outcome
from p2pkv.generations import Place
from p2pkv.transport.arena import PeerArena
from p2pkv.transport.base import OnBlock, Wanted
from p2pkv.transport.bulk_keys import BulkKeys, SharedKeys
from p2pkv.transport.framing import LENGTH_BYTES, FrameReader, frame
from p2pkv.transport.offload import Reports, run_blocking
from p2pkv.transport.placed import places_untrusted
from p2pkv.transport.remaining import Remaining
from p2pkv.transport.sealed_handshake import Rings, greet_as
from p2pkv.transport.wire import ArenaOffer, Hello, Pull, bitmap, decode_untrusted, encode

BATCH_BYTES: Final = 32 * 2**20
"""Asked for, and copied, per trip to a worker thread where places did not come with the lease."""
_GROUP_BYTES: Final = 4 * 2**20
"""Copied by a thread between two looks at generations, and at whether the pull was cancelled: a millisecond."""
_REPORT_S: Final = 0.01
"""How often such a thread tells the event loop: each time costs it as much as a block of 1 MiB."""
_HERE_BYTES: Final = 16 * 2**20
"""Up to here a pull is copied where the event loop is, one such pull at a time; some milliseconds in all."""
_TURN_BYTES: Final = 2 * 2**20
"""Of that between two turns of the loop: half a millisecond. A block that is larger is for a thread."""
_CREDENTIALS: Final = struct.Struct("3i")


def socket_name(cluster: str, node: str) -> str:
    """Return the abstract name of a node's socket; others of the machine can neither list nor remove a file."""
    return "\0p2pkv-" + hashlib.blake2b(f"{cluster}\0{node}".encode(), digest_size=16).hexdigest()


def refuse_other_users(connection: socket.socket | trio.socket.SocketType, *, peer: str) -> None:
    """Ask the kernel who is at the other end.

    Raises:
        PeerGone: a process of another user, which is no node that we share memory with.
    """
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.getuid():
        raise PeerGone(f"another user (uid {uid}) is at the other end", peer=peer)


@dataclass(slots=True)
class _Session:
    stream: trio.SocketStream
    arena: PeerArena
    turn: trio.Lock
    """One question at a time: answers come in order, without a number."""


class ShmTransport:
    """The receiving side. See `p2pkv.transport.base.BulkTransport`; `address` is the owner's `socket_name`."""

    name: Final = "shm"

    def __init__(
        self,
        *,
        hello: Callable[[], Hello],
        connect_timeout_s: float,
        keys: BulkKeys | None = None,
        control_address: Callable[[str], str] = lambda peer: "",  # noqa: ARG005 - asked for by some keys only
    ) -> None:
        """With `keys` both ends prove in their greeting that they belong together; what follows is the kernel's.

        `control_address` says where to ask a peer for a session.
        """
        self._keys = keys or SharedKeys(None)
        self._control_address = control_address
        self._hello = hello
        self._connect_timeout_s = connect_timeout_s
        self._sessions: dict[str, _Session] = {}
        self._opening: dict[str, trio.Lock] = {}
        self._is_copying = False
        """Whether the event loop copies for some pull, so that others are for threads."""

    def path(self, peer: str) -> str:  # noqa: ARG002 - the same for all
        """See `BulkTransport`."""
        return self.name

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        """See `BulkTransport`."""
        fresh = peer not in self._sessions
        session = await self._session(peer, address)
        try:
            try:
                await self._pull_on(session, peer, lease, wanted, on_block)
            except _StaleSession:
                if fresh:
                    raise
                self._drop(peer, session)  # it had hung up while idle: nothing was reported yet
                session = await self._session(peer, address)
                await self._pull_on(session, peer, lease, wanted, on_block)
        except _StaleSession as exc:
            self._drop(peer, session)
            raise PeerGone("the connection broke", peer=peer) from exc
        except BaseException:
            self._drop(peer, session)
            raise

    async def open(self, peer: str, address: str) -> PeerArena:
        """Greet `peer` and map its arena, unless that is done.

        Raises:
            PeerGone, PeerTooSlow: nobody of ours is there.
            VersionMismatch, MalformedMessage: somebody is, but not for us.
        """
        return (await self._session(peer, address)).arena

    def hang_up(self, peer: str) -> None:
        """End the session with `peer`, if there is one; what is being copied out of its arena ends well."""
        session = self._sessions.get(peer)
        if session is not None:
            self._drop(peer, session)

    async def wait_lost(self, peer: str) -> None:
        """Return when `peer` has hung up, or there is no session with it. What it sends unasked counts as that."""
        session = self._sessions.get(peer)
        if session is None:
            return
        try:
            while session.stream.socket.fileno() >= 0:  # it may have been closed while the answer was waited for
                await trio.lowlevel.wait_readable(session.stream.socket)
                if not session.turn.locked():
                    return
                async with session.turn:  # a question is being answered; after it the socket is silent again
                    pass
        except trio.ClosedResourceError:
            return
        finally:
            self._drop(peer, session)

    def is_open(self, peer: str) -> bool:
        """Say whether the arena of `peer` is mapped."""
        return peer in self._sessions

    async def aclose(self) -> None:
        """Hang up everywhere."""
        for peer, session in tuple(self._sessions.items()):
            self._drop(peer, session)

    # -- one pull -----------------------------------------------------------------------------------------------

    async def _pull_on(
        self, session: _Session, peer: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock
    ) -> None:
        """Pull in order: here or in one trip to a thread, or if places did not come with the lease, asking batch by batch."""
        arena = session.arena
        if any(one.place is None for one in wanted):
            await _ask_and_copy(session, peer, lease, wanted, on_block)
            return
        _refuse_outside(arena, [(one, one.place) for one in wanted], peer=peer)
        small = sum(one.length for one in wanted) <= _HERE_BYTES and all(one.length <= _TURN_BYTES for one in wanted)
        if not small or self._is_copying:
            copying = _Copying(arena, wanted, on_block)
            await run_blocking(copying.run, interrupt=copying.reports.close)
            copying.reports.take_all()
            return
        self._is_copying = True
        try:
            for turn in _batches(wanted, _TURN_BYTES):
                await trio.lowlevel.checkpoint()
                for one, outcome in zip(turn, arena.copy_verified([(one, one.place) for one in turn]), strict=True):
                    on_block(one, outcome)
        finally:
            self._is_copying = False

    # -- sessions -----------------------------------------------------------------------------------------------

    async def _session(self, peer: str, address: str) -> _Session:
        turn = self._opening.setdefault(peer, trio.Lock())
        try:
            async with turn:
                session = self._sessions.get(peer)
                if session is None:
                    session = self._sessions[peer] = await self._keys.greeted(
                        peer, self._control_address(peer), partial(self._connect, peer, address)
                    )
            return session
        finally:
            if not turn.locked():  # nobody else waits; peers come and go, and locks must not pile up
                self._opening.pop(peer, None)

    async def _connect(self, peer: str, address: str, ring: Rings | None) -> _Session:
        connection = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with trio.fail_after(self._connect_timeout_s):
                await connection.connect(address)
                refuse_other_users(connection, peer=peer)
                stream = trio.SocketStream(connection)
                _, node = await greet_as(stream, self._hello(), peer=peer, ring=ring)
                if node != peer:
                    raise PeerGone(f"another node ({node}) answers there", peer=peer)
                offer, fd = await _receive_offer(connection, peer=peer)
                return _Session(stream, PeerArena(fd, offer, peer=peer), trio.Lock())
        except trio.TooSlowError as exc:
            connection.close()
            raise PeerTooSlow(f"no greeting within {self._connect_timeout_s:g} s", peer=peer) from exc
        except (OSError, ValueError, trio.BrokenResourceError) as exc:
            connection.close()
            raise PeerGone(f"no connection on this machine ({exc})", peer=peer) from exc
        except BaseException:
            connection.close()
            raise

    def _drop(self, peer: str, session: _Session) -> None:
        if self._sessions.get(peer) is session:
            del self._sessions[peer]
        session.stream.socket.close()


class _StaleSession(Exception):
    """The other side had hung up before it said anything to this question."""


def _batches(wanted: Sequence[Wanted], batch_bytes: int) -> list[list[Wanted]]:
    """Cut `wanted` in parts of `batch_bytes`, each of at least one block."""
    batches: list[list[Wanted]] = []
    room = 0
    for one in wanted:
        if one.length > room:
            batches.append([])
            room = batch_bytes
        batches[-1].append(one)
        room -= one.length
    return batches


async def _ask_and_copy(session: _Session, peer: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
    """Pull where places did not come with the lease."""
    for batch in _batches(wanted, BATCH_BYTES):
        question = _Question(session.stream.socket.fileno(), session.arena, peer, lease, batch)
        async with session.turn:
            while question.waiting:
                told = await run_blocking(question.take_some, interrupt=lambda: _shut(session))
                for settled in told:
                    on_block(*settled)


class _Copying:
    """Copies of blocks whose places are known, for a worker thread."""

    def __init__(self, arena: PeerArena, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        self.reports: Final = Reports[tuple[Wanted, Outcome]](lambda settled: on_block(*settled), every_s=_REPORT_S)
        self._arena = arena
        self._wanted = wanted

    def run(self) -> None:
        """Copy until all is done or nobody wants it any more."""
        for group in _batches(self._wanted, _GROUP_BYTES):
            if self.reports.are_closed:
                return
            outcomes = self._arena.copy_verified([(one, one.place) for one in group])
            for settled in zip(group, outcomes, strict=True):
                self.reports.add(settled)


def _shut(session: _Session) -> None:
    with contextlib.suppress(OSError):
        session.stream.socket.shutdown(socket.SHUT_RDWR)


def _refuse_outside(arena: PeerArena, blocks: Sequence[tuple[Wanted, Place | None]], *, peer: str) -> None:
    for one, place in blocks:
        if place is not None and not arena.holds(place, one.length):
            raise MalformedMessage(f"a block of {one.length} bytes at {place.offset}, outside of the arena", peer=peer)


class _Question:
    """One `Pull` and its answers, for a worker thread: the socket is waited on here and not by the event loop."""

    def __init__(self, fd: int, arena: PeerArena, peer: str, lease: int, wanted: Sequence[Wanted]) -> None:
        self.waiting = {one.position: one for one in wanted}
        self._fd = fd
        self._arena = arena
        self._peer = peer
        self._lease = lease
        self._asked = False
        self._remaining = Remaining()

    def take_some(self) -> list[tuple[Wanted, Outcome]]:
        """Ask if that was not done, and copy what the next answer speaks of."""
        told = self._ask_or_listen()
        for one, _ in told:
            del self.waiting[one.position]
        return list(zip((one for one, _ in told), self._arena.copy_verified(told), strict=True))

    def _ask_or_listen(self) -> list[tuple[Wanted, Place | None]]:
        first, self._asked = not self._asked, True
        try:
            with socket.socket(fileno=os.dup(self._fd)) as connection:
                connection.setblocking(True)
                if first:
                    connection.sendall(frame(encode(Pull(self._lease, bitmap(list(self.waiting)), self._remaining.ms))))
                payload = _read_frame(connection, peer=self._peer)
        except (OSError, PeerGone) as exc:
            if first:
                raise _StaleSession from exc
            raise PeerGone("the connection broke", peer=self._peer) from exc
        places = places_untrusted(decode_untrusted(payload, peer=self._peer), self._lease, peer=self._peer)
        if not places or not places.keys() <= self.waiting.keys():
            raise MalformedMessage("places of blocks not asked for", peer=self._peer)
        told = [(self.waiting[position], place) for position, place in places.items()]
        _refuse_outside(self._arena, told, peer=self._peer)
        return told


def _read_frame(connection: socket.socket, *, peer: str) -> bytes:
    reader = FrameReader(peer=peer)
    need = LENGTH_BYTES
    while True:
        data = connection.recv(need)
        if not data:
            raise PeerGone("stream ended where a message was due", peer=peer)
        reader.feed(data)
        payload = reader.next_frame()
        if payload is not None:
            return payload
        need = reader.missing_bytes()


async def _receive_offer(connection: trio.socket.SocketType, *, peer: str) -> tuple[ArenaOffer, int]:
    """Read the frame that comes with the descriptor.

    Raises:
        MalformedMessage: it is another message, or no descriptor or more than one came with it.
        PeerGone: the stream ended.
    """
    reader = FrameReader(peer=peer)
    descriptors = array("i")
    try:
        need = LENGTH_BYTES
        while True:
            data, ancillary, _, _ = await connection.recvmsg(need, socket.CMSG_SPACE(4 * descriptors.itemsize))
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
            if not data:
                raise PeerGone("stream ended where an arena was due", peer=peer)
            reader.feed(data)
            payload = reader.next_frame()
            if payload is not None:
                break
            need = reader.missing_bytes()
        offer = decode_untrusted(payload, peer=peer)
        if not isinstance(offer, ArenaOffer) or len(descriptors) != 1:
            raise MalformedMessage(
                f"{type(offer).__name__} with {len(descriptors)} descriptors where one arena was due", peer=peer
            )
        return offer, descriptors.pop()
    finally:
        for fd in descriptors:
            os.close(fd)
