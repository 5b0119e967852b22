"""Limits, made by hand: the least work that gives the same promise, moving the bytes and checking their digests.

Each is a plain loop in one thread, without a protocol, an event loop or an error that is handled.
"""

import socket
import struct
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from p2pkv.blocks import block_digest
from p2pkv.generations import Place
from p2pkv.transport.arena import PeerArena
from p2pkv.transport.base import Wanted

_LEASE = struct.Struct("<Q")


def serve_plain(listener: socket.socket, bodies: Callable[[int], Iterator[memoryview]]) -> None:
    """Answer lease numbers with the bytes of their blocks, one caller at a time, for ever."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while asked := connection.recv(_LEASE.size, socket.MSG_WAITALL):
                for body in bodies(*_LEASE.unpack(asked)):
                    connection.sendall(body)


def take_plain(connection: socket.socket, lease: int, wanted: Sequence[Wanted]) -> bool:
    """Receive the blocks of a lease into their places; say whether all digests are right."""
    connection.sendall(_LEASE.pack(lease))
    right = True
    for one in wanted:
        done = 0
        while done < one.length:
            done += connection.recv_into(one.into[done:])
        right &= block_digest(one.into, one.segment_bytes) == one.digest
    return right


def take_mapped(arena: PeerArena, places: Sequence[Place], wanted: Sequence[Wanted]) -> bool:
    """Copy blocks out of a mapped arena; say whether all digests are right."""
    right = True
    for place, one in zip(places, wanted, strict=True):
        np.copyto(np.frombuffer(one.into, dtype=np.uint8), arena.bytes_at(place, one.length))
        right &= block_digest(one.into, one.segment_bytes) == one.digest
    return right
