"""Small blocks right behind the answer, without a second question: the bytes of a direct question, on a kept bulk stream.

    asks:    LeaseRequest(direct_bytes)
    answers: LeaseGrant(direct), then of each granted block a bulk header and its body; or LeaseGrant, and nothing behind it

Both ends read and write where their event loop is. That is bounded by `p2pkv.fetches.DIRECT_BYTES_MAX`, which takes less to copy and to hash
than the way to a worker thread and back.
"""

import os
from collections.abc import Sequence
from contextlib import suppress

import trio

from p2pkv.blocks import block_digest
from p2pkv.errors import MalformedMessage
from p2pkv.fetch import Outcome
from p2pkv.transport.base import Bodies, Offered, OnBlock, Wanted
from p2pkv.transport.bulk_header import HEADER_BYTES, BulkHeader, unpack_untrusted
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import fill_exactly, read_frame_exactly
from p2pkv.transport.wire import LeaseGrant, LeaseRequest, decode_untrusted, encode


def ask_nowait(stream: trio.SocketStream, request: LeaseRequest) -> bool:
    """Ask without waiting; say whether that was possible. If not, the stream is of no more use."""
    data = frame(encode(request))
    try:
        return os.write(stream.socket.fileno(), data) == len(data)
    except OSError:
        return False


async def read_grant(stream: trio.SocketStream, request: LeaseRequest, *, peer: str) -> LeaseGrant:
    """Wait for the answer to `request` and read it, and not a byte more.

    Raises:
        PeerGone: the stream ended.
        MalformedMessage: something else came.
    """
    grant = decode_untrusted(await read_frame_exactly(stream, peer=peer), peer=peer)
    if not isinstance(grant, LeaseGrant) or grant.request != request.request:
        raise MalformedMessage(f"{type(grant).__name__} where the answer to {request.request} was due", peer=peer)
    if grant.direct and sum(grant.lengths) > request.direct_bytes:
        raise MalformedMessage(f"{sum(grant.lengths)} bytes sent, {request.direct_bytes} were asked for", peer=peer)
    return grant


async def receive_direct(
    stream: trio.SocketStream, grant: LeaseGrant, wanted: Sequence[Wanted], on_block: OnBlock, *, peer: str
) -> None:
    """Receive all blocks of `grant`; those that are not in `wanted` are read and dropped.

    Raises:
        PeerGone, MalformedMessage: blocks not reported before have not arrived. The stream is of no more use.

    Cancellation: as these.
    """
    by_position = {one.position: one for one in wanted}
    head = bytearray(HEADER_BYTES)
    for position, length in enumerate(grant.lengths):
        await fill_exactly(stream, memoryview(head), peer=peer)
        header = unpack_untrusted(bytes(head), peer=peer)
        if (header.lease, header.position) != (grant.lease, position):
            raise MalformedMessage(f"block {header.position} of lease {header.lease} not asked for", peer=peer)
        one = by_position.get(position)
        if header.absent:
            if one is not None:
                on_block(one, "absent")
            continue
        if header.length != length or (one is not None and header.digest != one.digest):
            raise MalformedMessage("block that is not the one granted", peer=peer)
        if one is None:
            await fill_exactly(stream, memoryview(bytearray(length)), peer=peer)
            continue
        await fill_exactly(stream, one.into, peer=peer)
        outcome: Outcome = "ok" if block_digest(one.into, one.segment_bytes) == one.digest else "corrupt"
        on_block(one, outcome)


async def answer_direct(stream: trio.SocketStream, grant: LeaseGrant, bodies: Bodies) -> None:
    """Send the answer, with the blocks behind it if that is what it says.

    Raises:
        trio.BrokenResourceError: the other side is gone.
    """
    answer = memoryview(frame(encode(grant)))
    views: list[memoryview] = []
    if grant.direct:
        # On its own, so that the other side makes places for the blocks while they are being copied to the kernel.
        with suppress(OSError):
            answer = answer[os.write(stream.socket.fileno(), answer) :]
        for position in range(len(bodies)):
            views += map(memoryview, _parts(grant.lease, position, bodies[position]))
    views = [answer, *views] if answer else views
    try:
        while views:
            sent = await stream.socket.sendmsg(views)
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]
    except OSError as exc:
        raise trio.BrokenResourceError(f"connection broke ({exc.strerror})") from exc


def _parts(lease: int, position: int, one: Offered) -> list[bytes | memoryview]:
    """Return what stands on the stream for one block."""
    return [BulkHeader(lease, position, len(one.body), one.segment_bytes, one.digest).pack(), one.body]
