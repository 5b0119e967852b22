"""Block bytes over a fabric: the receiving side.

Where the fabric copies by itself, a pull asks where the blocks lie and reads them: the generation of each slot before and
after, then the digest. Else it lends a window and the owner writes there. See `p2pkv.transport.fabrics` for which is which.
"""

import contextlib
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import trio

from p2pkv.blocks import block_digest
from p2pkv.errors import MalformedMessage, PeerGone, PeerTooSlow
from p2pkv.fetch import Outcome
from p2pkv.generations import ENTRY_BYTES, Place, generations
from p2pkv.slots import PAGE_BYTES
from p2pkv.transport.base import OnBlock, Wanted
from p2pkv.transport.bulk_keys import BulkKeys, SharedKeys
from p2pkv.transport.fabric_end import FabricEnd, FabricPeer
from p2pkv.transport.fabric_serve import notice_of
from p2pkv.transport.fabrics import ONE_SIDED
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import read_frame_exactly
from p2pkv.transport.landing import Window
from p2pkv.transport.message_line import AbandonedAnswer, MessageLine, Stopped
from p2pkv.transport.nixl import Piece, Region
from p2pkv.transport.offload import run_blocking
from p2pkv.transport.placed import places_untrusted
from p2pkv.transport.remaining import Remaining
from p2pkv.transport.sealed_handshake import Rings
from p2pkv.transport.sealed_stream import Channel, has_closed, is_outdated
from p2pkv.transport.tcp import connect
from p2pkv.transport.wire import (
    FabricOffer,
    FabricPull,
    Hello,
    Pull,
    Written,
    bit_positions,
    bitmap,
    decode_untrusted,
    encode,
)

READ_BYTES: Final = 2**20
"""Read per call of the library: little enough to be digested while it is in a cache, and so much that the call is nothing."""
_MOVE_S: Final = 10.0
"""How long a megabyte may take that the fabric moves by itself."""
_KEEP_ALIVE: Final = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Seconds, seconds, and how often: an owner whose machine died is noticed, and its window is free again."""


@dataclass(slots=True)
class _Session:
    stream: Channel
    peer: FabricPeer
    turn: trio.Lock = field(default_factory=trio.Lock)
    """One pull at a time."""
    dropped: bool = False


class _Stale(Exception):
    """The other side had hung up before it said anything to this question."""


class NixlTransport:
    """See `p2pkv.transport.base.BulkTransport`; `address` is that of the owner's control port."""

    name: Final = "nixl"

    def __init__(
        self,
        end: FabricEnd,
        *,
        hello: Callable[[], Hello],
        connect_timeout_s: float,
        ring: Rings | None = None,
        keys: BulkKeys | None = None,
    ) -> None:
        self._end = end
        self._hello = hello
        self._connect_timeout_s = connect_timeout_s
        self._keys = keys or SharedKeys(ring)
        self._sessions: dict[str, _Session] = {}
        self._opening: dict[str, trio.Lock] = {}

    def path(self, peer: str) -> str:  # noqa: ARG002 - the same for all
        """See `BulkTransport`."""
        return self.name

    def peer(self, peer: str) -> FabricPeer | None:
        """Return what is known of `peer` on the fabric, if there is a session."""
        session = self._sessions.get(peer)
        return session.peer if session is not None else None

    def fits(self, wanted: Sequence[Wanted]) -> bool:
        """Say whether a window has room for each of `wanted`."""
        return all(one.length <= self._end.landing.window_bytes for one in wanted)

    async def pull(self, *, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        """See `BulkTransport`."""
        try:
            await self._pull(peer, address, lease, wanted, on_block)
        except (
            _Stale
        ):  # it had hung up while idle, or another pull's failure ended the session: nothing was reported yet
            try:
                await self._pull(peer, address, lease, wanted, on_block)
            except _Stale as exc:
                raise PeerGone("the connection broke", peer=peer) from exc

    async def open(self, peer: str, address: str) -> FabricPeer:
        """Greet `peer` and meet it on the fabric, unless that is done.

        Raises:
            PeerError: it is not there, or there is no fabric between us.
        """
        return (await self._session(peer, address)).peer

    async def let_go_of_closed(self) -> None:
        """End sessions that the other side has ended while nothing was asked; to be called now and then, for it may have died."""
        for peer, session in tuple(self._sessions.items()):
            if not session.turn.locked() and has_closed(session.stream):
                await self._drop(peer, session)

    async def aclose(self) -> None:
        """Hang up everywhere. What the fabric holds ends with `FabricEnd.close`."""
        for peer, session in tuple(self._sessions.items()):
            await self._drop(peer, session)

    # -- sessions -----------------------------------------------------------------------------------------------

    async def _session(self, peer: str, address: str) -> _Session:
        turn = self._opening.setdefault(peer, trio.Lock())
        try:
            async with turn:
                session = self._sessions.get(peer)
                if session is not None and is_outdated(session.stream):
                    await self._drop(peer, session)
                    session = None
                if session is None:
                    session = self._sessions[peer] = await self._connect(peer, address)
            return session
        finally:
            if not turn.locked():
                self._opening.pop(peer, None)

    async def _connect(self, peer: str, address: str) -> _Session:
        async def greeted(ring: Rings | None) -> tuple[Channel, str]:
            return await connect(address, self._hello(), timeout_s=self._connect_timeout_s, ring=ring)

        stream, node = await self._keys.greeted(peer, address, greeted)
        try:
            if node != peer:
                raise PeerGone(f"another node ({node}) answers at {address}", peer=peer)
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEP_ALIVE:
                stream.socket.setsockopt(socket.IPPROTO_TCP, option, value)
            refusal = self._end.refusal(stream)
            if refusal:
                raise PeerGone(f"no fabric ({refusal})", peer=peer)
            with trio.fail_after(self._connect_timeout_s):
                await stream.send_all(frame(encode(self._end.offer())))
                offer = decode_untrusted(await read_frame_exactly(stream, peer=peer), peer=peer)
            if not isinstance(offer, FabricOffer):
                raise MalformedMessage(f"{type(offer).__name__} where FabricOffer was due", peer=peer)
            met = await trio.to_thread.run_sync(lambda: self._end.meet(offer, stream, node=peer))
        except trio.TooSlowError as exc:
            stream.socket.close()
            raise PeerTooSlow(f"no offer within {self._connect_timeout_s:g} s", peer=peer) from exc
        except (OSError, trio.BrokenResourceError) as exc:
            stream.socket.close()
            raise PeerGone(f"no connection ({exc})", peer=peer) from exc
        except BaseException:
            stream.socket.close()
            raise
        return _Session(stream, met)

    async def _drop(self, peer: str, session: _Session, *, keep_stream: bool = False) -> None:
        """Let go of a session that is of no more use, once."""
        if self._sessions.get(peer) is session:
            del self._sessions[peer]
        if not keep_stream:
            session.stream.socket.close()
        if not session.dropped:
            session.dropped = True
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: self._end.part(session.peer))

    # -- one pull -----------------------------------------------------------------------------------------------

    async def _pull(self, peer: str, address: str, lease: int, wanted: Sequence[Wanted], on_block: OnBlock) -> None:
        session = await self._session(peer, address)
        if session.peer.fabric not in ONE_SIDED and not self.fits(wanted):
            raise PeerGone("a block is larger than a window that it could land in", peer=peer)
        async with session.turn:
            if session.dropped:
                raise _Stale
            first = True
            for batch in self._batches(wanted):
                await self._bring(
                    session, _Batch(self._end, session, peer, lease, batch, await self._window()), on_block, first=first
                )
                first = False

    async def _bring(self, session: _Session, batch: "_Batch", on_block: OnBlock, *, first: bool) -> None:
        """Bring one batch; each answer to it is one trip to a thread. Whatever goes wrong ends the session."""
        try:
            while batch.waiting:
                for one, outcome in await run_blocking(batch.take_some, interrupt=batch.line.stop):
                    on_block(one, outcome)
        except BaseException as exc:
            await self._end_badly(batch, session)
            if first and not batch.answered and isinstance(exc, PeerGone):
                raise _Stale from exc
            raise
        else:
            self._end.landing.give_back(batch.window)
        finally:
            batch.line.close()

    async def _end_badly(self, batch: "_Batch", session: _Session) -> None:
        if batch.may_be_written:
            abandoned = AbandonedAnswer(session.stream, peer=batch.peer)
            self._end.landing.quarantine(batch.window, abandoned.is_over)
            with contextlib.suppress(OSError):
                session.stream.socket.shutdown(socket.SHUT_WR)
        else:
            self._end.landing.give_back(batch.window)
        await self._drop(batch.peer, session, keep_stream=batch.may_be_written)

    async def _window(self) -> Window:
        pause = 0.001
        while (window := self._end.landing.take()) is None:
            await trio.sleep(pause)
            pause = min(2 * pause, 0.05)
        return window

    def _batches(self, wanted: Sequence[Wanted]) -> list[list[Wanted]]:
        """Cut `wanted` in parts that a window has room for, each of at least one block."""
        batches: list[list[Wanted]] = []
        room = 0
        for one in wanted:
            if not batches or one.length > room:
                batches.append([])
                room = self._end.landing.window_bytes
            batches[-1].append(one)
            room -= one.length
        return batches


class _Batch:
    """Blocks that one window has room for: one question, and what is made of each answer, for a worker thread."""

    def __init__(
        self, end: FabricEnd, session: _Session, peer: str, lease: int, wanted: Sequence[Wanted], window: Window
    ) -> None:
        self.peer: Final = peer
        self.window: Final = window
        self.line: Final = MessageLine(session.stream, peer=peer)
        self.waiting = {one.position: one for one in wanted}
        self.answered = False
        self.may_be_written = False
        """The owner was told to write into the window, and has not said that it is done."""
        self._end = end
        self._met = session.peer
        self._lease = lease
        self._asked = False
        self._remaining = Remaining()
        self._used_bytes = 0
        """Of the window."""

    def take_some(self) -> list[tuple[Wanted, Outcome]]:
        """Ask if that was not done, and see to the blocks that the next answer speaks of.

        Raises:
            Stopped: by `line.stop`.
            PeerError: the peer is gone, or does not keep to the protocol.
        """
        told = self._read() if self._met.fabric in ONE_SIDED else self._have_written()
        for one, _ in told:
            del self.waiting[one.position]
        return told

    # -- reading ------------------------------------------------------------------------------------------------

    def _read(self) -> list[tuple[Wanted, Outcome]]:
        blocks = self._places()
        before = self._generations(blocks)
        outcomes: list[Outcome] = ["absent"] * len(blocks)
        whole = [i for i, (_, place) in enumerate(blocks) if place is not None and before[i] == place.generation]
        for run in _runs(whole, [one.length for one, _ in blocks]):
            if self.line.stopped:
                raise Stopped
            for i, good in zip(run, self._read_run([blocks[i] for i in run]), strict=True):
                outcomes[i] = "ok" if good else "corrupt"
        after = self._generations(blocks)
        return [
            (one, outcome if then == now else "absent")
            for (one, _), outcome, then, now in zip(blocks, outcomes, before, after, strict=True)
        ]

    def _places(self) -> list[tuple[Wanted, Place | None]]:
        """Return where blocks lie, as it came with the lease or as the owner says now."""
        if not self._asked and all(one.place is not None for one in self.waiting.values()):
            told: list[tuple[Wanted, Place | None]] = [(one, one.place) for one in self.waiting.values()]
        else:
            if not self._asked:
                self.line.send(Pull(self._lease, bitmap(list(self.waiting)), self._remaining.ms))
                self._asked = True
            places = places_untrusted(self.line.receive(), self._lease, peer=self.peer)
            self.answered = True
            if not places or not places.keys() <= self.waiting.keys():
                raise MalformedMessage("places of blocks not asked for", peer=self.peer)
            told = [(self.waiting[position], place) for position, place in places.items()]
        for one, place in told:
            if place is not None and (place.offset % PAGE_BYTES or place.offset + one.length > self._met.slots_bytes):
                raise MalformedMessage(
                    f"a block of {one.length} bytes at {place.offset}, outside of the arena", peer=self.peer
                )
        return told

    def _read_run(self, blocks: Sequence[tuple[Wanted, Place | None]]) -> list[bool]:
        """Read blocks to where they are wanted, or where the fabric cannot write, by way of the window."""
        there = [(self._met.table_bytes + place.offset, one.length) for one, place in blocks if place is not None]
        direct = [_offset_in(self._end.arena, one.into) for one, _ in blocks]
        straight = [(offset, length) for offset, (_, length) in zip(direct, there, strict=True) if offset is not None]
        if len(straight) == len(there):
            self._move((self._end.arena, straight), there)
        else:
            starts = [self._room(length) for _, length in there]
            here = [(self.window.offset + start, length) for start, (_, length) in zip(starts, there, strict=True)]
            self._move((self._end.landing_region, here), there)
            for start, (one, _) in zip(starts, blocks, strict=True):
                np.copyto(np.frombuffer(one.into, dtype=np.uint8), self.window.bytes[start : start + one.length])
        return [block_digest(one.into, one.segment_bytes) == one.digest for one, _ in blocks]

    def _generations(self, blocks: Sequence[tuple[Wanted, Place | None]]) -> list[int]:
        """Return the generation of each block's slot as it is now, -1 where there is none or it is being written."""
        found = [-1] * len(blocks)
        there: list[Piece] = []
        spans: dict[int, list[tuple[int, int]]] = {}
        """Pages of a block -> of which block, and where its first one's entry lies in the notes."""
        entries = 0
        for number, (one, place) in enumerate(blocks):
            if place is None:
                continue
            pages = -(-one.length // PAGE_BYTES)
            start = place.offset // PAGE_BYTES * ENTRY_BYTES
            if there and sum(there[-1]) == start:  # slots follow one another: one piece for many
                there[-1] = (there[-1][0], there[-1][1] + pages * ENTRY_BYTES)
            else:
                there.append((start, pages * ENTRY_BYTES))
            spans.setdefault(pages, []).append((number, entries))
            entries += pages
        if not there:
            return found
        at, here = self.window.notes_offset, list[Piece]()
        for _, length in there:
            here.append((at, length))
            at += length
        self._move((self._end.landing_region, here), there)
        table = self.window.notes[: entries * ENTRY_BYTES].view("<u8")
        for pages, mine in spans.items():
            values = generations(table, [first for _, first in mine], pages)
            for (number, _), value in zip(mine, values, strict=True):
                found[number] = -1 if value % 2 else value
        return found

    def _move(self, here: tuple[Region, Sequence[Piece]], there: Sequence[Piece]) -> None:
        self._end.agent.move("READ", here, (self._met.arena, there), agent=self._met.agent, patience_s=_MOVE_S)

    # -- being written to ---------------------------------------------------------------------------------------

    def _have_written(self) -> list[tuple[Wanted, Outcome]]:
        blocks = list(self.waiting.values())
        blocks.sort(key=lambda one: one.position)
        starts = [self._room(one.length) for one in blocks]
        ticket = secrets.randbits(53)
        self.may_be_written = True
        self.line.send(
            FabricPull(
                lease=self._lease,
                wanted=bitmap([one.position for one in blocks]),
                offsets=tuple(self.window.offset + start for start in starts),
                lengths=tuple(one.length for one in blocks),
                ticket=ticket,
                remaining_ms=self._remaining.ms,
            )
        )
        answer = self.line.receive()
        self.answered = True
        if not isinstance(answer, Written) or answer.ticket != ticket:
            raise MalformedMessage(f"{type(answer).__name__} where Written was due", peer=self.peer)
        self.may_be_written = False
        written = set(bit_positions(answer.written))
        if not written <= self.waiting.keys():
            raise MalformedMessage("blocks written that were not asked for", peer=self.peer)
        if written:
            self._end.agent.wait_notice(self._met.agent, notice_of(ticket, len(written)), patience_s=_MOVE_S)
        return [(one, self._take_over(one, start, written)) for one, start in zip(blocks, starts, strict=True)]

    def _take_over(self, one: Wanted, start: int, written: set[int]) -> Outcome:
        if one.position not in written:
            return "absent"
        # Copied first and digested where it lies then: the window is the owner's to write to.
        np.copyto(np.frombuffer(one.into, dtype=np.uint8), self.window.bytes[start : start + one.length])
        return "ok" if block_digest(one.into, one.segment_bytes) == one.digest else "corrupt"

    def _room(self, length: int) -> int:
        start, self._used_bytes = self._used_bytes, self._used_bytes + length
        return start


def _offset_in(region: Region, view: memoryview) -> int | None:
    """Return where in `region` a view lies; None if it is not there."""
    offset = int(np.frombuffer(view, dtype=np.uint8).ctypes.data) - region.address
    return offset if offset >= 0 and offset + len(view) <= region.length else None


def _runs(numbers: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Cut `numbers` in runs of blocks that have `READ_BYTES` together, each of at least one."""
    runs: list[list[int]] = []
    room = 0
    for number in numbers:
        if not runs or lengths[number] > room:
            runs.append([])
            room = READ_BYTES
        runs[-1].append(number)
        room -= lengths[number]
    return runs
