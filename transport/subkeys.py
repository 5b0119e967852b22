"""Every key that anything is encrypted with, derived here and nowhere else: HKDF-SHA256 (RFC 5869) of a key of the ring.

No key of a ring encrypts anything itself. What is derived depends on something random of 128 bits or more that is drawn
anew for every process or connection, so that nonces may be counters: no two uses of a counter share a key. A session key
that is agreed upon in another way, by TLS say, takes the place of `stream_keys` and of nothing else.
tests/transport/golden_seal.json freezes the derivations.
"""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SALT_BYTES: Final = 16
"""Random salt of one run of a node's process."""
SENDER_BYTES: Final = 8
"""Digest of a node's id in front of a datagram; ids are of any length, what is in front is not."""
RANDOM_BYTES: Final = 32
"""What each side of a stream draws for it."""
TAG_BYTES: Final = 16
NONCE_BYTES: Final = 12

_DATAGRAM: Final = b"p2pkv datagram 1"
_HELLO: Final = b"p2pkv hello 1"
_STREAM: Final = b"p2pkv stream 1"


def derive(key: bytes, *, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """Return `length` bytes of HKDF-SHA256."""
    return HKDF(SHA256(), length, salt, info).derive(key)


@lru_cache(maxsize=8192)  # asked for every datagram
def sender_digest(node_id: str) -> bytes:
    """Return what stands for a node in front of its datagrams."""
    return sha256(node_id.encode()).digest()[:SENDER_BYTES]


def datagram_key(key: bytes, *, sender: bytes, boot: int, salt: bytes) -> bytes:
    """Return the key of all datagrams of one run of one node under one key of the ring."""
    assert len(sender) == SENDER_BYTES
    return derive(key, salt=salt, info=_DATAGRAM + sender + boot.to_bytes(8, "big"))


def hello_key(key: bytes, *, caller_random: bytes) -> bytes:
    """Return the key of the one message that a caller sends before the other side has drawn its random."""
    return derive(key, salt=caller_random, info=_HELLO)


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """A key for each direction of one connection, and for each way of protecting what goes there."""

    from_caller: bytes
    from_called: bytes
    tags_from_called: bytes
    """Of what is authenticated and not encrypted, so that no nonce is used for both."""

    def __repr__(self) -> str:
        return "<StreamKeys>"


def stream_keys(key: bytes, *, opening: bytes, called_random: bytes) -> StreamKeys:
    """Return the keys of one connection: of the caller's whole first message, its random in it, and the other's random.

    Neither side can be brought to use one pair of keys twice, because each has put 256 random bits into it.
    """
    all_three = derive(key, salt=called_random, info=_STREAM + sha256(opening).digest(), length=96)
    return StreamKeys(all_three[:32], all_three[32:64], all_three[64:])


def nonce(counter: int) -> bytes:
    """Return the nonce of the `counter`-th use of a key."""
    return counter.to_bytes(NONCE_BYTES, "big")


def cipher(key: bytes) -> AESGCM:
    """Return AES-256-GCM under `key`."""
    return AESGCM(key)
