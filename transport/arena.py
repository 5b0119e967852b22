"""A peer's arena on this machine, mapped read-only: copying a block out of it, and noticing that it was overwritten.

The owner writes while we read, and it never asks. So a copy counts only if the slot's generation is the one that was
named to us, before the copy and after it, and if the copy has the digest it must have. The generation says cheaply
*why* a copy is bad, since a reused slot speaks against nobody; the digest is the guard.
"""

import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pkv.blocks import block_digest
from p2pkv.errors import MalformedMessage
from p2pkv.fetch import Outcome
from p2pkv.generations import ENTRY_BYTES, Place, entries_of, generations, numbers, table_bytes
from p2pkv.running_digest import PIECE_BYTES, RunningDigest
from p2pkv.slots import PAGE_BYTES
from p2pkv.transport.base import Wanted
from p2pkv.transport.wire import ArenaOffer

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""Without them the owner could cut the file under our mapping, and the next copy would be a SIGBUS."""


class PeerArena:
    """One peer's arena. It stays mapped as long as somebody copies from it, whatever the peer does."""

    def __init__(self, fd: int, offer: ArenaOffer, *, peer: str) -> None:
        """Map `fd`, which is closed here in any case.

        Raises:
            MalformedMessage: it is not a sealed memfd of the size and division that was announced.
        """
        arena_bytes = offer.arena_bytes
        self.capacity_bytes: Final = arena_bytes - offer.table_bytes
        try:
            if self.capacity_bytes <= 0 or table_bytes(self.capacity_bytes) != offer.table_bytes:
                raise MalformedMessage(f"an arena of {arena_bytes} bytes with a wrong table", peer=peer)
            try:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            except OSError as exc:
                raise MalformedMessage("an arena that is not a memfd", peer=peer) from exc
            if seals & _SEALS != _SEALS:
                raise MalformedMessage("an arena that may shrink", peer=peer)
            if os.fstat(fd).st_size != arena_bytes:
                raise MalformedMessage(f"an arena of {os.fstat(fd).st_size} bytes, {arena_bytes} announced", peer=peer)
            self._map = mmap.mmap(fd, arena_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        whole: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        self._slots = whole[offer.table_bytes :]
        self._generations: NDArray[np.uint64] = whole[: self.capacity_bytes // PAGE_BYTES * ENTRY_BYTES].view("<u8")

    def holds(self, place: Place, length: int) -> bool:
        """Say whether a block of `length` bytes can lie at `place`."""
        return place.offset % PAGE_BYTES == 0 and place.offset + length <= self.capacity_bytes

    def bytes_at(self, place: Place, length: int) -> NDArray[np.uint8]:
        """Return what lies at `place` now: to be copied and checked, never to be trusted where it lies."""
        return self._slots[place.offset : place.offset + length]

    def is_as_told(self, place: Place, length: int) -> bool:
        """Say whether what lies at `place` is still the block that was named to us."""
        (now,) = generations(self._generations, [place.offset // PAGE_BYTES], -(-length // PAGE_BYTES))
        return place.generation % 2 == 0 and now == place.generation

    def copy_verified(self, blocks: Sequence[tuple[Wanted, Place | None]]) -> list[Outcome]:
        """Copy each block to where it is wanted, and say how that ended.

        "ok", "corrupt", or "absent" if it has no place, or its slot was another block's before its copy was complete.
        For worker threads: copying and hashing, which is nearly all of it, release the GIL.
        """
        look = _Look(self._generations, blocks)
        outcomes: list[Outcome] = []
        for (one, place), generation in zip(blocks, look.found, strict=True):
            if place is None or place.generation % 2 or generation != place.generation:
                outcomes.append("absent")
            else:
                outcomes.append("ok" if self._copy(place, one) == one.digest else "corrupt")
        for position in look.changed():
            outcomes[position] = "absent"
        return outcomes

    def _copy(self, place: Place, one: Wanted) -> bytes:
        """Copy one block; return the digest of the copy, not of what it was copied from, which may change meanwhile."""
        into = np.frombuffer(one.into, dtype=np.uint8)
        source = self.bytes_at(place, one.length)
        if one.length <= PIECE_BYTES:
            np.copyto(into, source)
            return block_digest(one.into, one.segment_bytes)
        digest = RunningDigest(one.segment_bytes)
        for start in range(0, one.length, PIECE_BYTES):
            end = start + PIECE_BYTES
            np.copyto(into[start:end], source[start:end])
            digest.take(one.into[start:end])
        return digest.digest()


class _Look:
    """The generations of some blocks' slots at one time, and which of them are others by now."""

    def __init__(self, table: NDArray[np.uint64], blocks: Sequence[tuple[Wanted, Place | None]]) -> None:
        """Look. `found` is the generation of each block's slot, -1 where there is no place."""
        self.found = [-1] * len(blocks)
        self._table = table
        self._seen: list[tuple[list[int], NDArray[np.intp], NDArray[np.uint64]]] = []
        """For each size: which blocks, where the table speaks of them, and what it said."""
        by_pages: dict[int, list[int]] = {}
        for position, (one, place) in enumerate(blocks):
            if place is not None:
                by_pages.setdefault(-(-one.length // PAGE_BYTES), []).append(position)
        for pages, positions in by_pages.items():  # one look for all of a size: 3 µs each were half of a small pull
            starts = [place.offset // PAGE_BYTES for i in positions if (place := blocks[i][1]) is not None]
            where = entries_of(starts, pages)
            entries = table[where]
            self._seen.append((positions, where, entries))
            for position, number in zip(positions, numbers(entries), strict=True):
                self.found[position] = number

    def changed(self) -> list[int]:
        """Return the blocks whose slots are not as they were."""
        changed: list[int] = []
        for positions, where, before in self._seen:
            same = self._table[where] == before
            if not same.all():
                changed += [position for position, row in zip(positions, same, strict=True) if not row.all()]
        return changed
