"""Parts of blocks over a bulk stream: a layer range x head range of many blocks for one question.

    PullParts -> for each block asked for, in order:
                     bulk header      length: bytes that follow the digests; absent: nothing follows
                     digests          16 bytes for each segment of the part, in the order of the block
                     runs             one per layer, if bodies were asked for

The digests are taken from the bytes as they are sent, so that bytes that went bad at the owner do not agree with the
block's digest, which the receiver has from elsewhere. A question for all digests and no bodies brings the table that
this digest is of. Questions may be sent ahead: the answers come in their order.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

import trio
import xxhash

from p2pkv.blocks import DIGEST_BYTES
from p2pkv.errors import MalformedMessage, PeerError
from p2pkv.layouts import Grid, Part
from p2pkv.part_bytes import run_views, segment_digests
from p2pkv.transport.blocking_channel import BlockingChannel
from p2pkv.transport.bulk_header import HEADER_BYTES, BulkHeader, unpack_untrusted
from p2pkv.transport.framing import frame
from p2pkv.transport.offload import run_blocking
from p2pkv.transport.remaining import Remaining
from p2pkv.transport.sealed_stream import Channel
from p2pkv.transport.wire import PullParts, bit_positions, bitmap, encode

OpenPart: TypeAlias = Callable[[str, PullParts, int], tuple[memoryview, Grid] | None]
"""(peer, question, position) -> the block and its grid, if the peer may read that part of it now."""

_SEND_BYTES: Final = 8 * 2**20
"""Sent per trip to a worker thread; then it is asked anew whether the peer may still read."""
_PIECES_MAX: Final = 512
"""Given to the kernel at once; Linux takes 1,024."""


async def serve_parts(
    stream: Channel,
    ask: PullParts,
    *,
    peer: str,
    open_part: OpenPart,
    block_s: float,
    on_sent: Callable[[int], None],
) -> bool:
    """Answer one question; False if the caller went away."""
    part = Part(ask.first_layer, ask.part_layers, ask.first_head, ask.part_heads)
    positions = bit_positions(ask.wanted)
    while positions:
        batch: list[tuple[int, tuple[memoryview, Grid] | None]] = []
        room = _SEND_BYTES
        while positions and room > 0:
            opened = open_part(peer, ask, positions[0])
            batch.append((positions.pop(0), opened))
            room -= opened[1].cut(part).block_bytes if opened is not None else 0

        def send_all(batch: list[tuple[int, tuple[memoryview, Grid] | None]] = batch) -> int:
            sent = 0
            with BlockingChannel(stream, timeout_s=block_s, peer=peer) as channel:
                for position, opened in batch:
                    pieces, length = _pieces(ask, part, position, opened)
                    for start in range(0, len(pieces), _PIECES_MAX):
                        channel.send_body(pieces[start : start + _PIECES_MAX])
                    sent += length
            return sent

        try:
            on_sent(await run_blocking(send_all, interrupt=lambda: _shut(stream)))
        except (PeerError, trio.ClosedResourceError):
            return False
    return True


def _pieces(
    ask: PullParts, part: Part, position: int, opened: tuple[memoryview, Grid] | None
) -> tuple[list[bytes | memoryview], int]:
    """Return what stands on the stream for one block, and the bytes of its runs."""
    if opened is None:
        return [BulkHeader(ask.lease, position, 0, 0, bytes(DIGEST_BYTES), absent=True).pack()], 0
    body, grid = opened
    digests = segment_digests(body, grid, part)
    runs = run_views(body, grid.runs(part)) if ask.bodies else []
    length = sum(map(len, runs))
    head = BulkHeader(ask.lease, position, length, grid.segment_bytes, xxhash.xxh3_128_digest(digests))
    return [head.pack(), digests, *runs], length


class PartReader:
    """The receiving side on one stream, for a worker thread. After an error the stream is of no more use."""

    def __init__(
        self, channel: BlockingChannel, *, peer: str, pushed: bool, lease: int, grid: Grid, remaining: Remaining
    ) -> None:
        self._channel = channel
        self._peer = peer
        self._pushed = pushed
        self._lease = lease
        self._grid = grid
        self._remaining = remaining
        self._room = memoryview(bytearray(HEADER_BYTES))

    def ask(self, part: Part, positions: list[int], *, bodies: bool) -> None:
        """Send a question."""
        question = PullParts(
            pushed=self._pushed,
            lease=self._lease,
            wanted=bitmap(positions),
            layers=self._grid.layers,
            heads=self._grid.heads,
            first_layer=part.first_layer,
            part_layers=part.layers,
            first_head=part.first_head,
            part_heads=part.heads,
            bodies=bodies,
            remaining_ms=self._remaining.ms,
        )
        self._channel.send(frame(encode(question)))

    def receive(self, part: Part, position: int, runs: list[memoryview]) -> bytes | None:
        """Fill `runs`, none if bodies were not asked for; return the digests its sender says, or None: it is absent.

        Raises:
            MalformedMessage: it is not what was asked for.
            PeerGone, PeerTooSlow: the stream ended.
        """
        self._channel.receive_body_into(self._room)
        header = unpack_untrusted(bytes(self._room), peer=self._peer)
        if (header.lease, header.position) != (self._lease, position):
            raise MalformedMessage(f"part of block {header.position} of {header.lease} not asked for", peer=self._peer)
        if header.absent:
            return None
        if header.length != sum(map(len, runs)) or header.segment_bytes != self._grid.segment_bytes:
            raise MalformedMessage("part that is not the one asked for", peer=self._peer)
        digests = memoryview(bytearray(part.layers * part.heads * DIGEST_BYTES))
        self._channel.receive_body_into(digests)
        if xxhash.xxh3_128_digest(digests) != header.digest:
            raise MalformedMessage("digests that do not have theirs", peer=self._peer)
        for run in runs:
            self._channel.receive_body_into(run)
        return bytes(digests)


def _shut(stream: Channel) -> None:
    with suppress(OSError):
        stream.socket.shutdown(socket.SHUT_RDWR)
