"""The owner's side of shared memory: who may map this node's arena, and where the blocks of a lease lie in it."""

import os
import socket
from array import array
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import trio

from p2pkv.errors import CannotListen, MalformedMessage, PeerError
from p2pkv.generations import Place
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import read_frame_exactly
from p2pkv.transport.wire import ArenaOffer, Places, Pull, bit_positions, bitmap, decode_untrusted, encode

OpenPlaces: TypeAlias = Callable[[str, int], Sequence[Place] | None]
"""(peer, lease) -> the places of the lease's blocks in grant order, pinned; None if there is no such lease of that peer."""

_BACKLOG: Final = 64


def listen(name: str) -> socket.socket:
    """Return a listening socket with an abstract name.

    Raises:
        CannotListen: another process has the name. The node goes on without shared memory.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(name)
    except OSError as exc:
        listener.close()
        raise CannotListen(f"cannot offer shared memory ({exc.strerror}): @{name[1:]}") from exc
    listener.listen(_BACKLOG)
    return listener


async def serve_arena(
    stream: trio.SocketStream, *, peer: str, offer: ArenaOffer, fd: int, open_places: OpenPlaces
) -> None:
    """Hand the arena to a greeted caller, then say where blocks lie until it hangs up.

    Raises:
        MalformedMessage: it said something that is not a pull. The caller of this closes the stream.
    """
    try:
        await _send_offer(stream, offer, fd)
        while True:
            message = decode_untrusted(await read_frame_exactly(stream, peer=peer), peer=peer)
            if not isinstance(message, Pull):
                raise MalformedMessage(f"{type(message).__name__} where Pull was due", peer=peer)
            places = open_places(peer, message.lease) or ()
            asked = bit_positions(message.wanted)
            here = [position for position in asked if position < len(places)]
            answer = Places(
                lease=message.lease,
                asked=message.wanted,
                placed=bitmap(here),
                offsets=tuple(places[position].offset for position in here),
                generations=tuple(places[position].generation for position in here),
            )
            await stream.send_all(frame(encode(answer)))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return
    except PeerError as exc:
        if isinstance(exc, MalformedMessage):
            raise


async def _send_offer(stream: trio.SocketStream, offer: ArenaOffer, fd: int) -> None:
    """Send the frame with the descriptor; once its first bytes are gone, so is the descriptor."""
    data = frame(encode(offer))
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))
    try:
        sent = await stream.socket.sendmsg([data], [rights])
    except OSError as exc:
        raise trio.BrokenResourceError(os.strerror(exc.errno or 0)) from exc
    if sent < len(data):
        await stream.send_all(data[sent:])
