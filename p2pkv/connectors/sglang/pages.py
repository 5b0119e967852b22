"""Pages under SGLang's names, as blocks of the mesh.

SGLang gives no tokens, only its own hash of them, so a block's key wraps that hash; see
`p2pkv.index.hashing.wrap_engine_hash`. The hash of a page is SHA-256 over the digest of the page before it and the page's
token ids as little-endian u32, in hexadecimal; the first page follows a seed made of the request's salt and adapter, or
nothing. Source: SGLang 0.5.23, `sglang.srt.mem_cache.utils`.
"""

import hashlib
from array import array
from collections.abc import Sequence
from sys import byteorder
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pkv.blocks import BlockKey, Namespace
from p2pkv.client import Client
from p2pkv.connectors.tally import Tally
from p2pkv.errors import P2pkvError
from p2pkv.index.hashing import wrap_engine_hash

HASH_SCHEME: Final = "sglang.page.sha256"

Pieces = Sequence[NDArray[np.uint8]]
"""One page in an engine's memory: runs of bytes, in the order in which a block holds them."""


class Pages:
    """One engine's pages of one shape. Two threads may use it at the same time: one that reads and one that writes."""

    def __init__(
        self, namespace: Namespace, reader: Client, writer: Client, tally: Tally, *, fetch_timeout_s: float
    ) -> None:
        """Keep clients that need not be attached yet; they stay the caller's to close.

        Args:
            namespace: of the pages; a block is one page.
            reader: for looking and fetching.
            writer: for publishing, with staging memory.
            tally: counts what happens.
            fetch_timeout_s: longest that `load` waits for peers.
        """
        self._namespace = namespace
        self._reader = reader
        self._writer = writer
        self._tally = tally
        self._fetch_timeout_s = fetch_timeout_s

    def key(self, page_hash: str) -> BlockKey:
        """Return the key of the page with this name."""
        return wrap_engine_hash(self._namespace, page_hash.encode(), HASH_SCHEME)

    def present(self, hashes: Sequence[str]) -> int:
        """Return how many of these pages, from the first on, can probably be had. Asks nobody but the node."""
        match = self._tally.or_miss(lambda: self._reader.match([self.key(name) for name in hashes]), None)
        return match.reachable_blocks if match is not None else 0

    def load(self, hashes: Sequence[str], into: Sequence[Pieces]) -> int:
        """Copy pages to where they are wanted, and return how many, from the first on, are there and verified.

        What is behind those may have been written in part.
        """
        loaded = self._tally.or_miss(lambda: self._load(hashes, into), 0)
        self._tally.add("pages_loaded", loaded)
        self._tally.add("pages_not_loaded", len(hashes) - loaded)
        return loaded

    def save(self, hashes: Sequence[str], pages: Sequence[Pieces]) -> bool:
        """Publish pages; the copy is made before this returns. False if the node has not all of them now."""

        def fill(i: int, destination: NDArray[np.uint8]) -> None:
            _gather(pages[i], destination)

        keys = [self.key(name) for name in hashes]
        try:
            published = self._writer.publish(self._namespace, keys, fill)
        except P2pkvError as exc:
            self._tally.failed(exc)
            self._tally.add("pages_not_published", len(keys))
            return False
        self._tally.add("pages_published", published.stored)
        self._tally.add("pages_present", published.present)
        self._tally.add("pages_refused", published.refused)
        return published.refused == 0

    def _load(self, hashes: Sequence[str], into: Sequence[Pieces]) -> int:
        keys = [self.key(name) for name in hashes]
        with self._reader.acquire(keys, timeout_s=self._fetch_timeout_s) as lease:
            loaded = 0
            for pieces in into[: len(lease.blocks)]:
                view = self._tally.or_miss(lambda i=loaded: lease.view(i), None)  # type: ignore[misc]
                if view is None:
                    break  # corrupt; what is behind it is of no use either
                _scatter(view, pieces)
                loaded += 1
            if not lease.intact():  # this process slept past the lease's deadline, and its copies may be torn
                self._tally.add("leases_expired")
                return 0
            return loaded


def page_hashes(tokens: Sequence[int], page_tokens: int, prior: str = "") -> list[str]:
    """Return SGLang's names of the full pages of `tokens`.

    Args:
        tokens: token ids, each between 0 and 2**32 - 1.
        page_tokens: tokens of a page.
        prior: name of the page before the first one, or the seed of the request's salt and adapter; empty for neither.
    """
    names = []
    for start in range(0, len(tokens) // page_tokens * page_tokens, page_tokens):
        packed = array("I", tokens[start : start + page_tokens])
        if byteorder == "big":
            packed.byteswap()
        prior = hashlib.sha256(bytes.fromhex(prior) + packed.tobytes()).hexdigest()
        names.append(prior)
    return names


def event_hash(page_hash: str) -> int:
    """Return how SGLang's events write a page's name: its first 64 bits, as a signed integer."""
    return int.from_bytes(bytes.fromhex(page_hash[:16]), "big", signed=True)


def _scatter(block: memoryview, pieces: Pieces) -> None:
    source: NDArray[np.uint8] = np.frombuffer(block, dtype=np.uint8)
    offset = 0
    for piece in pieces:
        np.copyto(piece, source[offset : offset + piece.size])
        offset += piece.size


def _gather(pieces: Pieces, block: NDArray[np.uint8]) -> None:
    offset = 0
    for piece in pieces:
        np.copyto(block[offset : offset + piece.size], piece)
        offset += piece.size
