"""Limits, made by hand: the least work that gives the same promise, moving the bytes and checking their digests.

Each is a plain loop in one thread at each end, without a protocol, an event loop or an error that is handled, and as fast as
its writer knew how: waits in the kernel for whole pieces, and hashes a piece of a large block while it is in a cache.
"""

import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from p2pkv.blocks import block_digest
from p2pkv.generations import Place
from p2pkv.running_digest import PIECE_BYTES, RunningDigest
from p2pkv.transport.arena import PeerArena
from p2pkv.transport.base import Wanted
from p2pkv.transport.bulk_protection import BITS, BulkProtection

Bodies = Callable[[int], Iterator[memoryview]]
FRAME_BYTES: Final = 2**20
"""Encrypted at once."""
_LEASE: Final = struct.Struct("<Q")
_GUARDED: Final = struct.Struct("<QB")
_TAG_BYTES: Final = 16
_CIPHER: Final = AESGCM(bytes(range(32)))
"""Its nonces repeat, which costs nothing here and protects nothing either: these are figures, not secrets."""


def serve_plain(listener: socket.socket, bodies: Bodies) -> None:
    """Answer lease numbers with the bytes of their blocks, one caller at a time, for ever."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while asked := connection.recv(_LEASE.size, socket.MSG_WAITALL):
                for body in bodies(*_LEASE.unpack(asked)):
                    connection.sendall(body)


def take_plain(connection: socket.socket, lease: int, wanted: Sequence[Wanted], *, check: bool = True) -> bool:
    """Receive the blocks of a lease into their places; say whether all digests are right, without `check` that they are."""
    connection.sendall(_LEASE.pack(lease))
    right = True
    for one in wanted:
        if not check:
            _fill(connection, one.into)
            continue
        digest = RunningDigest(one.segment_bytes)
        for start in range(0, one.length, PIECE_BYTES):
            piece = one.into[start : start + PIECE_BYTES]
            _fill(connection, piece)
            digest.take(piece)
        right &= digest.digest() == one.digest
    return right


def serve_guarded(listener: socket.socket, bodies: Bodies) -> None:
    """Answer lease numbers with the bytes of their blocks, encrypted or authenticated as asked, for ever."""
    room = memoryview(bytearray(FRAME_BYTES + _TAG_BYTES))
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while asked := connection.recv(_GUARDED.size, socket.MSG_WAITALL):
                lease, how = _GUARDED.unpack(asked)
                for body in bodies(lease):
                    for start in range(0, len(body), FRAME_BYTES):
                        piece = body[start : start + FRAME_BYTES]
                        if how == BITS["aead"]:
                            sealed = room[: len(piece) + _TAG_BYTES]
                            _CIPHER.encrypt_into(bytes(12), piece, b"", sealed)
                            connection.sendall(sealed)
                        else:
                            tag = _CIPHER.encrypt(bytes(12), b"", piece)
                            connection.sendall(piece)
                            connection.sendall(tag)


def take_guarded(connection: socket.socket, how: BulkProtection, lease: int, wanted: Sequence[Wanted]) -> bool:
    """Receive, decrypt or authenticate, and check the blocks of a lease; say whether all digests are right.

    Raises:
        InvalidTag: something came that was not sent.
    """
    connection.sendall(_GUARDED.pack(lease, BITS[how]))
    room = memoryview(bytearray(FRAME_BYTES + _TAG_BYTES))
    right = True
    for one in wanted:
        digest = RunningDigest(one.segment_bytes)
        for start in range(0, one.length, FRAME_BYTES):
            piece = one.into[start : start + FRAME_BYTES]
            if how == "aead":
                sealed = room[: len(piece) + _TAG_BYTES]
                _fill(connection, sealed)
                _CIPHER.decrypt_into(bytes(12), sealed, b"", piece)
            else:
                tag = room[:_TAG_BYTES]
                _fill(connection, piece)
                _fill(connection, tag)
                _CIPHER.decrypt(bytes(12), tag, piece)
            digest.take(piece)
        right &= digest.digest() == one.digest
    return right


def take_mapped(arena: PeerArena, places: Sequence[Place], wanted: Sequence[Wanted], *, check: bool = True) -> bool:
    """Copy blocks out of a mapped arena; say whether all digests are right, without `check` that they are."""
    right = True
    for place, one in zip(places, wanted, strict=True):
        into, source = np.frombuffer(one.into, dtype=np.uint8), arena.bytes_at(place, one.length)
        if not check or one.length <= PIECE_BYTES:
            np.copyto(into, source)
            right &= not check or block_digest(one.into, one.segment_bytes) == one.digest
            continue
        digest = RunningDigest(one.segment_bytes)
        for start in range(0, one.length, PIECE_BYTES):
            end = start + PIECE_BYTES
            np.copyto(into[start:end], source[start:end])
            digest.take(one.into[start:end])
        right &= digest.digest() == one.digest
    return right


def _fill(connection: socket.socket, view: memoryview) -> None:
    done = 0
    while done < len(view):
        done += connection.recv_into(view[done:], 0, socket.MSG_WAITALL)
