"""The digest of a block whose bytes come in pieces, each hashed while it is still in a cache.

Hashing a block after all of it was copied reads it from memory a second time; piece by piece that costs next to nothing.
"""

from typing import Final

import xxhash

from p2pkv.blocks import segment_table
from p2pkv.errors import LocalUseError

PIECE_BYTES: Final = 256 * 2**10
"""A good size of pieces: it stays in the second-level cache until it is hashed, and takes longer than the calls around it."""


class RunningDigest:
    """`p2pkv.blocks.block_digest`, piece by piece. One block each."""

    def __init__(self, segment_bytes: int) -> None:
        self._segment_bytes = segment_bytes
        self._table: list[bytes] = []
        self._segment = xxhash.xxh3_128()
        self._done = 0
        """Bytes of the segment that has begun."""

    def take(self, piece: memoryview) -> None:
        """Go on with `piece`, which is not changed any more."""
        segment_bytes = self._segment_bytes
        if self._done == 0 and len(piece) >= segment_bytes:
            whole = len(piece) - len(piece) % segment_bytes
            self._table.append(segment_table(piece[:whole], segment_bytes))
            piece = piece[whole:]
        while len(piece):
            part = piece[: segment_bytes - self._done]
            self._segment.update(part)
            self._done += len(part)
            piece = piece[len(part) :]
            if self._done == segment_bytes:
                self._table.append(self._segment.digest())
                self._segment.reset()
                self._done = 0

    def digest(self) -> bytes:
        """Return the 16 bytes.

        Raises:
            LocalUseError: what came is not a whole number of segments.
        """
        if self._done or not self._table:
            raise LocalUseError(f"a body that ends {self._done} bytes into a segment of {self._segment_bytes}")
        return xxhash.xxh3_128_digest(b"".join(self._table))
