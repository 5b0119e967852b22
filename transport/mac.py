"""Bodies that anybody may read and nobody may change, sans-IO: pieces of the stream, each followed by its GMAC tag.

    piece of at most MAC_PIECE_BYTES, 16 bytes of tag

Where a piece ends both sides know: a header is a piece, a body is cut in pieces of `MAC_PIECE_BYTES`. GMAC is AES-256-GCM
with nothing to encrypt, over twice as fast. Nonces count the pieces of one connection under a key of their own, so a piece that is
missing, repeated, moved, cut or altered is not authentic, and nothing behind it is.
"""

from typing import Final

from cryptography.exceptions import InvalidTag

from p2pkv.errors import PeerGone, SealRefused
from p2pkv.running_digest import PIECE_BYTES
from p2pkv.transport.records import RECORDS_MAX
from p2pkv.transport.subkeys import cipher, nonce

MAC_PIECE_BYTES: Final = PIECE_BYTES
"""Part of the format. Two caches' visits, the tag and the digest, for one trip from memory."""


class Tagger:
    """Tags what goes out on one connection."""

    def __init__(self, key: bytes) -> None:
        self._cipher = cipher(key)
        self._count = 0

    def tag(self, piece: bytes | memoryview) -> bytes:
        """Return the tag of the next piece.

        Raises:
            PeerGone: the key is used up.
        """
        if self._count >= RECORDS_MAX:
            raise PeerGone("the keys of a connection are used up", peer="this stream")
        self._count += 1
        return self._cipher.encrypt(nonce(self._count), b"", piece)


class TagChecker:
    """Checks what comes in on one connection."""

    def __init__(self, key: bytes, *, peer: str) -> None:
        self._cipher = cipher(key)
        self._peer = peer
        self._count = 0

    def check(self, piece: memoryview, tag: bytes | bytearray) -> None:
        """Return if `piece` is the next one that the other side sent.

        Raises:
            SealRefused: it is not.
        """
        self._count += 1
        try:
            self._cipher.decrypt(nonce(self._count), tag, piece)
        except InvalidTag as exc:
            raise SealRefused("forged", peer=self._peer) from exc
