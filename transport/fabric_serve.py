"""The owner's side of a fabric: says where blocks of a lease lie, or writes them itself, after looking at the lease."""

import contextlib
import struct
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import trio

from p2pkv.errors import MalformedMessage, PeerError, PeerGone, SealRefused
from p2pkv.transport.base import OpenLease
from p2pkv.transport.fabric_end import FabricEnd, FabricPeer
from p2pkv.transport.fabrics import ONE_SIDED
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import read_frame_exactly
from p2pkv.transport.nixl import Piece
from p2pkv.transport.remaining import until
from p2pkv.transport.sealed_stream import Channel
from p2pkv.transport.shm_serve import OpenPlaces
from p2pkv.transport.wire import (
    FabricOffer,
    FabricPull,
    Places,
    Pull,
    Written,
    bit_positions,
    bitmap,
    decode_untrusted,
    encode,
)

_WRITE_BYTES: Final = 8 * 2**20
"""Written per look at the lease, as on TCP."""
_NOTICE: Final = struct.Struct("<4sQI")


def notice_of(ticket: int, blocks: int) -> bytes:
    """Return what is told behind the last byte of the so-manieth block that was written for a ticket."""
    return _NOTICE.pack(b"P2KW", ticket, blocks)


async def refuse_fabric(stream: Channel, reason: str) -> None:
    """Tell a caller that offered a fabric that there is none."""
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await _send(stream, FabricOffer("", (), b"", 0, 0, 0, refusal=reason[:128]))


async def serve_fabric(
    stream: Channel,
    offer: FabricOffer,
    *,
    peer: str,
    end: FabricEnd,
    open_lease: OpenLease,
    open_places: OpenPlaces,
    idle_s: float,
    block_s: float = 60.0,
    on_sent: Callable[[int], None] = lambda count: None,  # noqa: ARG005 - who counts nothing says nothing
    on_overdue: Callable[[], None] = lambda: None,
) -> None:
    """Meet a caller that made an `offer`, and serve its pulls until it goes away or is silent for `idle_s`.

    When this has returned, nothing is written into the caller's memory any more, unless the caller was disconnected.

    Raises:
        MalformedMessage, SealRefused: it said something that makes no sense. The caller of this closes the stream.
    """
    met: FabricPeer | None = None
    try:
        refusal = end.refusal(stream)
        if not refusal:
            try:
                met = await trio.to_thread.run_sync(lambda: end.meet(offer, stream, node=peer))
            except PeerGone as exc:
                refusal = str(exc)
        if met is None:
            await refuse_fabric(stream, refusal)
            return
        await _send(stream, end.offer())
        while True:
            with trio.move_on_after(idle_s) as idle:
                message = await _next(stream, peer)
            if idle.cancelled_caught:
                return
            if isinstance(message, Pull) and met.fabric in ONE_SIDED:
                await _send(stream, _places(message, peer, open_places))
            elif isinstance(message, FabricPull) and met.fabric not in ONE_SIDED:
                written = await _write(
                    message, met, end, peer, open_lease, block_s=block_s, on_sent=on_sent, on_overdue=on_overdue
                )
                await _send(stream, Written(message.ticket, bitmap(written)))
            else:
                raise MalformedMessage(f"{type(message).__name__} over {met.fabric}", peer=peer)
    except (PeerError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        if isinstance(exc, MalformedMessage | SealRefused):
            raise
    finally:
        if met is not None:
            agent = met
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: end.part(agent))


async def _next(stream: Channel, peer: str) -> object:
    return decode_untrusted(await read_frame_exactly(stream, peer=peer), peer=peer)


async def _send(stream: Channel, message: FabricOffer | Places | Written) -> None:
    await stream.send_all(frame(encode(message)))


def _places(pull: Pull, peer: str, open_places: OpenPlaces) -> Places:
    places = open_places(peer, pull.lease) or ()
    here = [position for position in bit_positions(pull.wanted) if position < len(places)]
    return Places(
        lease=pull.lease,
        asked=pull.wanted,
        placed=bitmap(here),
        offsets=tuple(places[position].offset for position in here),
        generations=tuple(places[position].generation for position in here),
    )


async def _write(
    pull: FabricPull,
    met: FabricPeer,
    end: FabricEnd,
    peer: str,
    open_lease: OpenLease,
    *,
    block_s: float,
    on_sent: Callable[[int], None],
    on_overdue: Callable[[], None],
) -> list[int]:
    """Write what the lease has of a pull, as long as its sender has time, and return the positions of that.

    Cancellation: what is being written is waited for, `block_s` at most; nothing is written after this.
    """
    positions = bit_positions(pull.wanted)
    landing = met.landing
    if landing is None or not len(positions) == len(pull.offsets) == len(pull.lengths):
        raise MalformedMessage("FabricPull that does not fit together", peer=peer)
    asked = list(zip(positions, pull.offsets, pull.lengths, strict=True))
    if any(offset + length > landing.length for _, offset, length in asked):
        raise MalformedMessage("FabricPull to outside of the landing place", peer=peer)
    written: list[int] = []
    over_at = until(pull.remaining_ms)
    while asked:
        if trio.current_time() >= over_at:
            on_overdue()
            break
        # Asked anew for every few blocks: a lease that ended meanwhile no longer protects its slots. What is written
        # while it ends is caught by the receiver's digest.
        bodies = open_lease(peer, pull.lease)
        here: list[Piece] = []
        there: list[Piece] = []
        taken: list[int] = []
        while asked and (not here or sum(length for _, length in here) + asked[0][2] <= _WRITE_BYTES):
            position, offset, length = asked.pop(0)
            body = bodies[position].body if bodies is not None and position < len(bodies) else None
            if body is not None and len(body) != length:
                raise MalformedMessage(f"room for {length} bytes where {len(body)} were granted", peer=peer)
            start = _offset_in_arena(end, body) if body is not None else None
            if start is not None:
                here.append((start, length))
                there.append((offset, length))
                taken.append(position)
        if here:
            written += taken
            move = partial(
                end.agent.move,
                "WRITE",
                (end.arena, here),
                (landing, there),
                agent=met.agent,
                notice=notice_of(pull.ticket, len(written)),
                patience_s=block_s,
            )
            await trio.to_thread.run_sync(move)  # not abandoned on cancel: the caller's window is being written
            on_sent(sum(length for _, length in here))
    return written


def _offset_in_arena(end: FabricEnd, body: memoryview) -> int | None:
    """Return where in the registered arena `body` lies; None if it is not there."""
    offset = int(np.frombuffer(body, dtype=np.uint8).ctypes.data) - end.arena.address
    return offset if offset >= 0 and offset + len(body) <= end.arena.length else None
