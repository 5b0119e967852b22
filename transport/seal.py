"""One datagram, sealed with AES-256-GCM under a key of the ring. The clear bytes in front are authenticated with the rest.

0  u8  1: sealed, in this format. A message in the clear is a msgpack array and begins with 0x90 or more
1  4s  of the fingerprint of the key of the ring
5  8s  of SHA-256 of the sender's id
13 u56 boot of the sender's process
20 16s salt, drawn by the sender at start
36 u48 sequence number, from 1
42     ciphertext, and a tag of 16 bytes

All numbers are big-endian. The key is derived from the key of the ring, sender, boot and salt; the nonce is the sequence
number. So a nonce never repeats under one key: not within a run, because the number grows; not over restarts or between
nodes, because the salt differs, and the boot and the sender too.
"""

import secrets
import threading
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from p2pkv.errors import SealRefused
from p2pkv.transport.keyring import KeyRing, fingerprint
from p2pkv.transport.replay import SENDERS_MAX, Senders, Verdict
from p2pkv.transport.subkeys import (
    SALT_BYTES,
    SENDER_BYTES,
    TAG_BYTES,
    cipher,
    datagram_key,
    nonce,
    sender_digest,
)
from p2pkv.transport.wire import SEAL_BYTES

SEALED: Final = 1
"""First byte of what is sealed, in datagrams and on streams."""
NAMED_BYTES: Final = 4
"""Bytes of a fingerprint in front of what is sealed: enough to choose among the few keys of a ring."""
_BOOT_BYTES: Final = 7
_SEQUENCE_BYTES: Final = 6
_SEQUENCE_MAX: Final = 2 ** (8 * _SEQUENCE_BYTES) - 1
_SENDER_AT: Final = 1 + NAMED_BYTES
_BOOT_AT: Final = _SENDER_AT + SENDER_BYTES
_SALT_AT: Final = _BOOT_AT + _BOOT_BYTES
_SEQUENCE_AT: Final = _SALT_AT + SALT_BYTES
_HEAD_BYTES: Final = _SEQUENCE_AT + _SEQUENCE_BYTES
assert _HEAD_BYTES + TAG_BYTES == SEAL_BYTES

_Ciphers = dict[bytes, AESGCM]


def is_sealed(data: bytes) -> bool:
    """Say whether `data` claims to be sealed; what does not is in the clear."""
    return data[:1] == bytes([SEALED])


def keys_named(ring: KeyRing, name: bytes) -> tuple[bytes, ...]:
    """Return the keys of `ring` whose fingerprints begin with `name`: one, hardly ever several, or none."""
    return tuple(key for key in ring.keys if fingerprint(key).startswith(name))


class NoSeal:
    """What a node without a keyring has instead: everything in the clear, and nothing sealed is understood."""

    def seal(self, data: bytes) -> bytes:
        """Return `data`."""
        return data

    def open_untrusted(self, data: bytes, *, peer: str) -> tuple[bytes, bytes]:
        """Return `data`, and that its sender is not known.

        Raises:
            SealRefused: it is sealed.
        """
        if is_sealed(data):
            raise SealRefused("sealed", peer=peer)
        return data, b""

    def expect(self, node_id: str, boot: int) -> None:
        """Do nothing."""


class DatagramSeal:
    """Seals what this run of this node sends, and opens what arrives. One per process; thread-safe for sealing."""

    def __init__(
        self,
        *,
        node_id: str,
        boot: int,
        ring: Callable[[], KeyRing],
        salt: bytes | None = None,
        senders_max: int = SENDERS_MAX,
    ) -> None:
        """`ring` is asked for each datagram, so that a change of keys holds from the next one on. `salt` is for tests."""
        self._sender = sender_digest(node_id)
        self._boot = boot
        self._ring = ring
        self._salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
        self._lock = threading.Lock()
        self._sequence = 0
        self._own: tuple[bytes, bytes, AESGCM] | None = None
        self._senders: Senders[_Ciphers] = Senders(senders_max=senders_max)

    def seal(self, data: bytes) -> bytes:
        """Return `data` sealed under the primary key, `SEAL_BYTES` longer."""
        key = self._ring().keys[0]
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
            own = self._own
            if own is None or own[0] != key:
                own = self._own = (
                    key,
                    fingerprint(key)[:NAMED_BYTES],
                    self._cipher(key, self._sender, self._boot, self._salt),
                )
        assert sequence <= _SEQUENCE_MAX, "a million datagrams a second for nine years"
        _, name, own_cipher = own
        head = b"".join(
            (
                bytes([SEALED]),
                name,
                self._sender,
                self._boot.to_bytes(_BOOT_BYTES, "big"),
                self._salt,
                sequence.to_bytes(_SEQUENCE_BYTES, "big"),
            )
        )
        return head + own_cipher.encrypt(nonce(sequence), data, head)

    def open_untrusted(self, data: bytes, *, peer: str) -> tuple[bytes, bytes]:
        """Return what is in `data`, which came from the network, and the digest of its sender's id.

        Raises:
            SealRefused: it is not sealed by a node of this mesh, is a recording, or was altered. Nothing has changed.
        """
        if not is_sealed(data):
            raise SealRefused("plaintext", peer=peer)
        if len(data) < SEAL_BYTES:
            raise SealRefused("malformed", peer=peer)
        head = data[:_HEAD_BYTES]
        name = head[1:_SENDER_AT]
        sender = head[_SENDER_AT:_BOOT_AT]
        boot = int.from_bytes(head[_BOOT_AT:_SALT_AT], "big")
        salt = head[_SALT_AT:_SEQUENCE_AT]
        sequence = int.from_bytes(head[_SEQUENCE_AT:], "big")
        keys = keys_named(self._ring(), name)
        if not keys:
            raise SealRefused("unknown_key", peer=peer, detail=name.hex())
        # Judged before the tag, because it is cheaper than a derivation; taken only after it.
        verdict: Verdict = self._senders.judge(sender, boot, salt, sequence)
        if verdict != "ok":
            raise SealRefused(verdict, peer=peer)
        ciphers = self._senders.kept(sender, boot, salt) or {}
        for key in keys:
            known = ciphers.get(key) or self._cipher(key, sender, boot, salt)
            try:
                opened = known.decrypt(nonce(sequence), data[_HEAD_BYTES:], head)
            except InvalidTag:
                continue
            ring = self._ring()
            kept = {one: one_cipher for one, one_cipher in ciphers.items() if one in ring.keys}
            self._senders.take(sender, boot, salt, sequence, {**kept, key: known})
            return opened, sender
        raise SealRefused("forged", peer=peer)

    def expect(self, node_id: str, boot: int) -> None:
        """Take from a member record that `node_id` has reached `boot`; datagrams of earlier runs are refused."""
        self._senders.expect(sender_digest(node_id), boot)

    @staticmethod
    def _cipher(key: bytes, sender: bytes, boot: int, salt: bytes) -> AESGCM:
        return cipher(datagram_key(key, sender=sender, boot=boot, salt=salt))

    def __repr__(self) -> str:
        return f"<DatagramSeal sent={self._sequence} senders={len(self._senders)}>"
